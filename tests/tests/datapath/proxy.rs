//! Flows that are sent to hosts of proxies, and what these send themselves.

use std::{thread::sleep, time::Duration};

use gateway_common::{
    DropReason::{
        Blackhole, Malformed, NoRoute, NoSession, ProxyDown, SessionTableFull, SpoofedSource, TtlExceeded,
    },
    Verdict::{Direct, Eip, Proxy, Reply, Snat},
};
use gateway_tests::{
    network::{Network, mac},
    packet::{ACK, FIN, Packet, RST, SYN, Transport, bare, echo_reply, echo_request, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{
    Expected, Lab, POOL, POOL6, ROUTER, ROUTER6, dropped, lab, nat, refused, sent, standard, too_large,
};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";
/// The proxy's host, behind in1.
const HOST: &str = "10.0.3.2";
const CLIENT: &str = "10.0.1.2";
const CLIENT6: &str = "2001:db8:1::2";

/// Everything goes through the proxy; what its host sends goes out through pool `nat`.
fn through_proxy(policy: Policy) -> Policy {
    policy
        .pool("nat", &format!("{POOL} {POOL6}"), "1024-65535")
        .proxy("squid", HOST, "closed")
        .routes("0.0.0.0/0 via proxy squid\n::/0 via proxy squid")
        .table("beyond", &["10.0.3.2/32"], "0.0.0.0/0 via pool nat\n::/0 via pool nat")
}

fn proxied() -> Option<Lab> {
    standard(through_proxy)
}

/// The packet as the proxy's host sends it.
fn of_host(lab: &Lab, packet: &Packet) -> Packet {
    packet.clone().macs(mac(ip(HOST)), lab.network().find("in1").mac())
}

#[test]
fn a_flow_reaches_the_host_of_the_proxy_as_it_is() {
    let Some(mut lab) = proxied() else { return };
    for (what, packet) in [
        ("tcp", tcp("10.0.1.2:4000", "203.0.113.10:443", SYN)),
        ("udp", udp("10.0.1.2:4000", "203.0.113.10:53")),
        ("icmp", echo_request(CLIENT, "203.0.113.10", 7)),
    ] {
        let opening = sent("in1", HOST, Proxy, &packet).by(ALL, "proxy");
        lab.check("in0", &packet, opening.counting(&format!("sessions {what} created")));
        lab.check("in0", &packet, sent("in1", HOST, Proxy, &packet).by(ALL, "proxy"));
    }
}

#[test]
fn a_flow_of_ipv6_reaches_a_host_that_has_an_ipv4_address() {
    let Some(mut lab) = proxied() else { return };
    let syn = tcp("[2001:db8:1::2]:4000", "[2001:db8:f0::1]:443", SYN);
    let opening = sent("in1", HOST, Proxy, &syn).by(ALL6, "proxy").counting("sessions tcp created");
    lab.check("in0", &syn, opening);
    let answer = tcp("[2001:db8:f0::1]:443", "[2001:db8:1::2]:4000", SYN | ACK);
    lab.check("in1", &of_host(&lab, &answer), sent("in0", CLIENT6, Reply, &answer).by(ALL6, "proxy"));
    // And what it sends goes by the table that its IPv4 address is bound to.
    let out = of_host(&lab, &syn);
    let expected = sent("out0", ROUTER6, Snat, &syn.clone().from(&format!("[{POOL6}]:4000")));
    lab.check("in1", &out, expected.by_table("beyond", ALL6, "pool").opening("tcp", POOL6));
}

#[test]
fn a_packet_that_shows_no_flow_is_sent_to_the_host_without_a_session() {
    let Some(mut lab) = proxied() else { return };
    for packet in [bare(CLIENT, "203.0.113.10", 47), echo_reply(CLIENT, "203.0.113.10", 7)] {
        lab.check("in0", &packet, sent("in1", HOST, Proxy, &packet).by(ALL, "proxy"));
    }
    assert!(lab.sessions().is_empty());
}

#[test]
fn a_connection_from_before_the_gateway_is_taken_up_where_it_is() {
    let Some(mut lab) = proxied() else { return };
    let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK);
    let opening = sent("in1", HOST, Proxy, &segment).by(ALL, "proxy").counting("sessions tcp created");
    lab.check("in0", &segment, opening);
    let stranger = tcp("10.0.1.2:4001", "203.0.113.10:443", RST);
    lab.check("in0", &stranger, sent("in1", HOST, Proxy, &stranger).by(ALL, "proxy"));
}

#[test]
fn answers_in_the_name_of_the_server_reach_the_client() {
    let Some(mut lab) = proxied() else { return };
    lab.prepare("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    for flags in [SYN | ACK, ACK, ACK | FIN] {
        let answer = tcp("203.0.113.10:443", "10.0.1.2:4000", flags);
        lab.check("in1", &of_host(&lab, &answer), sent("in0", CLIENT, Reply, &answer).by(ALL, "proxy"));
    }
    // Without a session too: the host may know more than the gateway.
    let answer = tcp("203.0.113.10:443", "10.0.1.2:5000", ACK);
    lab.check("in1", &of_host(&lab, &answer), sent("in0", CLIENT, Reply, &answer));
}

#[test]
fn nobody_but_the_host_answers_a_flow_of_the_proxy() {
    let Some(mut lab) = proxied() else { return };
    lab.prepare("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    let forged = tcp("203.0.113.10:443", "10.0.1.2:4000", SYN | ACK);
    lab.check("out0", &forged, dropped(NoSession));
    let stranger = forged.clone().macs(mac(ip("10.0.1.3")), lab.network().find("in0").mac());
    lab.check("in0", &stranger, dropped(SpoofedSource));
}

#[test]
fn what_the_host_sends_goes_by_the_table_of_its_own_address() {
    let Some(mut lab) = proxied() else { return };
    let syn = tcp("10.0.3.2:5000", "203.0.113.10:443", SYN);
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:5000"));
    lab.check("in1", &syn, expected.by_table("beyond", ALL, "pool").opening("tcp", POOL));
    let answer = tcp("203.0.113.10:443", "198.51.100.10:5000", SYN | ACK);
    let expected = sent("in1", HOST, Reply, &answer.clone().to("10.0.3.2:5000"));
    lab.check("out0", &answer, expected.by_table("beyond", ALL, "pool").establishing(POOL));
}

#[test]
fn a_proxy_that_keeps_the_clients_address_sees_both_directions() {
    let Some(mut lab) = proxied() else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    lab.prepare("in0", &syn);
    let out = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in1", &of_host(&lab, &syn), out.by_table("beyond", ALL, "pool").opening("tcp", POOL));
    // Out, through the proxy and back to the client, first by `decide` and then by `gateway`.
    let translated = tcp("203.0.113.10:443", "198.51.100.10:4000", SYN | ACK);
    let answer = translated.clone().to("10.0.1.2:4000");
    let expected = sent("in1", HOST, Reply, &answer).by_table("beyond", ALL, "pool");
    lab.check("out0", &translated, expected.establishing(POOL));
    lab.check("in1", &of_host(&lab, &answer), sent("in0", CLIENT, Reply, &answer).by(ALL, "proxy"));
    for _ in 0..2 {
        let data = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK);
        lab.check("in0", &data, sent("in1", HOST, Proxy, &data).by(ALL, "proxy"));
        let expected = sent("out0", ROUTER, Snat, &data.clone().from("198.51.100.10:4000"));
        lab.check("in1", &of_host(&lab, &data), expected.by_table("beyond", ALL, "pool"));
        let back = tcp("203.0.113.10:443", "198.51.100.10:4000", ACK);
        let expected = sent("in1", HOST, Reply, &back.clone().to("10.0.1.2:4000"));
        lab.check("out0", &back, expected.by_table("beyond", ALL, "pool"));
        let back = back.to("10.0.1.2:4000");
        lab.check("in1", &of_host(&lab, &back), sent("in0", CLIENT, Reply, &back).by(ALL, "proxy"));
    }
    assert_eq!(lab.sessions().len(), 2);
    // A change of policy makes all of them look again.
    lab.change(|policy| policy.routes("203.0.113.99/32 via blackhole"));
    let data = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK);
    lab.check("in0", &data, sent("in1", HOST, Proxy, &data).by(ALL, "proxy"));
    let expected = sent("out0", ROUTER, Snat, &data.clone().from("198.51.100.10:4000"));
    lab.check("in1", &of_host(&lab, &data), expected.by_table("beyond", ALL, "pool"));
    let back = tcp("203.0.113.10:443", "198.51.100.10:4000", ACK);
    let expected = sent("in1", HOST, Reply, &back.clone().to("10.0.1.2:4000"));
    lab.check("out0", &back, expected.by_table("beyond", ALL, "pool"));
    let back = back.to("10.0.1.2:4000");
    lab.check("in1", &of_host(&lab, &back), sent("in0", CLIENT, Reply, &back).by(ALL, "proxy"));
}

