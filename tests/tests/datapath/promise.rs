//! The promises that outrank everything, each with an attempt to break it: nothing leaves untranslated, no session
//! that is alive is lost, no port stays taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use gateway_common::DropReason::SessionTableFull;
use gateway_tests::{
    counters,
    gateway::Action,
    network::mac,
    packet::{ip, udp},
};

use crate::support::{POOL, standard, translated};

#[test]
fn a_session_that_is_half_entered_when_the_table_is_full_leaves_nothing_behind() {
    // A session takes two elements. With one more taken away, either the first or the second finds no room.
    for taken in 0..2u16 {
        let policy = |policy: gateway_tests::policy::Policy| {
            policy.pool("nat", POOL, "1024-65535").routes("0.0.0.0/0 via pool nat").sessions(64)
        };
        let Some(mut lab) = standard(policy) else { return };
        lab.occupy(2 + taken);
        let flow = |number: u16| udp(&format!("10.0.1.2:{}", 5000 + number), "203.0.113.10:53");
        let before = lab.counters();
        let refused = (0..200)
            .find(|number| lab.prepare("in0", &flow(*number)).action == Action::Drop)
            .expect("the table has an end");
        assert_eq!(lab.counters().since(&before).packets(&counters::drops(SessionTableFull)), 1);
        assert_eq!(lab.elements(), 2 * usize::from(refused) + 2 + usize::from(taken), "half a session");
        // Who has a session keeps it, and its port.
        for number in 0..refused {
            assert_eq!(lab.open("in0", &flow(number)), (ip(POOL), 5000 + number));
        }
        // The port that was claimed was given back: another client gets it as its own.
        lab.vacate(2 + taken);
        let other = udp(&format!("10.0.1.3:{}", 5000 + refused), "203.0.113.10:53");
        assert_eq!(lab.open("in0", &other), (ip(POOL), 5000 + refused));
        assert_eq!(lab.session_balance(), (u64::from(refused) + 1, 0, usize::from(refused) + 1));
    }
}

#[test]
fn packets_that_meet_the_sweep_are_translated_or_dropped() {
    const FLOWS: u16 = 200;
    const TIME: Duration = Duration::from_secs(9);
    const ENOUGH: u32 = 1_200;
    const IDLE: Duration = Duration::from_secs(1);
    // As many ports as flows: one that stays taken is missed at the end.
    let Some(mut lab) = standard(|policy| {
        policy.pool("nat", POOL, "20000-20199").routes("0.0.0.0/0 via pool nat").idle(IDLE)
    }) else {
        return;
    };
    let router = mac(ip("192.0.2.254"));
    let arriving = |device: &str, from: [u8; 6], packet: &gateway_tests::packet::Packet| {
        packet.clone().macs(from, lab.network().find(device).mac()).frame()
    };
    let client = mac(ip("10.0.1.2"));
    let query = |flow: u16| udp(&format!("10.0.1.2:{}", 40_000 + flow), "203.0.113.10:53");
    let queries: Vec<Vec<u8>> = (0..FLOWS).map(|flow| arriving("in0", client, &query(flow))).collect();
    let answers: BTreeMap<u16, Vec<u8>> = (20_000..20_000 + FLOWS)
        .map(|port| (port, arriving("out0", router, &udp("203.0.113.10:53", &format!("{POOL}:{port}")))))
        .collect();
    let start = Instant::now();
    let (mut sent, mut answered, mut late) = (0u32, 0u32, 0u32);
    lab.while_sweeping(|run| {
        // A busy machine takes longer for as many.
        while start.elapsed() < TIME || (sent < ENOUGH && start.elapsed() < 6 * TIME) {
            for flow in 0..FLOWS {
                let outcome = run("in0", &queries[usize::from(flow)]);
                // Two flows may want the same port for a moment, never more than there are.
                if outcome.action == Action::Drop {
                    late += 1;
                    continue;
                }
                let (address, port) = translated(&outcome.frame);
                assert_eq!((outcome.action, address), (Action::Redirect, ip(POOL)), "a leak");
                sent += 1;
                let answer = run("out0", &answers[&port]);
                match answer.action {
                    Action::Redirect => {
                        let frame = &answer.frame;
                        let to = (&frame[30..34], u16::from_be_bytes([frame[36], frame[37]]));
                        assert_eq!(to, (&[10, 0, 1, 2][..], 40_000 + flow), "delivered to another");
                        answered += 1;
                    }
                    Action::Drop => late += 1,
                    Action::Aborted | Action::Pass | Action::Tx => panic!("{answer:?}"),
                }
                // Each flow pauses about as long as its session may be idle, so that it meets the sweep in
                // every state.
                std::thread::sleep(IDLE / u32::from(FLOWS) + Duration::from_micros(u64::from(flow)));
            }
        }
    });
    assert!(sent >= ENOUGH, "{sent} sent, {answered} answered, {late} late");
    assert!(late < sent / 10, "{sent} sent, {answered} answered, {late} late");
    let deadline = Instant::now() + Duration::from_secs(10);
    while lab.session_balance().2 > 0 && Instant::now() < deadline {
        lab.sweep();
    }
    let (opened, removed, left) = lab.session_balance();
    assert_eq!((opened - removed, left), (0, 0));
    assert!(opened > u64::from(FLOWS) * 2, "{opened} sessions: the sweep met hardly any");
    let ports: BTreeSet<_> = (0..FLOWS)
        .map(|flow| lab.open("in0", &udp(&format!("10.0.1.3:{}", 50_000 + flow), "203.0.113.10:53")))
        .collect();
    assert_eq!(ports.len(), usize::from(FLOWS));
}
