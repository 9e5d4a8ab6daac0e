//! Packets from outside: answers to flows, and everything else.

use gateway_common::{
    DropReason::{FragmentUnmatched, NeighborUnresolved, NoRoute, NoSession, SpoofedSource},
    Verdict::Reply,
};
use gateway_tests::packet::{ACK, SYN, bare, echo_reply, echo_request, tcp, udp};

use crate::support::{POOL, POOL6, dropped, nat, passed, sent, snat, standard};

const ALL: &str = "0.0.0.0/0";

#[test]
fn a_reply_is_translated_back_to_the_client() {
    let Some(mut lab) = snat() else { return };
    lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    let answer = tcp("203.0.113.10:443", "198.51.100.10:4000", SYN | ACK);
    let translated = answer.clone().to("10.0.1.2:4000");
    let expected = sent("in0", "10.0.1.2", Reply, &translated).by(ALL, "pool");
    lab.check("out0", &answer, expected.establishing(POOL));
    let data = answer.flags(ACK).payload([0x5a; 1000]);
    lab.check(
        "out0",
        &data,
        sent("in0", "10.0.1.2", Reply, &data.clone().to("10.0.1.2:4000")).by(ALL, "pool"),
    );
}

#[test]
fn a_udp_reply_is_translated_back_to_the_client() {
    let Some(mut lab) = snat() else { return };
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let answer = udp("203.0.113.10:53", "198.51.100.10:4000");
    let expected = sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:4000"));
    lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
    let without = answer.without_checksum();
    let expected = sent("in0", "10.0.1.2", Reply, &without.clone().to("10.0.1.2:4000"));
    lab.check("out0", &without, expected.by(ALL, "pool"));
}

#[test]
fn an_echo_reply_is_translated_back_to_the_client() {
    let Some(mut lab) = snat() else { return };
    let (_, identifier) = lab.open("in0", &echo_request("10.0.1.2", "203.0.113.10", 9));
    let answer = echo_reply("203.0.113.10", POOL, identifier);
    let expected = sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:9"));
    lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
}

#[test]
fn a_reply_to_a_client_behind_a_router_goes_to_the_router() {
    let Some(mut lab) = snat() else { return };
    let query = udp("10.0.2.77:4000", "203.0.113.10:53").macs([2, 4, 10, 0, 1, 254], [2, 4, 10, 0, 1, 1]);
    lab.open("in0", &query);
    let answer = udp("203.0.113.10:53", "198.51.100.10:4000");
    let expected = sent("in0", "10.0.1.254", Reply, &answer.clone().to("10.0.2.77:4000"));
    lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
}

#[test]
fn a_packet_to_a_pool_address_without_a_session_is_dropped() {
    let Some(mut lab) = snat() else { return };
    lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    // Another port of the pool, another server, another port of the server, another protocol.
    for stranger in [
        tcp("203.0.113.10:443", "198.51.100.10:4001", ACK),
        tcp("203.0.113.11:443", "198.51.100.10:4000", ACK),
        tcp("203.0.113.10:444", "198.51.100.10:4000", ACK),
        udp("203.0.113.10:443", "198.51.100.10:4000"),
        tcp("203.0.113.10:443", "198.51.100.10:4000", SYN).from_port(9),
        echo_request("203.0.113.10", POOL, 4000),
        echo_reply("203.0.113.10", POOL, 4000),
        bare("203.0.113.10", POOL, 47),
    ] {
        lab.check("out0", &stranger, dropped(NoSession));
    }
    // Not from inside either: clients do not reach each other by way of the pool. Only a host with an EIP has a session
    // with such an address, so the route is asked.
    lab.check("in0", &udp("10.0.1.3:5000", "198.51.100.10:4000"), dropped(NoSession).by(ALL, "pool"));
}

#[test]
fn fragments_to_a_pool_address_without_a_session_are_dropped() {
    let Some(mut lab) = snat() else { return };
    let fragments = udp("203.0.113.10:53", "198.51.100.10:4000").payload([7; 32]).fragments(&[24]);
    lab.check("out0", &fragments[0], dropped(NoSession));
    lab.check("out0", &fragments[1], dropped(FragmentUnmatched));
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    lab.check("out0", &fragments[1], dropped(FragmentUnmatched));
}