#[test]
fn a_host_never_gets_what_it_has_sent() {
    let Some(mut lab) =
        standard(|policy| through_proxy(policy).table("beyond", &[], "203.0.113.0/24 via proxy squid"))
    else {
        return;
    };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    lab.prepare("in0", &syn);
    let turned = dropped(NoRoute).by_table("beyond", "203.0.113.0/24", "proxy");
    lab.check("in1", &of_host(&lab, &syn), turned);
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    lab.check("in1", &own, dropped(NoRoute).by_table("beyond", "203.0.113.0/24", "proxy"));
}

#[test]
fn a_host_whose_mac_address_the_programs_lack_does_not_get_what_it_has_sent() {
    let Some(mut lab) =
        standard(|policy| policy.proxy("squid", "10.0.1.3", "closed").routes("0.0.0.0/0 via proxy squid"))
    else {
        return;
    };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.forget_proxy_macs();
    let turned = query.clone().macs(mac(ip("10.0.1.3")), lab.network().find("in0").mac());
    lab.check("in0", &turned, dropped(NoRoute));
    let own = udp("10.0.1.3:4000", "203.0.113.10:53");
    lab.check("in0", &own, dropped(NoRoute).by(ALL, "proxy"));
}

#[test]
fn two_proxies_that_point_at_each_other_do_not_send_a_flow_round() {
    let policy = |policy: Policy| {
        policy
            .proxy("one", HOST, "closed")
            .proxy("two", "10.0.1.3", "closed")
            .routes("0.0.0.0/0 via proxy one")
            .table("one", &["10.0.3.2/32"], "0.0.0.0/0 via proxy two")
            .table("two", &["10.0.1.3/32"], "0.0.0.0/0 via proxy one")
    };
    let Some(mut lab) = standard(policy) else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let opening = sent("in1", HOST, Proxy, &syn).by(ALL, "proxy").counting("sessions tcp created");
    lab.check("in0", &syn, opening);
    let opening = sent("in0", "10.0.1.3", Proxy, &syn).by_table("one", ALL, "proxy");
    lab.check("in1", &of_host(&lab, &syn), opening.counting("sessions tcp created"));
    let third = syn.clone().macs(mac(ip("10.0.1.3")), lab.network().find("in0").mac());
    lab.check("in0", &third, dropped(NoRoute).by_table("two", ALL, "proxy"));
    // What has no session ends with its TTL.
    let bare = bare(CLIENT, "203.0.113.10", 47).ttl(1);
    let told = refused(TtlExceeded).by(ALL, "proxy");
    lab.check("in0", &bare, told);
}

