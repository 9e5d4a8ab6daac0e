//! Limits of what an address of a pool opens towards one destination.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use gateway_common::DropReason::{self, DestinationConcurrent, DestinationRate};
use gateway_tests::{
    gateway::Action,
    packet::{Packet, SYN, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, dropped, standard};

const ALL: &str = "0.0.0.0/0";
const TWO: &str = "198.51.100.10 198.51.100.11";

/// A gateway whose pool `nat` has these limits.
fn limited(addresses: &str, rate: u32, burst: u32, concurrent: u32) -> Option<Lab> {
    standard(|policy| policy_of(policy, addresses, rate, burst, concurrent))
}

fn policy_of(policy: Policy, addresses: &str, rate: u32, burst: u32, concurrent: u32) -> Policy {
    let policy = policy.pool("nat", addresses, "1024-65535").routes("0.0.0.0/0 via pool nat");
    policy.limit("nat", rate, burst, concurrent)
}

/// The flow number `number` of one client to one destination.
fn flow(number: u16) -> Packet {
    to(number, "203.0.113.10:53")
}

fn to(number: u16, destination: &str) -> Packet {
    udp(&format!("10.0.1.2:{}", 2000 + number), destination)
}

/// Asserts that a packet is dropped and counted for that reason.
fn refused(lab: &mut Lab, packet: &Packet, reason: DropReason, address: &str) {
    let what = if matches!(reason, DestinationRate) { "over_rate" } else { "over_concurrent" };
    let expected = dropped(reason).by(ALL, "pool").counting(&format!("pool nat {address} attempts"));
    lab.check("in0", packet, expected.counting(&format!("pool nat {address} {what}")));
}

/// Asserts that what is counted for destinations is what the session table has.
pub(crate) fn recount(lab: &Lab) {
    let mut sessions = BTreeMap::new();
    for row in lab.sessions() {
        let key = (row.translated, row.destination, row.destination_port, row.proto);
        *sessions.entry(key).or_insert(0) += 1;
    }
    let counted: BTreeMap<_, _> = lab
        .destinations()
        .into_iter()
        .filter(|row| row.sessions != 0)
        .map(|row| ((row.address, row.destination, row.port, row.proto), row.sessions))
        .collect();
    assert_eq!(counted, sessions);
    lab.shared();
}

#[test]
fn a_burst_is_admitted_and_then_the_rate() {
    let Some(mut lab) = limited(POOL, 2, 3, 0) else { return };
    for number in 0..3 {
        lab.open("in0", &flow(number));
    }
    refused(&mut lab, &flow(3), DestinationRate, POOL);
    refused(&mut lab, &flow(3), DestinationRate, POOL);
    // Packets of sessions are none of its business, and neither are other servers, ports and protocols.
    assert_eq!(lab.prepare("in0", &flow(0)).action, Action::Redirect);
    lab.open("in0", &to(3, "203.0.113.11:53"));
    lab.open("in0", &to(3, "203.0.113.10:54"));
    lab.open("in0", &tcp("10.0.1.2:2003", "203.0.113.10:53", SYN));
    sleep(Duration::from_millis(600));
    lab.open("in0", &flow(3));
    refused(&mut lab, &flow(4), DestinationRate, POOL);
    recount(&lab);
}

#[test]
fn no_more_than_the_limit_are_open_at_a_time() {
    let Some(mut lab) = standard(|policy| policy_of(policy, POOL, 0, 0, 2).idle(Duration::from_secs(1)))
    else {
        return;
    };
    lab.open("in0", &flow(0));
    lab.open("in0", &flow(1));
    refused(&mut lab, &flow(2), DestinationConcurrent, POOL);
    lab.open("in0", &to(2, "203.0.113.10:54"));
    sleep(Duration::from_millis(1_500));
    lab.sweep_all();
    assert_eq!(lab.sessions().len(), 0);
    recount(&lab);
    lab.open("in0", &flow(2));
    recount(&lab);
}

#[test]
fn an_address_at_its_limit_is_passed_over() {
    for (rate, burst, concurrent, reason) in [(1, 3, 0, DestinationRate), (0, 0, 3, DestinationConcurrent)] {
        let Some(mut lab) = limited(TWO, rate, burst, concurrent) else { return };
        let mut at = BTreeMap::new();
        for number in 0..6 {
            *at.entry(lab.open("in0", &flow(number)).0).or_insert(0) += 1;
        }
        assert_eq!(at.into_values().collect::<Vec<_>>(), [3, 3]);
        assert_eq!(lab.prepare("in0", &flow(6)).action, Action::Drop);
        assert_eq!(lab.counters().packets(&gateway_tests::counters::drops(reason)), 1);
        recount(&lab);
    }
}

#[test]
fn a_changed_limit_is_in_force_for_the_next_connection() {
    let Some(mut lab) = limited(POOL, 1, 1, 0) else { return };
    lab.open("in0", &flow(0));
    refused(&mut lab, &flow(1), DestinationRate, POOL);
    lab.change(|policy| policy.limit("nat", 0, 0, 0));
    for number in 1..50 {
        lab.open("in0", &flow(number));
    }
    // Those that there are count under a new limit.
    lab.change(|policy| policy.limit("nat", 0, 0, 50));
    refused(&mut lab, &flow(50), DestinationConcurrent, POOL);
    recount(&lab);
}

#[test]
fn a_connection_that_finds_no_port_takes_no_token() {
    let Some(mut lab) = standard(|policy| {
        policy.pool("nat", POOL, "4000-4003").routes("0.0.0.0/0 via pool nat").limit("nat", 1, 6, 0)
    }) else {
        return;
    };
    for number in 0..4 {
        lab.open("in0", &flow(number));
    }
    for _ in 0..4 {
        assert_eq!(lab.prepare("in0", &flow(9)).action, Action::Drop);
    }
    let rows = lab.destinations();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].sessions, rows[0].admitted, rows[0].over_rate), (4, 4, 0));
    assert!(rows[0].tokens.is_some_and(|tokens| (2..=6).contains(&tokens)), "{rows:?}");
}

