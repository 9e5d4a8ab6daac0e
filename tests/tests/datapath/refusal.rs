//! What the sender of a dropped packet is told.

use gateway_common::{
    DropReason::{
        DestinationConcurrent, NoSession, PoolExhausted, Prohibited, SessionTableFull, SourceConcurrent,
    },
    Verdict::Snat,
};
use gateway_tests::{
    gateway::Action,
    packet::{ACK, FIN, Packet, RST, SYN, Transport, bare, echo_reply, echo_request, tcp, udp},
    policy::Policy,
};

use crate::support::{
    Expected, Lab, POOL, POOL6, ROUTER, dropped, nat, refused, reset, sent, snat, standard, too_large,
};

const ALL: &str = "0.0.0.0/0";

fn prohibiting() -> Option<Lab> {
    standard(|policy| policy.routes("0.0.0.0/0 via prohibit\n::/0 via prohibit\n203.0.113.200/32 via direct"))
}

#[test]
fn a_prohibited_connection_is_reset() {
    let Some(mut lab) = prohibiting() else { return };
    for flags in [SYN, ACK, SYN | ACK, FIN, FIN | ACK, 0] {
        let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", flags);
        lab.check("in0", &segment, reset(Prohibited).by(ALL, "prohibit"));
        let empty = tcp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:443", flags).payload([]);
        lab.check("in0", &empty, reset(Prohibited).by("::/0", "prohibit"));
    }
    // A reset does not answer a reset (RFC 9293 3.5.2).
    let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", RST | ACK);
    lab.check("in0", &segment, dropped(Prohibited).by(ALL, "prohibit"));
}

#[test]
fn a_client_is_told_that_its_connection_has_no_session() {
    let Some(mut lab) = snat() else { return };
    let segment = tcp("[2001:db8:1::2]:4000", "[2001:db8:77::1]:443", ACK).payload([1; 300]);
    lab.check("in0", &segment, reset(NoSession).by("::/0", "pool"));
    // Whoever asks from outside is not told what there is.
    lab.check("out0", &tcp("203.0.113.10:443", "198.51.100.10:4000", ACK), dropped(NoSession));
    // While a session that was cut is in the way, a SYN has to be repeated; all else is over.
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    lab.open("in0", &syn);
    lab.change(|policy| policy.pool("nat", &format!("198.51.100.20 {POOL6}"), "1024-65535"));
    lab.check("in0", &syn.clone().flags(ACK), reset(NoSession));
    lab.check("in0", &syn.clone().flags(ACK), reset(NoSession).by(ALL, "pool"));
    lab.check("in0", &syn, dropped(NoSession).by(ALL, "pool"));
    lab.sweep_all();
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.20:4000"));
    lab.check("in0", &syn, expected.by(ALL, "pool").opening("tcp", "198.51.100.20"));
}

#[test]
fn a_gateway_that_is_told_so_says_nothing_of_connections_without_a_session() {
    let Some(mut lab) = snat() else { return };
    lab.change(Policy::silent_without_session);
    let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK).payload([1; 300]);
    lab.check("in0", &segment, dropped(NoSession).by(ALL, "pool"));
    let six = tcp("[2001:db8:1::2]:4000", "[2001:db8:77::1]:443", ACK);
    lab.check("in0", &six, dropped(NoSession).by("::/0", "pool"));
    // What a route prohibits is told all the same.
    lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via prohibit"));
    lab.check("in0", &segment, reset(Prohibited).by(ALL, "prohibit"));
}

#[test]
fn a_prohibited_packet_is_answered_by_an_icmp_error() {
    let Some(mut lab) = prohibiting() else { return };
    for packet in [
        udp("10.0.1.2:4000", "203.0.113.10:53"),
        echo_request("10.0.1.2", "203.0.113.10", 7),
        echo_reply("10.0.1.2", "203.0.113.10", 7),
        bare("10.0.1.2", "203.0.113.10", 47),
        udp("10.0.1.2:4000", "203.0.113.10:53").fragment(0, true),
    ] {
        lab.check("in0", &packet, refused(Prohibited).by(ALL, "prohibit"));
    }
    for packet in [
        udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53"),
        udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53").extension(60, &[1, 4, 0, 0, 0, 0]),
        echo_request("2001:db8:1::2", "2001:db8:f::1", 7),
    ] {
        lab.check("in0", &packet, refused(Prohibited).by("::/0", "prohibit"));
    }
}