#[test]
fn a_flow_may_pass_two_proxies_and_its_answers_pass_them_too() {
    let policy = |policy: Policy| {
        nat(policy)
            .proxy("one", HOST, "closed")
            .proxy("two", "10.0.1.3", "closed")
            .routes("203.0.113.0/24 via proxy one")
            .table("one", &["10.0.3.2/32"], "203.0.113.0/24 via proxy two")
            .table("two", &["10.0.1.3/32"], "203.0.113.0/24 via pool nat")
    };
    let Some(mut lab) = standard(policy) else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let second = |lab: &Lab, packet: &Packet| {
        packet.clone().macs(mac(ip("10.0.1.3")), lab.network().find("in0").mac())
    };
    lab.prepare("in0", &syn);
    lab.prepare("in1", &of_host(&lab, &syn));
    lab.prepare("in0", &second(&lab, &syn));
    let translated = tcp("203.0.113.10:443", "198.51.100.10:4000", SYN | ACK);
    let answer = translated.clone().to("10.0.1.2:4000");
    let to = "203.0.113.0/24";
    let expected = sent("in0", "10.0.1.3", Reply, &answer).by_table("two", to, "pool");
    lab.check("out0", &translated, expected.establishing(POOL));
    let expected = sent("in1", HOST, Reply, &answer).by_table("one", to, "proxy");
    lab.check("in0", &second(&lab, &answer), expected);
    lab.check("in1", &of_host(&lab, &answer), sent("in0", CLIENT, Reply, &answer).by(to, "proxy"));
}

