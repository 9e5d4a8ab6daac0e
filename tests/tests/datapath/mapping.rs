//! Pools with endpoint-independent mappings: one address and port for an inside host's, and who may use it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use gateway_common::{
    DropReason::{self, NoSession, PoolExhausted},
    Verdict::{Reply, Snat},
};
use gateway_tests::{
    gateway::Action,
    packet::{ACK, Packet, RST, SYN, echo_reply, echo_request, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, POOL6, ROUTER, ROUTER6, dropped, nat, sent, standard, translated};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";

/// A gateway whose pool `nat` has endpoint-independent mappings.
fn independent() -> Option<Lab> {
    standard(|policy| nat(policy).endpoint_independent("nat"))
}

/// As [`independent`], with these addresses and ports.
fn pool(addresses: &str, ports: &str) -> Option<Lab> {
    standard(|policy| {
        policy.pool("nat", addresses, ports).routes("0.0.0.0/0 via pool nat").endpoint_independent("nat")
    })
}

/// The shortest idle time, and what ticks may add to it.
const SECOND: Duration = Duration::from_secs(1);
const TICKS: Duration = Duration::from_millis(400);

/// Lets all sessions be idle and sweeps them.
fn expire(lab: &mut Lab) {
    lab.change(|policy| policy.idle(SECOND));
    thread::sleep(SECOND + TICKS);
    lab.sweep_all();
}

/// The number of mappings that there are.
fn mappings(lab: &Lab) -> u64 {
    lab.map_entries("mappings")
}

#[test]
fn a_client_has_one_port_for_all_destinations() {
    let Some(mut lab) = independent() else { return };
    // Another client has the port already.
    assert_eq!(lab.open("in0", &udp("10.0.1.3:4000", "203.0.113.10:53")), (ip(POOL), 4000));
    let place = lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    assert_ne!(place.1, 4000);
    let outside = format!("{}:{}", place.0, place.1);
    for to in ["203.0.113.10:54", "203.0.113.11:53", "203.0.113.12:7"] {
        let query = udp("10.0.1.2:4000", to);
        let expected = sent("out0", ROUTER, Snat, &query.clone().from(&outside));
        lab.check("in0", &query, expected.by(ALL, "pool").opening("udp", POOL));
        let answer = udp(to, &outside);
        let expected = sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:4000"));
        lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
    }
    assert_eq!(mappings(&lab), 2);
    assert_eq!(lab.sessions().len(), 5);
}

#[test]
fn each_protocol_and_family_has_mappings_of_its_own() {
    let Some(mut lab) = independent() else { return };
    let flows: [(&str, [Packet; 2], &str, &str, &str); 5] = [
        (
            "udp",
            [udp("10.0.1.2:4000", "203.0.113.10:53"), udp("10.0.1.2:4000", "203.0.113.11:53")],
            POOL,
            ALL,
            ROUTER,
        ),
        (
            "tcp",
            [tcp("10.0.1.2:4000", "203.0.113.10:53", SYN), tcp("10.0.1.2:4000", "203.0.113.11:53", SYN)],
            POOL,
            ALL,
            ROUTER,
        ),
        (
            "icmp",
            [echo_request("10.0.1.2", "203.0.113.10", 4000), echo_request("10.0.1.2", "203.0.113.11", 4000)],
            POOL,
            ALL,
            ROUTER,
        ),
        (
            "udp",
            [
                udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53"),
                udp("[2001:db8:1::2]:4000", "[2001:db8:f::2]:53"),
            ],
            POOL6,
            ALL6,
            ROUTER6,
        ),
        (
            "tcp",
            [
                tcp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53", SYN),
                tcp("[2001:db8:1::2]:4000", "[2001:db8:f::2]:53", SYN),
            ],
            POOL6,
            ALL6,
            ROUTER6,
        ),
    ];
    for (proto, packets, address, route, router) in flows {
        let outside =
            if address.contains(':') { format!("[{address}]:4000") } else { format!("{address}:4000") };
        for packet in packets {
            let translated = if proto == "icmp" {
                Packet { source: ip(address), ..packet.clone() }
            } else {
                packet.clone().from(&outside)
            };
            let expected = sent("out0", router, Snat, &translated);
            lab.check("in0", &packet, expected.by(route, "pool").opening(proto, address));
        }
    }
    assert_eq!(mappings(&lab), 5);
}

#[test]
fn a_port_is_one_clients_alone() {
    let Some(mut lab) = pool(POOL, "4000-4003") else { return };
    let mut given = BTreeSet::new();
    for client in 1..=4 {
        let place = lab.open("in0", &udp(&format!("10.0.2.{client}:4000"), "203.0.113.10:53"));
        assert!(given.insert(place), "{place:?} is given twice");
        // To another destination, too.
        assert_eq!(lab.open("in0", &udp(&format!("10.0.2.{client}:4000"), "203.0.113.11:53")), place);
    }
    // No destination helps the fifth.
    for to in ["203.0.113.10:53", "203.0.113.99:99"] {
        let expected = dropped(PoolExhausted).by(ALL, "pool");
        let expected = expected.counting("pool nat 198.51.100.10 attempts");
        lab.check(
            "in0",
            &udp("10.0.2.5:4000", to),
            expected.counting("pool nat 198.51.100.10 allocation_errors"),
        );
    }
    assert_eq!(mappings(&lab), 4);
}

#[test]
fn every_port_of_every_address_is_given_once() {
    let Some(mut lab) = pool("198.51.100.10 198.51.100.11", "5000-5099") else { return };
    let flow =
        |number: u16| udp(&format!("10.0.2.{}:{}", number % 200 + 1, 2000 + number), "203.0.113.10:53");
    let given: BTreeSet<(IpAddr, u16)> = (0..200).map(|number| lab.open("in0", &flow(number))).collect();
    assert_eq!(given.len(), 200);
    assert_eq!(lab.prepare("in0", &flow(200)).action, Action::Drop);
    assert_eq!(mappings(&lab), 200);
}

#[test]
fn a_mapping_lives_as_long_as_the_last_of_its_sessions() {
    let Some(mut lab) = independent() else { return };
    let first = udp("10.0.1.2:4000", "203.0.113.10:99");
    let dns = udp("10.0.1.2:4000", "203.0.113.10:53");
    let second = udp("10.0.1.3:4000", "203.0.113.10:53");
    lab.open("in0", &first);
    lab.open("in0", &dns);
    lab.sweep_all();
    assert_eq!((mappings(&lab), lab.sessions().len()), (1, 2));
    lab.change(|policy| policy.udp_idle(Duration::from_mins(5), SECOND));
    thread::sleep(SECOND + TICKS);
    lab.sweep_all();
    assert_eq!((mappings(&lab), lab.sessions().len()), (1, 1));
    // The port is still the first client's.
    assert_ne!(lab.open("in0", &second).1, 4000);
    assert_eq!(lab.open("in0", &dns).1, 4000);
    expire(&mut lab);
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
    // And free again.
    assert_eq!(lab.open("in0", &second), (ip(POOL), 4000));
    let (created, removed, left) = lab.session_balance();
    assert_eq!(created - removed, left as u64);
}

#[test]
fn sessions_that_are_cut_let_their_mapping_go() {
    let Some(mut lab) = independent() else { return };
    let flows: Vec<Packet> =
        (1..=3).map(|host| udp("10.0.1.2:4000", &format!("203.0.113.{host}:53"))).collect();
    for flow in &flows {
        lab.open("in0", flow);
    }
    lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via blackhole"));
    for flow in &flows {
        assert_eq!(lab.prepare("in0", flow).action, Action::Drop);
    }
    lab.sweep_until_cut_are_gone();
    lab.sweep_all();
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
}

#[test]
fn an_address_that_leaves_the_pool_takes_its_mappings_with_it() {
    let Some(mut lab) = pool("198.51.100.10", "1024-65535") else { return };
    let (first, second) = (udp("10.0.1.2:4000", "203.0.113.10:53"), udp("10.0.1.2:4000", "203.0.113.11:53"));
    assert_eq!(lab.open("in0", &first), (ip("198.51.100.10"), 4000));
    lab.change(|policy| policy.pool("nat", "198.51.100.11", "1024-65535").endpoint_independent("nat"));
    // The old session is there, and quiet; the client has another mapping for what is new.
    assert_eq!(lab.open("in0", &second), (ip("198.51.100.11"), 4000));
    let third = udp("10.0.1.2:4000", "203.0.113.12:53");
    assert_eq!(lab.open("in0", &third), (ip("198.51.100.11"), 4000));
    assert_eq!(mappings(&lab), 2);
    assert_eq!(lab.prepare("in0", &first).action, Action::Drop);
    lab.sweep_until_cut_are_gone();
    lab.sweep_all();
    assert_eq!((mappings(&lab), lab.sessions().len()), (1, 2));
    assert_eq!(lab.open("in0", &first), (ip("198.51.100.11"), 4000));
}

#[test]
fn a_drained_address_keeps_its_mappings_and_takes_no_new_ones() {
    let Some(mut lab) = pool("198.51.100.10", "1024-65535") else { return };
    let place = lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    lab.change(|policy| policy.drain("nat", "198.51.100.10"));
    assert_eq!(lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.11:53")), place);
    assert_eq!(lab.prepare("in0", &udp("10.0.1.2:4001", "203.0.113.11:53")).action, Action::Drop);
}

#[test]
fn new_flows_follow_the_mapping_that_the_pool_has_now() {
    let Some(mut lab) = pool(POOL, "4000-4001") else { return };
    let place = lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    assert_eq!(place.1, 4000);
    let dependent = |policy: Policy| policy.pool("nat", POOL, "4000-4001");
    lab.change(dependent);
    // The port of the mapping serves others towards other servers.
    assert_eq!(lab.open("in0", &udp("10.0.1.3:4000", "203.0.113.11:53")).1, 4000);
    assert_eq!(lab.open("in0", &udp("10.0.1.3:4000", "203.0.113.10:53")).1, 4001);
    lab.change(|policy| dependent(policy).endpoint_independent("nat"));
    // The first client has its mapping, but not towards a server to which another flow has the port.
    assert_eq!(lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.12:53")), place);
    let refused = udp("10.0.1.2:4000", "203.0.113.11:53");
    let expected = dropped(PoolExhausted).by(ALL, "pool").counting("pool nat 198.51.100.10 attempts");
    lab.check("in0", &refused, expected.counting("pool nat 198.51.100.10 allocation_errors"));
    expire(&mut lab);
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
}

#[test]
fn two_cpus_make_one_mapping() {
    let Some(mut lab) = independent() else { return };
    for round in 0..200u16 {
        let from = format!("10.0.1.2:{}", 5000 + round);
        let frames: Vec<Vec<u8>> = (1..=2)
            .map(|host| lab.arriving("in0", &udp(&from, &format!("203.0.113.{host}:53"))).frame())
            .collect();
        let outcomes = lab.race("in0", &frames);
        let places: BTreeSet<(IpAddr, u16)> = outcomes
            .iter()
            .map(|outcome| {
                assert_eq!(outcome.action, Action::Redirect, "round {round}");
                translated(&outcome.frame)
            })
            .collect();
        assert_eq!(places.len(), 1, "round {round}: {places:?}");
    }
    assert_eq!(lab.sessions().len(), 400);
    expire(&mut lab);
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
}

#[test]
fn two_cpus_open_one_session() {
    let Some(mut lab) = independent() else { return };
    for round in 0..200u16 {
        let packet = udp(&format!("10.0.1.2:{}", 5000 + round), "203.0.113.1:53");
        let frame = lab.arriving("in0", &packet).frame();
        for outcome in lab.race("in0", &[frame.clone(), frame]) {
            assert_eq!(outcome.action, Action::Redirect, "round {round}");
        }
    }
    assert_eq!(lab.sessions().len(), 200);
    // Those of the CPUs that came second are nobody's.
    lab.sweep_all();
    assert_eq!((mappings(&lab), lab.sessions().len()), (200, 200));
}

#[test]
fn the_sweep_races_with_flows_and_loses_no_count() {
    let Some(mut lab) = independent() else { return };
    lab.change(|policy| policy.idle(SECOND));
    // Every flow comes again when it is about to be removed, or just was.
    let start = Instant::now();
    let mut next = [Duration::ZERO; 40];
    while start.elapsed() < 5 * SECOND {
        for (number, due) in (0..).zip(&mut next) {
            if start.elapsed() >= *due {
                *due += SECOND + Duration::from_millis(15) * number;
                let number = u16::try_from(number).expect("a small number");
                let from = format!("10.0.1.2:{}", 5000 + number / 2);
                let outcome = lab.prepare("in0", &udp(&from, &format!("203.0.113.{}:53", number % 5 + 1)));
                assert_eq!(outcome.action, Action::Redirect);
            }
        }
        lab.sweep();
    }
    thread::sleep(SECOND + TICKS);
    lab.sweep_all();
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
    let (created, removed) = lab.session_counts();
    assert_eq!(created, removed);
}

#[test]
fn a_table_without_room_refuses_and_leaves_nothing_behind() {
    let Some(mut lab) = standard(|policy| nat(policy).endpoint_independent("nat").sessions(8)) else {
        return;
    };
    let mut opened = 0u16;
    let mut refused = 0;
    for number in 0..64u16 {
        let outcome = lab.prepare("in0", &udp(&format!("10.0.1.2:{}", 5000 + number), "203.0.113.1:53"));
        if outcome.action == Action::Redirect { opened += 1 } else { refused += 1 }
    }
    assert!(opened >= 3 && refused > 0, "{opened} opened, {refused} refused");
    let moved = lab.counters().to_string();
    assert!(moved.contains(&format!("drops session_table_full: {refused}")), "{moved}");
    assert_eq!(lab.sessions().len(), usize::from(opened));
    // Claims that did not come to a session are gone soon.
    lab.sweep_all();
    assert_eq!(mappings(&lab), u64::from(opened));
    expire(&mut lab);
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
}

#[test]
fn anybody_may_send_to_a_mapping_and_is_answered_from_it() {
    let Some(mut lab) = independent() else { return };
    assert_eq!(lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53")), (ip(POOL), 4000));
    let call = udp("203.0.113.99:7000", "198.51.100.10:4000");
    let expected = sent("in0", "10.0.1.2", Reply, &call.clone().to("10.0.1.2:4000")).by(ALL, "pool");
    let expected = expected.counting("sessions udp created").counting("pool nat 198.51.100.10 opened");
    lab.check("out0", &call, expected);
    let answer = udp("10.0.1.2:4000", "203.0.113.99:7000");
    let expected = sent("out0", ROUTER, Snat, &answer.clone().from("198.51.100.10:4000"));
    lab.check("in0", &answer, expected.by(ALL, "pool"));
    let again = sent("in0", "10.0.1.2", Reply, &call.clone().to("10.0.1.2:4000")).by(ALL, "pool");
    lab.check("out0", &call, again);

    let six = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53");
    assert_eq!(lab.open("in0", &six), (ip(POOL6), 4000));
    let call = udp("[2001:db8:f::9]:7000", &format!("[{POOL6}]:4000"));
    let expected = sent("in0", "2001:db8:1::2", Reply, &call.clone().to("[2001:db8:1::2]:4000"));
    let expected = expected.by(ALL6, "pool").counting("sessions udp created");
    lab.check("out0", &call, expected.counting("pool nat 2001:db8:100::10 opened"));
}

#[test]
fn a_connection_from_outside_begins_with_a_syn() {
    let Some(mut lab) = independent() else { return };
    lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    for flags in [ACK, SYN | ACK, RST] {
        let stray = tcp("203.0.113.99:7000", "198.51.100.10:4000", flags);
        lab.check("out0", &stray, dropped(NoSession));
    }
    let syn = tcp("203.0.113.99:7000", "198.51.100.10:4000", SYN);
    let expected = sent("in0", "10.0.1.2", Reply, &syn.clone().to("10.0.1.2:4000")).by(ALL, "pool");
    let expected = expected.counting("sessions tcp created").counting("pool nat 198.51.100.10 opened");
    lab.check("out0", &syn, expected);
    assert_eq!(state(&lab, 7000), "opening");
    let answer = tcp("10.0.1.2:4000", "203.0.113.99:7000", SYN | ACK);
    let expected = sent("out0", ROUTER, Snat, &answer.clone().from("198.51.100.10:4000"));
    lab.check("in0", &answer, expected.by(ALL, "pool"));
    let ack = tcp("203.0.113.99:7000", "198.51.100.10:4000", ACK);
    let expected = sent("in0", "10.0.1.2", Reply, &ack.clone().to("10.0.1.2:4000"));
    lab.check("out0", &ack, expected.by(ALL, "pool"));
    assert_eq!(state(&lab, 7000), "established");
}

/// The state of the session with the server port `port`.
fn state(lab: &Lab, port: u16) -> &'static str {
    let sessions = lab.sessions();
    sessions.iter().find(|session| session.destination_port == port).expect("a session").state
}

#[test]
fn who_is_not_let_in() {
    let Some(mut lab) = standard(|policy| {
        let policy = nat(policy).endpoint_independent("nat");
        policy.pool("other", "198.51.100.20", "1024-65535").routes(
            "203.0.113.0/28 via blackhole\n203.0.113.16/28 via direct\n203.0.113.32/28 via pool other",
        )
    }) else {
        return;
    };
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.99:53"));
    let call = |from: &str, to: &str| udp(from, to);
    // The client's table does not send packets to these hosts through this pool.
    for from in ["203.0.113.1:7", "203.0.113.17:7", "203.0.113.33:7"] {
        lab.check("out0", &call(from, "198.51.100.10:4000"), dropped(NoSession));
    }
    // No mapping; another protocol; an answer to nobody's query.
    lab.check("out0", &call("203.0.113.99:7", "198.51.100.10:4001"), dropped(NoSession));
    lab.check("out0", &tcp("203.0.113.99:7", "198.51.100.10:4000", SYN), dropped(NoSession));
    lab.open("in0", &echo_request("10.0.1.2", "203.0.113.99", 4000));
    lab.check("out0", &echo_reply("203.0.113.98", POOL, 4000), dropped(NoSession));
    // An inside address does not come from outside.
    lab.check("out0", &call("10.0.1.9:7", "198.51.100.10:4000"), dropped(DropReason::SpoofedSource));
    // A pool that is not endpoint-independent, or not any more.
    lab.change(|policy| policy.pool("nat", &format!("{POOL} {POOL6}"), "1024-65535"));
    lab.check("out0", &call("203.0.113.99:7", "198.51.100.10:4000"), dropped(NoSession));
}

#[test]
fn nobody_meets_the_keys_of_a_mapping() {
    let Some(mut lab) = independent() else { return };
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    for number in 0..3 {
        let from = udp("10.0.1.2:4000", &format!("0.0.0.0:{number}"));
        lab.check("in0", &from, dropped(DropReason::Malformed));
        let to = udp(&format!("0.0.0.0:{number}"), "198.51.100.10:4000");
        lab.check("out0", &to, dropped(DropReason::Malformed));
    }
}

#[test]
fn sessions_from_outside_let_their_mapping_go() {
    let Some(mut lab) = independent() else { return };
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    for host in 1..=5 {
        lab.prepare("out0", &udp(&format!("203.0.113.{host}:7000"), "198.51.100.10:4000"));
    }
    assert_eq!((mappings(&lab), lab.sessions().len()), (1, 6));
    expire(&mut lab);
    assert_eq!((mappings(&lab), lab.sessions().len()), (0, 0));
    let (created, removed) = lab.session_counts();
    assert_eq!((created, removed), (6, 6));
}
