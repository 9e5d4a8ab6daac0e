//! What is counted by groups of sources and destinations: all that sessions have carried, and nothing twice.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use gateway_common::{counter::Counter, usage::Usage};
use gateway_tests::{
    gateway::Action,
    network::mac,
    packet::{ACK, FIN, Packet, RST, SYN, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, POOL6, nat, standard};

/// What is counted, by source and destination.
type Counted = BTreeMap<(String, String), Usage>;

/// Two teams, of which one is a part of a larger network, and a partner.
fn grouped(policy: Policy) -> Policy {
    nat(policy)
        .group("staff", "10.0.0.0/8 2001:db8:1::/48")
        .group("payments", "10.0.1.2/32")
        .group("partner", "203.0.113.0/28 2001:db8:77::/48")
}

/// Adds a packet and its bytes without Ethernet.
fn add(counter: &mut Counter, frame: &[u8]) {
    counter.packets += 1;
    counter.bytes += frame.len() as u64 - 14;
}

/// What has to be counted of packets that are let through.
#[derive(Default)]
struct Expected(Counted);

impl Expected {
    fn of(&mut self, source: &str, destination: &str) -> &mut Usage {
        self.0.entry((source.to_owned(), destination.to_owned())).or_default()
    }

    /// A packet from inside. Returns its source after translation.
    fn send(&mut self, lab: &mut Lab, packet: &Packet, (source, destination): (&str, &str)) -> u16 {
        let created = lab.session_counts().0;
        let outcome = lab.prepare("in0", packet);
        assert_eq!(outcome.action, Action::Redirect);
        let usage = self.of(source, destination);
        add(&mut usage.sent, &lab.arriving("in0", packet).frame());
        usage.connections += lab.session_counts().0 - created;
        crate::support::translated(&outcome.frame).1
    }

    /// A packet from outside.
    fn answer(&mut self, lab: &mut Lab, packet: &Packet, (source, destination): (&str, &str)) {
        assert_eq!(lab.prepare("out0", packet).action, Action::Redirect);
        add(&mut self.of(source, destination).received, &lab.arriving("out0", packet).frame());
    }
}

#[test]
fn sessions_count_by_the_longest_prefix_of_either_end_in_both_families() {
    let Some(mut lab) = standard(grouped) else { return };
    let mut expected = Expected::default();
    for (client, server, pool, groups) in [
        ("10.0.1.2", "203.0.113.10", POOL, ("payments", "partner")),
        ("10.0.1.3", "203.0.113.10", POOL, ("staff", "partner")),
        ("10.0.1.3", "203.0.113.20", POOL, ("staff", "other")),
        ("[2001:db8:1::2]", "[2001:db8:77::1]", POOL6, ("staff", "partner")),
        ("[2001:db8:1::2]", "[2001:db8:78::1]", POOL6, ("staff", "other")),
    ] {
        let there = udp(&format!("{client}:2000"), &format!("{server}:53"));
        let port = expected.send(&mut lab, &there, groups);
        expected.send(&mut lab, &there.clone().payload([7; 100]), groups);
        let pool = if pool == POOL6 { format!("[{POOL6}]") } else { POOL.to_owned() };
        let back = udp(&format!("{server}:53"), &format!("{pool}:{port}")).payload([8; 900]);
        expected.answer(&mut lab, &back, groups);
    }
    assert_eq!(lab.usage(), expected.0);
    // A walk that meets the same sessions again counts nothing twice.
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn what_a_session_has_carried_stays_counted_when_it_has_ended_and_under_the_next_daemon() {
    let Some(mut lab) = standard(|policy| grouped(policy).idle(Duration::from_secs(1))) else { return };
    let mut expected = Expected::default();
    let groups = ("payments", "partner");
    for port in 2_000..2_010 {
        let there = udp("10.0.1.2:1", "203.0.113.10:53").from_port(port);
        let port = expected.send(&mut lab, &there, groups);
        expected.answer(&mut lab, &udp("203.0.113.10:53", &format!("{POOL}:{port}")), groups);
    }
    for port in 2_000..2_010 {
        let there = udp("[2001:db8:1::2]:1", "[2001:db8:78::1]:53").from_port(port);
        let port = expected.send(&mut lab, &there, ("staff", "other"));
        let back = udp("[2001:db8:78::1]:53", &format!("[{POOL6}]:{port}")).payload([7; 50]);
        expected.answer(&mut lab, &back, ("staff", "other"));
    }
    assert_eq!(lab.usage(), expected.0);
    sleep(Duration::from_millis(1_500));
    lab.sweep_all();
    assert_eq!(lab.sessions().len(), 0);
    assert_eq!(lab.usage(), expected.0);
    lab.restart();
    // Before anybody has walked.
    assert_eq!(lab.told(), expected.0);
    expected.send(&mut lab, &udp("10.0.1.2:2000", "203.0.113.10:53"), groups);
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn sessions_that_are_cut_stay_counted() {
    let Some(mut lab) = standard(grouped) else { return };
    let mut expected = Expected::default();
    let there = udp("10.0.1.2:2000", "203.0.113.10:53");
    expected.send(&mut lab, &there, ("payments", "partner"));
    assert_eq!(lab.usage(), expected.0);
    lab.change(|policy| policy.routes("203.0.113.10/32 via blackhole"));
    assert_eq!(lab.prepare("in0", &there).action, Action::Drop);
    lab.sweep_until_cut_are_gone();
    assert_eq!(lab.sessions().len(), 0);
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn nothing_is_counted_without_groups_and_a_new_group_begins_with_nothing() {
    let Some(mut lab) = standard(nat) else { return };
    let there = udp("10.0.1.2:2000", "203.0.113.10:53");
    for _ in 0..5 {
        lab.prepare("in0", &there);
    }
    assert_eq!(lab.usage(), Counted::new());
    lab.change(grouped);
    assert_eq!(lab.usage(), Counted::new());
    let mut expected = Expected::default();
    expected.send(&mut lab, &there, ("payments", "partner"));
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn a_change_of_groups_leaves_what_was_counted_and_counts_no_session_again() {
    let Some(mut lab) = standard(grouped) else { return };
    let mut expected = Expected::default();
    let one = udp("10.0.1.2:2000", "203.0.113.10:53");
    let other = udp("10.0.1.3:2000", "203.0.113.20:53");
    expected.send(&mut lab, &one, ("payments", "partner"));
    expected.send(&mut lab, &other, ("staff", "other"));
    assert_eq!(lab.usage(), expected.0);
    // The client goes to another group with its session, and the server is no partner any more.
    lab.change(|policy| policy.group("payments", "10.0.1.3/32").group("partner", "192.0.2.0/24"));
    assert_eq!(lab.told(), expected.0);
    assert_eq!(lab.usage(), expected.0);
    for _ in 0..3 {
        expected.send(&mut lab, &one, ("staff", "other"));
        expected.send(&mut lab, &other, ("payments", "other"));
    }
    assert_eq!(lab.usage(), expected.0);
    // And under another daemon.
    lab.change(|policy| policy.group("payments", "10.0.1.2/31"));
    lab.restart();
    assert_eq!(lab.told(), expected.0);
    assert_eq!(lab.usage(), expected.0);
    expected.send(&mut lab, &one, ("payments", "other"));
    assert_eq!(lab.usage(), expected.0);
    // What is removed is not told, and begins anew when it comes back.
    lab.change(|policy| policy.without_group("payments"));
    expected.0.retain(|(source, _), _| source != "payments");
    assert_eq!(lab.told(), expected.0);
    lab.change(|policy| policy.group("payments", "10.0.1.2/32"));
    assert_eq!(lab.usage(), expected.0);
    expected.send(&mut lab, &one, ("payments", "other"));
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn a_flow_through_a_proxy_counts_for_its_client_and_what_the_host_sends_for_the_proxy() {
    const HOST: &str = "10.0.3.2";
    let policy = |policy| {
        grouped(policy).proxy("squid", HOST, "closed").routes("203.0.113.0/24 via proxy squid").table(
            "beyond",
            &["10.0.3.2/32"],
            "0.0.0.0/0 via pool nat",
        )
    };
    let Some(mut lab) = standard(policy) else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let mut expected = Expected::default();
    expected.send(&mut lab, &syn, ("payments", "partner"));
    // Its host keeps the client's address.
    let on = syn.clone().macs(mac(ip(HOST)), lab.network().find("in1").mac());
    lab.open("in1", &on);
    let usage = expected.of("proxy", "partner");
    add(&mut usage.sent, &on.frame());
    usage.connections = 1;
    let back = tcp("203.0.113.10:443", &format!("{POOL}:4000"), SYN | ACK);
    assert_eq!(lab.prepare("out0", &back).action, Action::Redirect);
    add(&mut expected.of("proxy", "partner").received, &back.frame());
    let back = back.to("10.0.1.2:4000").macs(mac(ip(HOST)), lab.network().find("in1").mac());
    assert_eq!(lab.prepare("in1", &back).action, Action::Redirect);
    add(&mut expected.of("payments", "partner").received, &back.frame());
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn what_a_host_of_a_proxy_has_answered_stays_counted_when_the_session_goes_to_another_host() {
    const HOSTS: [&str; 2] = ["10.0.3.2", "10.0.1.3"];
    let policy = |policy| {
        grouped(policy).proxy("squid", &HOSTS.join(" "), "closed").routes("203.0.113.0/24 via proxy squid")
    };
    let Some(mut lab) = standard(policy) else { return };
    let mut expected = Expected::default();
    let sent_to = |lab: &mut Lab, packet: &Packet, expected: &mut Expected| {
        let created = lab.session_counts().0;
        let outcome = lab.prepare("in0", packet);
        let usage = expected.of("payments", "partner");
        add(&mut usage.sent, &outcome.frame);
        usage.connections += lab.session_counts().0 - created;
        outcome.frame[..6] == mac(ip(HOSTS[0]))
    };
    let query = |number: u8| udp("10.0.1.2:4000", &format!("203.0.113.{number}:53"));
    let number = (1..15).find(|number| sent_to(&mut lab, &query(*number), &mut expected)).expect("a flow");
    let answer = udp(&format!("203.0.113.{number}:53"), "10.0.1.2:4000").payload([7; 300]);
    let answer = answer.macs(mac(ip(HOSTS[0])), lab.network().find("in1").mac());
    assert_eq!(lab.prepare("in1", &answer).action, Action::Redirect);
    add(&mut expected.of("payments", "partner").received, &answer.frame());
    assert_eq!(lab.usage(), expected.0);
    let elements = lab.elements();
    lab.health("squid", HOSTS[0], false);
    assert!(!sent_to(&mut lab, &query(number), &mut expected));
    assert_eq!(lab.elements(), elements + 1, "one is left behind");
    assert_eq!(lab.told().len(), 1);
    lab.sweep_all();
    assert_eq!(lab.elements(), elements);
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn mappings_are_no_sessions() {
    let Some(mut lab) = standard(|policy| grouped(policy).endpoint_independent("nat")) else { return };
    let mut expected = Expected::default();
    let groups = ("payments", "partner");
    let port = expected.send(&mut lab, &udp("10.0.1.2:2000", "203.0.113.10:53"), groups);
    // Who writes to the client by its mapping opens a session of it.
    let stranger = udp("203.0.113.20:53", &format!("{POOL}:{port}"));
    expected.answer(&mut lab, &stranger, ("payments", "other"));
    expected.of("payments", "other").connections = 1;
    assert_eq!(lab.usage(), expected.0);
}

#[test]
fn the_sum_of_all_groups_is_what_all_sessions_have_carried_whatever_has_happened() {
    // What is answered by a reset would look as if it went on.
    let policy = |policy| grouped(policy).silent_without_session().idle(Duration::from_secs(1));
    let Some(mut lab) = standard(policy) else { return };
    let mut random = fastrand::Rng::with_seed(11);
    let mut expected = Expected::default();
    for event in 0..600 {
        let (client, server) = (random.u8(2..6), random.choice([10, 11, 20, 21]).unwrap_or(10));
        let source = if client == 2 { "payments" } else { "staff" };
        let destination = if server < 16 { "partner" } else { "other" };
        let (inside, outside) = (format!("10.0.1.{client}"), format!("203.0.113.{server}:53"));
        let created = lab.session_counts().0;
        match random.u8(..100) {
            0..60 => {
                let flags = random.choice([SYN, SYN, ACK, FIN | ACK, RST]).unwrap_or(SYN);
                let port = random.u16(2_000..2_020);
                let packet = if random.bool() {
                    udp(&format!("{inside}:{port}"), &outside).payload(vec![1; random.usize(..500)])
                } else {
                    tcp(&format!("{inside}:{port}"), &outside, flags)
                };
                if lab.prepare("in0", &packet).action == Action::Redirect {
                    let usage = expected.of(source, destination);
                    add(&mut usage.sent, &lab.arriving("in0", &packet).frame());
                    usage.connections += lab.session_counts().0 - created;
                }
            }
            60..88 => {
                // To whoever has the port, which the frame that leaves tells.
                let port = random.u16(2_000..2_020);
                let packet = if random.bool() {
                    udp(&outside, &format!("{POOL}:{port}")).payload(vec![1; random.usize(..500)])
                } else {
                    tcp(&outside, &format!("{POOL}:{port}"), SYN | ACK)
                };
                let outcome = lab.prepare("out0", &packet);
                if outcome.action == Action::Redirect {
                    let source = if outcome.frame[30..34] == [10, 0, 1, 2] { "payments" } else { "staff" };
                    let usage = expected.of(source, destination);
                    add(&mut usage.received, &lab.arriving("out0", &packet).frame());
                }
            }
            88..95 => {
                lab.sweep();
            }
            95 => {
                sleep(Duration::from_millis(1_300));
                lab.sweep_all();
            }
            96 | 97 => {
                let line = format!("203.0.113.{server}/32 via blackhole");
                lab.change(|policy| policy.try_route("main", &line).unwrap_or(policy));
            }
            98 => lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via pool nat")),
            _ => lab.restart(),
        }
        if event % 25 == 0 {
            assert_eq!(lab.usage(), expected.0, "event {event}");
        }
    }
    assert_eq!(lab.usage(), expected.0);
    sleep(Duration::from_millis(1_300));
    lab.sweep_until_cut_are_gone();
    assert_eq!(lab.usage(), expected.0);
    let connections: u64 = expected.0.values().map(|usage| usage.connections).sum();
    assert_eq!(connections, lab.session_counts().0);
}