/// State of the first session, and the number of those that are half open.
fn stands(lab: &Lab) -> (&'static str, usize) {
    (lab.sessions()[0].state, lab.half_open())
}

#[test]
fn a_connection_through_a_proxy_is_half_open_until_its_client_goes_on_and_ends_with_one_fin() {
    let Some(mut lab) = proxied() else { return };
    let passes = |lab: &mut Lab, flags| {
        let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", flags);
        lab.check("in0", &segment, sent("in1", HOST, Proxy, &segment).by(ALL, "proxy"));
        stands(lab)
    };
    lab.prepare("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    assert_eq!(stands(&lab), ("opening", 1));
    assert_eq!(passes(&mut lab, SYN), ("opening", 1));
    // Answers that do not come by the gateway: the client's acknowledgement tells of one.
    assert_eq!(passes(&mut lab, ACK), ("established", 0));
    assert_eq!(passes(&mut lab, FIN | ACK), ("closing", 0));
    assert_eq!(passes(&mut lab, SYN), ("opening", 1));
    assert_eq!(passes(&mut lab, RST), ("closed", 0));
    assert_eq!(passes(&mut lab, SYN), ("opening", 1));
    // The host answers everybody.
    let answer = |flags| tcp("203.0.113.10:443", "10.0.1.2:4000", flags);
    lab.prepare("in1", &of_host(&lab, &answer(SYN | ACK)));
    assert_eq!(stands(&lab), ("opening", 1));
    lab.prepare("in1", &of_host(&lab, &answer(ACK)));
    assert_eq!(stands(&lab), ("established", 0));
    assert_eq!(passes(&mut lab, SYN), ("established", 0));
}

#[test]
fn a_connection_from_before_the_gateway_shows_with_its_second_segment_that_it_lives() {
    let Some(mut lab) = proxied() else { return };
    let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK);
    lab.prepare("in0", &segment);
    assert_eq!(stands(&lab), ("opening", 1));
    lab.prepare("in0", &segment);
    assert_eq!(stands(&lab), ("established", 0));
}