#[test]
fn the_error_goes_back_to_the_router_that_the_packet_came_from() {
    let Some(mut lab) = prohibiting() else { return };
    let router = [2, 4, 10, 0, 1, 254];
    let behind = udp("10.0.2.9:4000", "203.0.113.10:53").macs(router, [2, 4, 10, 0, 1, 1]);
    lab.check("in0", &behind, refused(Prohibited).by(ALL, "prohibit"));
}

#[test]
fn nothing_is_said_of_errors_later_fragments_and_options() {
    let Some(mut lab) = prohibiting() else { return };
    let mut error = echo_request("10.0.1.2", "203.0.113.10", 7);
    for kind in [3, 11, 12, 5] {
        error.transport = Transport::Icmp { kind, code: 0, rest: [0; 4] };
        lab.check("in0", &error, dropped(Prohibited).by(ALL, "prohibit"));
        lab.check("in0", &error.clone().ttl(1), dropped(Prohibited).by(ALL, "prohibit"));
    }
    for packet in [
        bare("10.0.1.2", "203.0.113.10", 17).fragment(9, false),
        udp("10.0.1.2:4000", "203.0.113.10:53").options(&[1, 1, 1, 0]),
        // Nothing to quote.
        bare("10.0.1.2", "203.0.113.10", 47).payload([0; 7]),
    ] {
        lab.check("in0", &packet, dropped(Prohibited).by(ALL, "prohibit"));
    }
}

#[test]
fn a_tagged_packet_is_answered_without_its_tag() {
    let Some(mut lab) = prohibiting() else { return };
    let answer = |lab: &mut Lab, packet: &Packet| lab.prepare("in0", packet).frame;
    for packet in [udp("10.0.1.2:4000", "203.0.113.10:53"), tcp("10.0.1.2:4000", "203.0.113.10:443", SYN)] {
        let plain = answer(&mut lab, &packet);
        assert_eq!(answer(&mut lab, &packet.tag(0x8100, 0xe000)), plain);
    }
}

#[test]
fn the_mtu_is_told_in_both_families() {
    let Some(mut lab) =
        standard(|policy| policy.routes("203.0.113.200/32 via direct\n2001:db8:f1::1/128 via direct"))
    else {
        return;
    };
    let large = tcp("10.0.1.2:4000", "203.0.113.200:443", ACK).length(1500);
    lab.check("in0", &large, too_large(1280).by("203.0.113.200/32", "direct"));
    let large = udp("[2001:db8:1::2]:4000", "[2001:db8:f1::1]:53").length(1500);
    lab.check("in0", &large, too_large(1280).by("2001:db8:f1::1/128", "direct"));
}

#[test]
fn errors_have_a_rate_limit() {
    let Some(mut lab) = prohibiting() else { return };
    let frame = lab.arriving("in0", &udp("10.0.1.2:4000", "203.0.113.200:53").ttl(1)).frame();
    let started = std::time::Instant::now();
    let outcomes: Vec<_> = (0..2000).map(|_| lab.run("in0", &frame).action).collect();
    // 134 a CPU in each tick, of 64 ms at least; the first and the last one count in full.
    let ticks = started.elapsed().as_millis() as usize / 64 + 2;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let told = outcomes.iter().filter(|action| **action == Action::Tx).count();
    assert!(told >= 134, "{told}");
    assert!(told <= 134 * ticks * cpus, "{told} in {ticks} ticks");
    assert!(outcomes.iter().all(|action| matches!(action, Action::Tx | Action::Drop)));
    let counted = lab.counters().to_string();
    assert!(counted.contains("drops ttl_exceeded: 2000"), "{counted}");
}

