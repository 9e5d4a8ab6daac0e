//! Watching: packets are shown as they have arrived, with what became of them, and only while somebody watches.

use std::{
    array,
    time::{Duration, SystemTime},
};

use gateway_common::{DropReason, Verdict, session::TCP_SYN};
use gateway_tests::{
    gateway::{Action, Gateway},
    network::Network,
    packet::{Packet, tcp, udp},
    policy::Policy,
};
use gateway_user::dataplane::watch::{Filter, MOST, Seen, Watchers};

use super::support::nat;

const CLIENT: &str = "10.0.1.2:5000";
const SERVER: &str = "203.0.113.10:53";
/// Where no route leads.
const NOWHERE: &str = "198.51.100.99:53";

/// A gateway with a route to the server by a pool and none elsewhere.
fn gateway() -> Option<Gateway> {
    let network = Network::standard();
    let policy = nat(Policy::of(&network)).routes("198.51.100.96/28 via blackhole");
    Gateway::start(network, &policy)
}

fn send(gateway: &mut Gateway, packet: &Packet) -> (Action, Vec<u8>) {
    let mac = gateway.network().find("in0").mac();
    let frame = packet.clone().macs([2, 0, 0, 0, 0, 9], mac).frame();
    (gateway.run("in0", &frame).action, frame)
}

fn drops() -> Filter {
    Filter {
        from: None,
        to: None,
        proto: None,
        dport: None,
        ingress: None,
        verdicts: vec![Verdict::Drop],
        reasons: DropReason::ALL.to_vec(),
        snaplen: 4_096,
        rate: 1_000_000,
    }
}

fn everything() -> Filter {
    Filter { verdicts: Verdict::ALL.to_vec(), ..drops() }
}

fn watch(watchers: &mut dyn Watchers, filters: &[Filter]) {
    let filters: [_; MOST] = array::from_fn(|number| filters.get(number).cloned());
    watchers.set(&filters).expect("they can watch");
}

fn read(watchers: &mut dyn Watchers) -> Vec<(u32, Seen)> {
    let mut all = Vec::new();
    while watchers.read(64, &mut all).expect("packets") > 0 {}
    all
}

#[test]
fn nothing_is_told_while_nobody_watches() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    assert_eq!(send(&mut gateway, &udp(CLIENT, NOWHERE)).0, Action::Drop);
    watch(&mut *watchers, &[drops()]);
    watch(&mut *watchers, &[]);
    assert_eq!(send(&mut gateway, &udp(CLIENT, NOWHERE)).0, Action::Drop);
    assert_eq!(read(&mut *watchers), []);
    assert_eq!(watchers.lost().expect("counts"), [0; MOST]);
}

#[test]
fn a_dropped_packet_is_shown_once_with_its_reason_and_no_other() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[drops()]);
    assert_eq!(send(&mut gateway, &udp(CLIENT, SERVER)).0, Action::Redirect);
    let (action, frame) = send(&mut gateway, &udp(CLIENT, NOWHERE));
    assert_eq!(action, Action::Drop);
    let seen = read(&mut *watchers);
    let [(1, seen)] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!((seen.verdict, seen.reason), (Verdict::Drop, Some(DropReason::Blackhole)));
    assert_eq!((seen.ingress.as_str(), seen.egress.as_deref()), ("in0", None));
    assert_eq!((&seen.bytes, seen.length as usize), (&frame, frame.len()));
    let age = SystemTime::now().duration_since(SystemTime::from(seen.time)).expect("it is over");
    assert!(age < Duration::from_secs(1), "{age:?}");
    watch(&mut *watchers, &[]);
}