#[test]
fn a_flood_of_syns_to_a_proxy_stops_at_the_bound_and_harms_no_connection() {
    const SHORT: Duration = Duration::from_secs(1);
    let policy = |policy| through_proxy(policy).half_open(20).tcp_idle(Duration::from_mins(10), SHORT);
    let Some(mut lab) = standard(policy) else { return };
    let segment = |client: u16, flags| tcp("10.0.1.2:1", "203.0.113.10:443", flags).from_port(client);
    // One through the proxy, and one of its host.
    lab.prepare("in0", &segment(4000, SYN));
    lab.prepare("in0", &segment(4000, ACK));
    lab.prepare("in1", &tcp("10.0.3.2:5000", "203.0.113.10:443", SYN));
    lab.prepare("out0", &tcp("203.0.113.10:443", "198.51.100.10:5000", SYN | ACK));
    lab.prepare("in1", &tcp("10.0.3.2:5000", "203.0.113.10:443", ACK));
    for client in 0..120 {
        let syn = segment(10_000 + client, SYN);
        if client < 20 {
            let opening = sent("in1", HOST, Proxy, &syn).by(ALL, "proxy").counting("sessions tcp created");
            lab.check("in0", &syn, opening);
        } else {
            lab.check("in0", &syn, dropped(SessionTableFull).by(ALL, "proxy"));
        }
    }
    assert_eq!((lab.half_open(), lab.elements()), (20, 2 * 22));
    // Hosts of the proxy are no exception.
    let own = tcp("10.0.3.2:5001", "203.0.113.10:443", SYN);
    lab.check("in1", &own, dropped(SessionTableFull).by_table("beyond", ALL, "pool"));
    // What is established goes on, and connections from before the gateway do without a session.
    for client in [4000, 4001, 4001] {
        let data = segment(client, ACK);
        lab.check("in0", &data, sent("in1", HOST, Proxy, &data).by(ALL, "proxy"));
    }
    let data = tcp("10.0.3.2:5000", "203.0.113.10:443", ACK);
    let expected = sent("out0", ROUTER, Snat, &data.clone().from("198.51.100.10:5000"));
    lab.check("in1", &data, expected.by_table("beyond", ALL, "pool"));
    assert_eq!(lab.elements(), 2 * 22);
    // The opening timer holds for what nothing is heard of.
    sleep(SHORT + Duration::from_millis(300));
    lab.sweep_all();
    assert_eq!((lab.half_open(), lab.elements()), (0, 2 * 2));
    let syn = segment(4002, SYN);
    let opening = sent("in1", HOST, Proxy, &syn).by(ALL, "proxy").counting("sessions tcp created");
    lab.check("in0", &syn, opening);
}

#[test]
fn the_number_of_half_open_connections_of_proxies_is_exact_whatever_many_cpus_do() {
    const SHORT: Duration = Duration::from_secs(1);
    let Some(mut lab) = standard(|policy| through_proxy(policy).tcp_idle(Duration::from_mins(10), SHORT))
    else {
        return;
    };
    let kinds = [SYN, SYN, SYN | ACK, SYN | ACK, ACK, FIN | ACK, RST];
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut most = 0;
    for round in 0..16 {
        let segments: Vec<Vec<u8>> = (0..400)
            .map(|_| {
                let (flow, flags) = (4000 + next(48) as u16, kinds[next(kinds.len())]);
                let packet = if round % 2 == 0 {
                    tcp("10.0.1.2:1", "203.0.113.10:443", flags).from_port(flow)
                } else {
                    of_host(&lab, &tcp("203.0.113.10:443", &format!("10.0.1.2:{flow}"), flags))
                };
                lab.arriving("in0", &packet).frame()
            })
            .collect();
        lab.race_all(if round % 2 == 0 { "in0" } else { "in1" }, &[segments.clone(), segments]);
        if round % 8 == 7 {
            sleep(SHORT + Duration::from_millis(300));
            lab.sweep();
            lab.sweep();
        }
        let opening = lab.sessions().iter().filter(|session| session.state == "opening").count();
        assert_eq!(lab.half_open(), opening, "round {round}");
        most = most.max(opening);
    }
    assert!(most > 5, "a test that opens nothing shows nothing");
    sleep(SHORT + Duration::from_millis(300));
    lab.sweep_all();
    assert_eq!(lab.half_open(), 0);
}

#[test]
fn a_route_that_denies_cuts_a_flow_of_a_proxy() {
    let Some(mut lab) = proxied() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.change(|policy| policy.routes("203.0.113.0/24 via blackhole"));
    let denied = dropped(Blackhole).by("203.0.113.0/24", "blackhole");
    lab.check("in0", &query, denied);
    lab.check("in0", &query, dropped(NoSession));
    lab.sweep_until_cut_are_gone();
    assert_eq!(lab.elements(), 0);
    let denied = dropped(Blackhole).by("203.0.113.0/24", "blackhole");
    lab.check("in0", &query, denied);
}