#[test]
fn a_packet_to_an_inside_host_needs_a_direct_route_back() {
    let Some(mut lab) = standard(|policy| {
        nat(policy).routes(
            "203.0.113.0/28 via direct proto tcp dport 443
             203.0.113.16/28 via gateway 192.0.2.2
             203.0.113.32/28 via blackhole
             203.0.113.33/32 via prohibit
             203.0.113.48/28 via host",
        )
    }) else {
        return;
    };
    let direct = tcp("203.0.113.10:443", "10.0.1.2:4000", SYN | ACK);
    let expected = sent("in0", "10.0.1.2", Reply, &direct);
    lab.check("out0", &direct, expected.by("203.0.113.0/28 proto tcp dport 443", "direct"));
    let gateway = udp("203.0.113.20:53", "10.0.1.2:4000");
    lab.check("out0", &gateway, sent("in0", "10.0.1.2", Reply, &gateway).by("203.0.113.16/28", "gateway"));
    // What the client sends there is translated: nothing it asked for comes back untranslated.
    lab.check("out0", &tcp("203.0.113.10:80", "10.0.1.2:4000", SYN | ACK), dropped(NoSession));
    lab.check("out0", &udp("203.0.113.40:53", "10.0.1.2:4000"), dropped(NoRoute));
    lab.check("out0", &udp("203.0.113.33:53", "10.0.1.2:4000"), dropped(NoRoute));
    lab.check("out0", &udp("203.0.113.50:53", "10.0.1.2:4000"), passed());
}

#[test]
fn a_packet_to_an_inside_host_without_a_route_back_is_dropped() {
    let Some(mut lab) = standard(|policy| policy) else { return };
    lab.check("out0", &tcp("203.0.113.10:443", "10.0.1.2:4000", SYN), dropped(NoRoute));
}

#[test]
fn a_packet_to_an_inside_host_must_come_from_the_outside() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct")) else { return };
    let from = |source| tcp(source, "10.0.1.2:4000", ACK);
    // An inside source; one that the host calls unreachable; one that is behind lan0; the host itself.
    for source in ["10.0.1.3:443", "10.0.3.2:443", "203.0.113.81:443", "203.0.113.65:443", "192.0.2.1:443"] {
        lab.check("out0", &from(source), dropped(SpoofedSource));
    }
    // Which of the outside devices it comes from is up to other routers; it need not be resolved either.
    for source in ["203.0.113.200:443", "10.9.0.254:443", "10.9.0.77:443", "192.0.2.99:443"] {
        let expected = sent("in0", "10.0.1.2", Reply, &from(source)).by(ALL, "direct");
        lab.check("out0", &from(source), expected);
    }
    let unresolved = tcp("203.0.113.10:443", "10.0.1.99:4000", ACK);
    lab.check("out0", &unresolved, dropped(NeighborUnresolved));
}

#[test]
fn what_is_not_for_the_inside_is_the_hosts_business() {
    let Some(mut lab) = snat() else { return };
    for destination in [
        "192.0.2.1:22",
        "198.51.100.1:22",
        "10.0.1.1:22",
        "192.0.2.255:22",
        "203.0.113.10:22",
        "10.8.0.7:22",
        "192.0.2.99:22",
    ] {
        lab.check("out0", &tcp("203.0.113.11:443", destination, SYN), passed());
    }
}

#[test]
fn an_address_of_both_host_and_pool_serves_sessions_first() {
    let policy = |policy| nat(policy).pool("nat", &format!("198.51.100.1 {POOL6}"), "1024-65535");
    let Some(mut lab) = standard(policy) else { return };
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let answer = udp("203.0.113.10:53", "198.51.100.1:4000");
    let expected = sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:4000"));
    lab.check("out0", &answer, expected.by(ALL, "pool").establishing("198.51.100.1"));
    lab.check("out0", &tcp("203.0.113.10:53", "198.51.100.1:22", SYN), passed());
}
