//! Records: what is told of sessions and of what is dropped, and that every one that is lost is counted.

use std::{net::IpAddr, thread::sleep, time::Duration};

use gateway_common::{DropReason, counter::Counter, record::RECORDS_BYTES};
use gateway_tests::{
    gateway::{Action, Gateway},
    network::Network,
    packet::{Packet, udp},
    policy::Policy,
};
use gateway_user::dataplane::{LogEvent, Logged};

use super::support::{POOL6, nat};

/// Bytes that a record takes in the ring buffer: itself, and what the kernel puts before it.
const RECORD: u64 = 112 + 8;

fn gateway(policy: impl FnOnce(Policy) -> Policy) -> Option<Gateway> {
    let network = Network::standard();
    let policy = policy(nat(Policy::of(&network)).recorded());
    Gateway::start(network, &policy)
}

fn send(gateway: &mut Gateway, packet: &Packet) -> Action {
    let mac = gateway.network().find("in0").mac();
    let frame = packet.clone().macs([2, 0, 0, 0, 0, 9], mac).frame();
    gateway.run("in0", &frame).action
}

fn end(address: &str, port: u16) -> (IpAddr, u16) {
    (address.parse().expect("an address"), port)
}

fn names(record: &Logged) -> [&str; 3] {
    let names = record.names.as_deref().expect("names");
    [&names.table, names.route.as_deref().unwrap_or_default(), &names.target]
}

#[test]
fn a_session_of_ipv6_is_recorded_with_both_its_ends() {
    let Some(mut gateway) = gateway(|policy| policy.idle(Duration::from_secs(1))) else { return };
    let packet = udp("[2001:db8:1::2]:5000", "[2001:db8:f::1]:53");
    for _ in 0..3 {
        assert_eq!(send(&mut gateway, &packet), Action::Redirect);
    }
    let (records, lost) = gateway.records();
    assert_eq!(lost, 0);
    let [open] = &records[..] else { panic!("{records:#?}") };
    assert_eq!(open.event, LogEvent::Open);
    assert_eq!((open.source, open.proto), (end("2001:db8:1::2", 5000), 17));
    assert_eq!(open.translated, Some(end(POOL6, 5000)));
    assert_eq!(open.destination, end("2001:db8:f::1", 53));
    assert_eq!(names(open), ["main", "::/0", "pool nat"]);
    sleep(Duration::from_millis(1_300));
    gateway.sweep_all();
    let (records, _) = gateway.records();
    let [close] = &records[..] else { panic!("{records:#?}") };
    let bytes = (packet.frame().len() - 14) as u64;
    let sent = Counter { packets: 3, bytes: 3 * bytes };
    assert_eq!(close.event, LogEvent::Close { reason: "idle", sent, received: Counter::default() });
    assert_eq!(
        (close.source, close.translated, close.destination),
        (open.source, open.translated, open.destination)
    );
    let began = close.start.duration_since(open.time).abs();
    assert!(began.as_secs_f64() < 0.3, "{began}");
    assert_eq!(close.names, open.names);
}

#[test]
fn what_no_route_covers_is_recorded_once_for_all_packets_like_it() {
    let network = Network::standard();
    let policy = Policy::of(&network).routes("203.0.113.0/24 via blackhole").recorded();
    let Some(mut gateway) = Gateway::start(network, &policy) else { return };
    for _ in 0..5 {
        assert_eq!(send(&mut gateway, &udp("10.0.1.2:5000", "198.51.100.99:53")), Action::Drop);
        assert_eq!(send(&mut gateway, &udp("10.0.1.2:5000", "203.0.113.10:53")), Action::Drop);
    }
    let (records, lost) = gateway.records();
    assert_eq!(lost, 0);
    // Two in which a period ends have two each.
    assert!((2..=4).contains(&records.len()), "{records:#?}");
    for (record, reason) in records.iter().zip([DropReason::NoRoute, DropReason::Blackhole]) {
        let bytes = (udp("10.0.1.2:5000", "203.0.113.10:53").frame().len() - 14) as u64;
        assert_eq!(record.event, LogEvent::Deny { reason, sent: Counter { packets: 1, bytes } });
        assert_eq!((record.source, record.translated), (end("10.0.1.2", 5000), None));
    }
    assert_eq!(names(&records[0]), ["", "", ""]);
    assert_eq!(names(&records[1]), ["main", "203.0.113.0/24", "blackhole"]);
}

#[test]
fn every_record_that_finds_no_room_is_counted() {
    let most = u64::from(RECORDS_BYTES) / RECORD;
    let sessions = most as u16 + 1_000;
    let Some(mut gateway) = gateway(|policy| policy.sessions(65_536)) else { return };
    for port in 0..sessions {
        let packet = udp("10.0.1.2:1", "203.0.113.10:53").from_port(2_000 + port);
        assert_eq!(send(&mut gateway, &packet), Action::Redirect, "the packet path does not notice");
    }
    let (records, lost) = gateway.records();
    assert_eq!(records.len() as u64 + lost, u64::from(sessions));
    assert!(lost >= 1_000 && records.len() as u64 >= most - 1, "{lost} of {sessions} are lost");
    // And there is room again.
    let packet = udp("10.0.1.2:1", "203.0.113.10:53").from_port(1_999);
    assert_eq!(send(&mut gateway, &packet), Action::Redirect);
    let (after, still) = gateway.records();
    assert_eq!((after.len(), still), (1, lost));
}