/// A pool with one port, which is taken, that refuses so.
fn full(how: &str) -> Option<Lab> {
    let mut lab = standard(|policy| {
        policy
            .pool("nat", &format!("{POOL} {POOL6}"), "5000-5000")
            .routes("0.0.0.0/0 via pool nat\n::/0 via pool nat")
            .refuse("nat", how)
    })?;
    for syn in [
        tcp("10.0.1.3:1", "203.0.113.10:443", SYN),
        tcp("[2001:db8:1::3]:1", "[2001:db8:77::1]:443", SYN),
        udp("10.0.1.3:1", "203.0.113.10:53"),
    ] {
        lab.open("in0", &syn);
    }
    Some(lab)
}

/// What is counted of a flow that no port is free for.
fn exhausted(expected: Expected, address: &str) -> Expected {
    let counted = ["attempts", "allocation_errors"].map(|what| format!("pool nat {address} {what}"));
    counted.iter().fold(expected, |expected, name| expected.counting(name))
}

#[test]
fn a_client_whose_connection_the_pool_cannot_take_is_told_what_the_pool_says() {
    let four = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let six = tcp("[2001:db8:1::2]:4000", "[2001:db8:77::1]:443", SYN);
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    for how in ["drop", "reset", "icmp"] {
        let Some(mut lab) = full(how) else { return };
        let told = |tcp| match how {
            "reset" if tcp => reset(PoolExhausted),
            "drop" => dropped(PoolExhausted),
            _ => refused(PoolExhausted),
        };
        lab.check("in0", &four, exhausted(told(true), POOL).by(ALL, "pool"));
        lab.check("in0", &six, exhausted(told(true), POOL6).by("::/0", "pool"));
        lab.check("in0", &query, exhausted(told(false), POOL).by(ALL, "pool"));
    }
}

#[test]
fn a_client_at_a_limit_is_told_what_the_pool_says() {
    let policy = |policy| {
        nat(policy).refuse("nat", "reset").limit("nat", 0, 0, 1).limit_sources(
            "a",
            "10.0.1.2/32",
            "source",
            (0, 0, 1),
        )
    };
    let Some(mut lab) = standard(policy) else { return };
    let syn = |client: &str, port: u16| tcp(&format!("{client}:{port}"), "203.0.113.10:443", SYN);
    lab.open("in0", &syn("10.0.1.2", 4_000));
    let expected = reset(SourceConcurrent).by(ALL, "pool").counting("limit a over_concurrent");
    lab.check("in0", &syn("10.0.1.2", 4_001), expected);
    let expected = reset(DestinationConcurrent).by(ALL, "pool");
    let expected = expected.counting(&format!("pool nat {POOL} attempts"));
    lab.check("in0", &syn("10.0.1.3", 4_000), expected.counting(&format!("pool nat {POOL} over_concurrent")));
}

#[test]
fn a_client_that_finds_the_session_table_full_is_told_what_the_pool_says() {
    let Some(mut lab) = standard(|policy| nat(policy).sessions(8).refuse("nat", "icmp")) else { return };
    lab.occupy(16);
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    let before = lab.counters();
    let outcome = lab.prepare("in0", &query);
    assert_eq!(outcome.action, Action::Tx);
    let full = gateway_tests::counters::drops(SessionTableFull);
    assert_eq!(lab.counters().since(&before).packets(&full), 1);
    lab.vacate(16);
}

#[test]
fn strangers_who_find_no_room_are_told_nothing() {
    let policy = |policy| nat(policy).endpoint_independent("nat").half_open(1).refuse("nat", "icmp");
    let Some(mut lab) = standard(policy) else { return };
    let (_, port) = lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:80", SYN));
    let stranger = tcp("203.0.113.12:7", &format!("{POOL}:{port}"), SYN);
    assert_eq!(lab.prepare("out0", &stranger).action, Action::Drop);
    let other = tcp("10.0.1.2:4000", "203.0.113.11:80", SYN);
    assert_eq!(lab.prepare("in0", &other).action, Action::Tx);
    let full = gateway_tests::counters::drops(SessionTableFull);
    assert_eq!(lab.counters().packets(&full), 2);
}