#[test]
fn a_packet_is_shown_as_it_has_arrived_whatever_it_leaves_as() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[everything()]);
    // The first opens a session, the second is of one; both go by programs of their own.
    for _ in 0..2 {
        let (action, frame) = send(&mut gateway, &udp(CLIENT, SERVER));
        assert_eq!(action, Action::Redirect);
        let seen = read(&mut *watchers);
        let [(1, seen)] = &seen[..] else { panic!("{seen:#?}") };
        assert_eq!((seen.verdict, seen.reason), (Verdict::Snat, None));
        assert_eq!((seen.ingress.as_str(), seen.egress.as_deref()), ("in0", Some("out0")));
        assert_eq!(seen.bytes, frame);
    }
    watch(&mut *watchers, &[]);
}

#[test]
fn what_is_turned_into_an_answer_is_shown_as_dropped_and_once() {
    let network = Network::standard();
    let policy = Policy::of(&network).routes("203.0.113.0/24 via prohibit");
    let Some(mut gateway) = Gateway::start(network, &policy) else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[everything()]);
    let (action, frame) = send(&mut gateway, &tcp(CLIENT, SERVER, TCP_SYN));
    assert_ne!(action, Action::Drop, "the client is told");
    let seen = read(&mut *watchers);
    let [(1, seen)] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!((seen.verdict, seen.reason), (Verdict::Drop, Some(DropReason::Prohibited)));
    assert_eq!(seen.bytes, frame);
    watch(&mut *watchers, &[]);
}

#[test]
fn each_watcher_sees_what_it_asked_for_and_a_packet_is_told_once_for_all() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    let of = |change: fn(&mut Filter)| {
        let mut filter = drops();
        change(&mut filter);
        filter
    };
    let filters = [
        of(|filter| filter.from = "10.0.1.0/24".parse().ok()),
        of(|filter| filter.from = "10.0.2.0/24".parse().ok()),
        of(|filter| filter.dport = Some(53)),
        of(|filter| filter.dport = Some(54)),
        of(|filter| filter.proto = "tcp".parse().ok()),
        of(|filter| filter.reasons = vec![DropReason::NoRoute]),
        of(|filter| filter.snaplen = 20),
    ];
    watch(&mut *watchers, &filters);
    let (_, frame) = send(&mut gateway, &udp(CLIENT, NOWHERE));
    let seen = read(&mut *watchers);
    let [(whom, seen)] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!(*whom, 0b100_0101);
    // As much as the one wants that wants most.
    assert_eq!(seen.bytes, frame);
    watch(&mut *watchers, &filters[6..]);
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    assert_eq!(read(&mut *watchers)[0].1.bytes, frame[..20]);
    watch(&mut *watchers, &[]);
}

#[test]
fn what_is_above_the_rate_or_finds_no_room_is_counted_to_the_last_packet() {
    const SENT: u64 = 6_000;
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    let rare = Filter { rate: 1, ..drops() };
    watch(&mut *watchers, &[drops(), rare]);
    let packet = udp(CLIENT, NOWHERE).payload([0; 1_000]);
    for _ in 0..SENT {
        assert_eq!(send(&mut gateway, &packet).0, Action::Drop, "the packet path does not notice");
    }
    let seen = read(&mut *watchers);
    let lost = watchers.lost().expect("counts");
    for (number, lost) in lost.into_iter().enumerate().take(2) {
        let shown = seen.iter().filter(|(whom, _)| whom >> number & 1 != 0).count() as u64;
        assert_eq!(shown + lost, SENT);
        assert!(shown > 0 && lost > SENT / 2, "{shown} of {SENT} are shown to {number}");
    }
    // And there is room again.
    send(&mut gateway, &packet);
    assert_eq!(read(&mut *watchers).len(), 1);
    watch(&mut *watchers, &[]);
}

#[test]
fn a_change_of_the_policy_leaves_those_who_watch_alone() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[drops()]);
    let network = Network::standard();
    gateway.apply(&nat(Policy::of(&network)).routes("198.51.100.0/24 via prohibit"));
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    let seen = read(&mut *watchers);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1.reason, Some(DropReason::Prohibited));
    watch(&mut *watchers, &[]);
}