#[test]
fn connections_through_mappings_are_limited_as_well() {
    let Some(mut lab) = standard(|policy| policy_of(policy, POOL, 0, 0, 2).endpoint_independent("nat"))
    else {
        return;
    };
    let query = |number, server: &str| udp(&format!("10.0.1.2:{}", 2000 + number), server);
    for number in 0..2 {
        assert_eq!(lab.prepare("in0", &query(number, "203.0.113.10:53")).action, Action::Redirect);
    }
    assert_eq!(lab.prepare("in0", &query(2, "203.0.113.10:53")).action, Action::Drop);
    assert_eq!(lab.counters().packets(&gateway_tests::counters::drops(DestinationConcurrent)), 1);
    assert_eq!(lab.prepare("in0", &query(2, "203.0.113.11:53")).action, Action::Redirect);
    recount(&lab);
}

#[test]
fn what_is_known_of_a_quiet_destination_goes() {
    let Some(mut lab) = standard(|policy| policy_of(policy, POOL, 900, 900, 0).idle(Duration::from_secs(1)))
    else {
        return;
    };
    for number in 0..100 {
        lab.open("in0", &to(1, &format!("203.0.113.10:{}", 1000 + number)));
    }
    assert_eq!(lab.destinations().len(), 100);
    sleep(Duration::from_millis(1_500));
    lab.sweep_all();
    sleep(Duration::from_millis(1_100));
    lab.sweep_all();
    assert_eq!(lab.destinations().len(), 0);
    lab.open("in0", &flow(0));
    recount(&lab);
}

#[test]
fn many_processors_admit_no_more_than_the_limit() {
    let Some(mut lab) = limited(TWO, 0, 0, 100) else { return };
    let lists: Vec<Vec<Vec<u8>>> = (0..4)
        .map(|list| (0..200).map(|number| lab.arriving("in0", &flow(list * 200 + number)).frame()).collect())
        .collect();
    let outcomes = lab.race_all("in0", &lists);
    let sent = outcomes.iter().flatten().filter(|outcome| outcome.action == Action::Redirect).count();
    assert_eq!(sent, 200);
    recount(&lab);
}

#[test]
fn a_flood_of_destinations_takes_nothing_from_those_that_there_are() {
    let Some(mut lab) = limited(POOL, 0, 0, 30) else { return };
    for number in 0..30 {
        lab.open("in0", &flow(number));
    }
    // More destinations than there may be buckets. Most find no room for a session either.
    let most = 65_536;
    for number in 0..most + 1_000_u32 {
        let server = format!("203.0.113.{}:{}", number % 256, 1_000 + number / 256);
        lab.prepare("in0", &udp("10.0.1.3:2000", &server));
    }
    // The kernel has no memory at hand for each of so many at once.
    let there = lab.destinations().len();
    assert!((most as usize / 2..=most as usize).contains(&there), "{there} destinations");
    refused(&mut lab, &flow(30), DestinationConcurrent, POOL);
    // Those without sessions go.
    for _ in 0..40 {
        sleep(Duration::from_millis(300));
        lab.sweep_all();
    }
    assert!(lab.destinations().len() <= 1_024, "{} destinations are left", lab.destinations().len());
    refused(&mut lab, &flow(30), DestinationConcurrent, POOL);
    assert_eq!(lab.prepare("in0", &flow(0)).action, Action::Redirect);
    recount(&lab);
}
