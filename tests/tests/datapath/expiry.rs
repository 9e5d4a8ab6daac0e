//! The end of sessions: they go when they are idle, stay when they are not, and leave nothing behind.

use std::{thread::sleep, time::Duration};

use gateway_tests::{
    gateway::{Action, Gateway},
    network::Network,
    packet::{Packet, udp},
    policy::Policy,
};

use super::support::{POOL, POOL6, nat};

/// Idle time of these tests; the clock of sessions moves every 134 ms.
const IDLE: Duration = Duration::from_secs(1);

fn gateway(policy: impl FnOnce(Policy) -> Policy) -> Option<Gateway> {
    let network = Network::standard();
    let policy = policy(nat(Policy::of(&network)).idle(IDLE));
    Gateway::start(network, &policy)
}

fn send(gateway: &mut Gateway, packet: &Packet) -> Action {
    let frame = addressed(gateway, packet).frame();
    gateway.run("in0", &frame).action
}

/// The packet as a client sends it to the gateway.
fn addressed(gateway: &Gateway, packet: &Packet) -> Packet {
    packet.clone().macs([2, 0, 0, 0, 0, 9], gateway.network().find("in0").mac())
}

/// Sweeps until nothing is left, for a bounded time.
fn sweep_all(gateway: &mut Gateway) {
    for _ in 0..400 {
        gateway.sweep();
        let (created, removed) = gateway.session_counts();
        if created == removed {
            return;
        }
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn idle_sessions_go_and_give_their_ports_back() {
    // A pool of ten ports: the second ten sessions need the ports of the first.
    let Some(mut gateway) = gateway(|policy| policy.pool("nat", &format!("{POOL} {POOL6}"), "2000-2009"))
    else {
        return;
    };
    for round in 1..=2u16 {
        for client in 0..10 {
            let packet = udp("10.0.1.2:1", "203.0.113.10:53").from_port(5000 + round * 100 + client);
            assert_eq!(send(&mut gateway, &packet), Action::Redirect, "round {round}, client {client}");
        }
        assert_eq!(send(&mut gateway, &udp("10.0.1.2:9999", "203.0.113.10:53")), Action::Drop);
        sleep(IDLE + Duration::from_millis(300));
        sweep_all(&mut gateway);
        assert_eq!(gateway.session_balance(), (u64::from(round) * 10, u64::from(round) * 10, 0));
    }
}

#[test]
fn a_session_in_use_stays() {
    let Some(mut gateway) = gateway(|policy| policy) else { return };
    let packet = udp("10.0.1.2:5000", "203.0.113.10:53");
    for _ in 0..25 {
        assert_eq!(send(&mut gateway, &packet), Action::Redirect);
        gateway.sweep();
        sleep(Duration::from_millis(100));
    }
    assert_eq!(gateway.session_balance(), (1, 0, 1));
}

#[test]
fn a_packet_saves_a_session_that_is_about_to_go() {
    let Some(mut gateway) = gateway(|policy| policy) else { return };
    let packet = udp("10.0.1.2:5000", "203.0.113.10:53");
    assert_eq!(send(&mut gateway, &packet), Action::Redirect);
    sleep(IDLE + Duration::from_millis(300));
    // The first sweep announces the end, the second would bring it.
    gateway.sweep();
    assert_eq!(send(&mut gateway, &packet), Action::Redirect);
    gateway.sweep();
    gateway.sweep();
    assert_eq!(gateway.session_balance(), (1, 0, 1));
}

#[test]
fn a_full_table_refuses_the_next_session_and_keeps_every_one_it_has() {
    let Some(mut gateway) = gateway(|policy| policy.sessions(64).idle(Duration::from_mins(10))) else {
        return;
    };
    let packets: Vec<Packet> =
        (0..80u16).map(|client| udp("10.0.1.2:1", "203.0.113.10:53").from_port(5000 + client)).collect();
    let opened = packets.iter().filter(|packet| send(&mut gateway, packet) == Action::Redirect).count();
    assert!((64..80).contains(&opened), "{opened} sessions were opened");
    gateway.sweep();
    for packet in &packets[..opened] {
        assert_eq!(send(&mut gateway, packet), Action::Redirect);
    }
    assert_eq!(gateway.session_balance(), (opened as u64, 0, opened));
}

#[test]
fn a_million_short_flows_leak_nothing() {
    const WAVES: u32 = 20;
    const FLOWS: u32 = 50_000;
    let Some(mut gateway) = gateway(|policy| policy.sessions(65_536)) else { return };
    // Only the port and the last octet of the source differ: bytes of one frame are changed in place.
    let packet = udp("10.0.2.0:0", "203.0.113.10:53").without_checksum();
    let (network, transport) = (packet.network_offset(), packet.transport_offset());
    let mut frame = addressed(&gateway, &packet).frame();
    for wave in 0..WAVES {
        for flow in 0..FLOWS {
            let [octet, port @ ..] = [(wave + 2) as u8, ((flow + 10_000) >> 8) as u8, (flow + 10_000) as u8];
            frame[network + 15] = octet;
            frame[network + 10..network + 12].fill(0);
            let checksum = gateway_tests::packet::checksum_of(&frame[network..network + 20]);
            frame[network + 10..network + 12].copy_from_slice(&checksum.to_be_bytes());
            frame[transport..transport + 2].copy_from_slice(&port);
            assert_eq!(gateway.run("in0", &frame).action, Action::Redirect, "wave {wave}, flow {flow}");
        }
        sleep(IDLE + Duration::from_millis(300));
        sweep_all(&mut gateway);
    }
    let all = u64::from(WAVES * FLOWS);
    assert_eq!(gateway.session_balance(), (all, all, 0));
}