#[test]
fn a_flow_stays_on_its_host_when_the_route_moves_to_a_pool() {
    let Some(mut lab) = proxied() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.change(|policy| policy.routes("203.0.113.0/24 via pool nat"));
    lab.check("in0", &query, sent("in1", HOST, Proxy, &query).by("203.0.113.0/24", "pool"));
    let other = udp("10.0.1.2:4001", "203.0.113.10:53");
    let expected = sent("out0", ROUTER, Snat, &other.clone().from("198.51.100.10:4001"));
    lab.check("in0", &other, expected.by("203.0.113.0/24", "pool").opening("udp", POOL));
}

#[test]
fn a_flow_of_a_pool_stays_there_when_the_route_moves_to_a_proxy() {
    let Some(mut lab) = standard(|policy| nat(policy).proxy("squid", HOST, "closed")) else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.change(|policy| policy.routes("203.0.113.0/24 via proxy squid"));
    let expected = sent("out0", ROUTER, Snat, &query.clone().from("198.51.100.10:4000"));
    lab.check("in0", &query, expected.by("203.0.113.0/24", "proxy"));
}

#[test]
fn a_full_session_table_refuses_flows_to_a_proxy() {
    let Some(mut lab) = standard(|policy| through_proxy(policy).sessions(8)) else { return };
    lab.occupy(16);
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.check("in0", &query, dropped(SessionTableFull).by(ALL, "proxy"));
    lab.vacate(16);
    let opening = sent("in1", HOST, Proxy, &query).by(ALL, "proxy").counting("sessions udp created");
    lab.check("in0", &query, opening);
}

#[test]
fn fragments_follow_the_first_to_the_host_unchanged() {
    let Some(mut lab) = proxied() else { return };
    let first = udp("10.0.1.2:4000", "203.0.113.10:53").payload([1; 64]).fragment(0, true).identification(77);
    let opening = sent("in1", HOST, Proxy, &first).by(ALL, "proxy").counting("sessions udp created");
    lab.check("in0", &first, opening);
    let later = bare(CLIENT, "203.0.113.10", 17).payload([2; 64]).fragment(9, false).identification(77);
    lab.check("in0", &later, sent("in1", HOST, Proxy, &later).by(ALL, "proxy"));
    let overlapping = bare(CLIENT, "203.0.113.10", 17).payload([2; 64]).fragment(1, false).identification(77);
    lab.check("in0", &overlapping, dropped(Malformed));
    // Answers too.
    let first = udp("203.0.113.10:53", "10.0.1.2:4000").payload([1; 64]).fragment(0, true).identification(78);
    lab.check("in1", &of_host(&lab, &first), sent("in0", CLIENT, Reply, &first).by(ALL, "proxy"));
    let later = bare("203.0.113.10", CLIENT, 17).payload([2; 64]).fragment(9, false).identification(78);
    lab.check("in1", &of_host(&lab, &later), sent("in0", CLIENT, Reply, &later).by(ALL, "proxy"));
}

#[test]
fn the_senders_of_packets_that_cannot_go_to_the_host_are_told() {
    let Some(mut lab) = proxied() else { return };
    let last = udp("10.0.1.2:4000", "203.0.113.10:53").ttl(1);
    lab.check("in0", &last, refused(TtlExceeded).by(ALL, "proxy"));
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.check("in0", &last, refused(TtlExceeded).by(ALL, "proxy"));
    let large = query.clone().payload([0; 1_480]);
    lab.check("in0", &large, too_large(1_500).by(ALL, "proxy"));
}

#[test]
fn an_error_of_the_host_about_a_packet_of_the_client_reaches_the_client() {
    let Some(mut lab) = proxied() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    let quoted = query.clone().ttl(63).frame()[14..14 + 28].to_vec();
    let unreachable = Transport::Icmp { kind: 3, code: 3, rest: [0; 4] };
    let error = Packet::new(ip("203.0.113.10"), ip(CLIENT), unreachable).payload(quoted);
    lab.check("in1", &of_host(&lab, &error), sent("in0", CLIENT, Reply, &error).by(ALL, "proxy"));
}

#[test]
fn an_error_of_the_client_about_an_answer_reaches_the_host() {
    let Some(mut lab) = proxied() else { return };
    lab.prepare("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let answer = udp("203.0.113.10:53", "10.0.1.2:4000");
    lab.prepare("in1", &of_host(&lab, &answer));
    let quoted = answer.ttl(62).frame()[14..14 + 28].to_vec();
    let unreachable = Transport::Icmp { kind: 3, code: 3, rest: [0; 4] };
    let error = Packet::new(ip(CLIENT), ip("203.0.113.10"), unreachable).payload(quoted);
    lab.check("in0", &error, sent("in1", HOST, Proxy, &error).by(ALL, "proxy"));
}

#[test]
fn an_error_from_outside_reaches_the_host_that_keeps_the_clients_address() {
    let Some(mut lab) = proxied() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.prepare("in1", &of_host(&lab, &query));
    let quoted = query.clone().from("198.51.100.10:4000").ttl(62);
    let unreachable = Transport::Icmp { kind: 3, code: 3, rest: [0; 4] };
    let error = Packet::new(ip("203.0.113.10"), ip(POOL), unreachable);
    let came = error.clone().payload(quoted.frame()[14..14 + 28].to_vec());
    let back = Packet::new(ip("203.0.113.10"), ip(CLIENT), unreachable);
    let back = back.payload(query.clone().ttl(62).frame()[14..14 + 28].to_vec());
    lab.check("out0", &came, sent("in1", HOST, Reply, &back).by_table("beyond", ALL, "pool"));
}

#[test]
fn a_proxy_on_the_link_of_its_clients_works() {
    let policy = |policy: Policy| {
        policy
            .pool("nat", POOL, "1024-65535")
            .proxy("squid", "10.0.7.3", "closed")
            .routes("0.0.0.0/0 via proxy squid")
            .table("beyond", &["10.0.7.3/32"], "0.0.0.0/0 via pool nat")
    };
    let Some(mut lab) = lab(Network::one_armed(), policy) else { return };
    let (host, router) = ("10.0.7.3", "10.0.7.254");
    let syn = tcp("10.0.7.2:4000", "203.0.113.10:443", SYN);
    let opening = sent("arm0", host, Proxy, &syn).by(ALL, "proxy").counting("sessions tcp created");
    lab.check("arm0", &syn, opening);
    let from_host = syn.clone().macs(mac(ip(host)), lab.network().find("arm0").mac());
    let expected = sent("arm0", router, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("arm0", &from_host, expected.by_table("beyond", ALL, "pool").opening("tcp", POOL));
    let answer = tcp("203.0.113.10:443", "198.51.100.10:4000", SYN | ACK);
    let answer = answer.macs(mac(ip(router)), lab.network().find("arm0").mac());
    let expected = sent("arm0", host, Reply, &answer.clone().to("10.0.7.2:4000"));
    lab.check("arm0", &answer, expected.by_table("beyond", ALL, "pool").establishing(POOL));
    let to_client = tcp("203.0.113.10:443", "10.0.7.2:4000", SYN | ACK);
    let from_host = to_client.clone().macs(mac(ip(host)), lab.network().find("arm0").mac());
    lab.check("arm0", &from_host, sent("arm0", "10.0.7.2", Reply, &to_client).by(ALL, "proxy"));
}

#[test]
fn answers_to_what_a_host_sends_on_untranslated_go_straight_to_the_client() {
    let policy = |policy: Policy| through_proxy(policy).table("beyond", &[], "203.0.113.0/24 via direct");
    let Some(mut lab) = standard(policy) else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    let expected = sent("out0", ROUTER, Direct, &query).by_table("beyond", "203.0.113.0/24", "direct");
    lab.check("in1", &of_host(&lab, &query), expected);
    let answer = udp("203.0.113.10:53", "10.0.1.2:4000");
    let expected = sent("in0", CLIENT, Reply, &answer).by_table("beyond", "203.0.113.0/24", "direct");
    lab.check("out0", &answer, expected);
    // Where the host's table translates, nobody sends to the client's own address.
    lab.check("out0", &udp("192.0.2.77:53", "10.0.1.2:4000"), dropped(NoSession));
}

#[test]
fn the_border_table_leads_answers_back_to_the_host_that_has_the_flow() {
    let policy = |policy: Policy| {
        through_proxy(policy)
            .eip("198.51.100.50", CLIENT)
            .table("beyond", &[], "203.0.113.0/24 via direct\n203.0.113.128/25 via eip")
            .border("10.0.1.0/24 via proxy squid")
    };
    let Some(mut lab) = standard(policy) else { return };
    let led = |expected: Expected| expected.by_table("return", "10.0.1.0/24", "proxy");
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    lab.prepare("in1", &of_host(&lab, &query));
    let answer = udp("203.0.113.10:53", "10.0.1.2:4000");
    let expected = sent("in1", HOST, Reply, &answer).by_table("beyond", "203.0.113.0/24", "direct");
    lab.check("out0", &answer, led(expected));
    lab.check("in1", &of_host(&lab, &answer), sent("in0", CLIENT, Reply, &answer).by(ALL, "proxy"));
    let query = udp("10.0.1.2:4000", "203.0.113.200:53");
    lab.prepare("in0", &query);
    let gone = sent("out1", "10.9.0.254", Eip, &query.clone().from("198.51.100.50:4000"));
    lab.check("in1", &of_host(&lab, &query), gone.by_table("beyond", "203.0.113.128/25", "eip"));
    let answer = udp("203.0.113.200:53", "198.51.100.50:4000");
    let home = answer.clone().to("10.0.1.2:4000");
    let expected = sent("in1", HOST, Eip, &home).by_table("beyond", "203.0.113.128/25", "eip");
    lab.check("out1", &answer, led(expected));
    lab.check("in1", &of_host(&lab, &home), sent("in0", CLIENT, Reply, &home).by(ALL, "proxy"));
}

#[test]
fn replies_that_the_border_table_leads_to_a_proxy_see_its_health_at_once() {
    let policy =
        |policy: Policy| nat(policy).proxy("squid", HOST, "closed").border("10.0.1.0/24 via proxy squid");
    let Some(mut lab) = standard(policy) else { return };
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let answer = udp("203.0.113.10:53", "198.51.100.10:4000");
    let home = answer.clone().to("10.0.1.2:4000");
    let led = |expected: Expected| expected.by_table("return", "10.0.1.0/24", "proxy");
    let back = || led(sent("in1", HOST, Reply, &home).by(ALL, "pool"));
    lab.check("out0", &answer, back().establishing(POOL));
    lab.health("squid", HOST, false);
    lab.check("out0", &answer, led(dropped(ProxyDown)));
    lab.health("squid", HOST, true);
    lab.check("out0", &answer, back());
    // A proxy that lets packets pass without it lets replies go straight.
    lab.change(|policy| policy.proxy("squid", HOST, "direct"));
    lab.health("squid", HOST, false);
    lab.check("out0", &answer, led(sent("in0", CLIENT, Reply, &home).by(ALL, "pool")));
}

#[test]
fn answers_to_an_eip_of_a_client_behind_a_proxy_go_straight_to_it() {
    let policy = |policy: Policy| {
        through_proxy(policy).eip("198.51.100.50", CLIENT).table("beyond", &[], "203.0.113.0/24 via eip")
    };
    let Some(mut lab) = standard(policy) else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.prepare("in0", &query);
    let expected = sent("out0", ROUTER, Eip, &query.clone().from("198.51.100.50:4000"));
    lab.check("in1", &of_host(&lab, &query), expected.by_table("beyond", "203.0.113.0/24", "eip"));
    let answer = udp("203.0.113.10:53", "198.51.100.50:4000");
    let expected = sent("in0", CLIENT, Eip, &answer.clone().to("10.0.1.2:4000"));
    lab.check("out0", &answer, expected.by_table("beyond", "203.0.113.0/24", "eip"));
}
