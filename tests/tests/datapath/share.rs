//! How clients share a destination that is at its limit.

use std::{thread::sleep, time::Duration};

use gateway_common::DropReason::{self, DestinationConcurrent, DestinationRate};
use gateway_tests::{
    counters::drops,
    gateway::Action,
    packet::{Packet, udp},
    policy::Policy,
};

use crate::{
    limit::recount,
    support::{Lab, POOL, standard},
};

const GREEDY: u8 = 2;
const MODEST: u8 = 3;
const THIRD: u8 = 4;

fn limited(rate: u32, burst: u32, concurrent: u32) -> impl FnOnce(Policy) -> Policy {
    move |policy| {
        let policy = policy.pool("nat", POOL, "1024-65535").routes("0.0.0.0/0 via pool nat");
        policy.limit("nat", rate, burst, concurrent)
    }
}

/// The flow number `number` of a client.
fn flow(client: u8, number: u16) -> Packet {
    udp(&format!("10.0.1.{client}:{}", 2000 + number), "203.0.113.10:53")
}

/// The number of these flows that are let through. Others are dropped for that reason.
fn admitted(lab: &mut Lab, client: u8, numbers: std::ops::Range<u16>, reason: DropReason) -> u16 {
    let before = lab.counters().packets(&drops(reason));
    let (mut sent, mut dropped) = (0, 0);
    for number in numbers {
        if lab.prepare("in0", &flow(client, number)).action == Action::Redirect {
            sent += 1;
        } else {
            dropped += 1;
        }
    }
    assert_eq!(lab.counters().packets(&drops(reason)) - before, dropped);
    sent
}

#[test]
fn a_client_alone_gets_all_connections_at_a_time() {
    let Some(mut lab) = standard(|policy| limited(0, 0, 300)(policy).idle(Duration::from_secs(1))) else {
        return;
    };
    assert_eq!(admitted(&mut lab, GREEDY, 0..310, DestinationConcurrent), 300);
    sleep(Duration::from_millis(1_500));
    lab.sweep_all();
    recount(&lab);
    assert_eq!(admitted(&mut lab, GREEDY, 400..710, DestinationConcurrent), 300);
    recount(&lab);
}

#[test]
fn the_last_connections_at_a_time_are_for_who_has_few() {
    let Some(mut lab) = standard(limited(0, 0, 200)) else { return };
    assert_eq!(admitted(&mut lab, GREEDY, 0..201, DestinationConcurrent), 200);
    // From here on the destination is contended.
    assert_eq!(admitted(&mut lab, MODEST, 0..1, DestinationConcurrent), 0);
    lab.change(|policy| policy.limit("nat", 0, 0, 204));
    // One in a hundred is kept.
    assert_eq!(admitted(&mut lab, GREEDY, 201..210, DestinationConcurrent), 2);
    assert_eq!(admitted(&mut lab, MODEST, 0..9, DestinationConcurrent), 2);
    recount(&lab);
    // Other destinations and other clients have nothing to do with it.
    let other = udp(&format!("10.0.1.{GREEDY}:2000"), "203.0.113.11:53");
    assert_eq!(lab.prepare("in0", &other).action, Action::Redirect);
    lab.change(|policy| policy.limit("nat", 0, 0, 205));
    assert_eq!(admitted(&mut lab, GREEDY, 211..220, DestinationConcurrent), 0);
    assert_eq!(admitted(&mut lab, THIRD, 0..9, DestinationConcurrent), 1);
    recount(&lab);
}

#[test]
fn the_last_tokens_are_for_who_has_opened_few() {
    let Some(mut lab) = standard(limited(10, 100, 0)) else { return };
    let burst = admitted(&mut lab, GREEDY, 0..120, DestinationRate);
    assert!((100..=110).contains(&burst), "{burst}");
    assert_eq!(admitted(&mut lab, MODEST, 0..1, DestinationRate), 0);
    sleep(Duration::from_millis(600));
    // There are tokens for some, and each of those who have opened none gets one.
    assert_eq!(admitted(&mut lab, GREEDY, 200..210, DestinationRate), 0);
    assert_eq!(admitted(&mut lab, MODEST, 1..9, DestinationRate), 1);
    assert_eq!(admitted(&mut lab, THIRD, 0..9, DestinationRate), 1);
    recount(&lab);
}

#[test]
fn what_clients_have_is_taken_off_with_their_sessions() {
    let Some(mut lab) = standard(|policy| {
        limited(0, 0, 400)(policy).endpoint_independent("nat").idle(Duration::from_secs(1))
    }) else {
        return;
    };
    for client in [GREEDY, MODEST, THIRD] {
        assert_eq!(admitted(&mut lab, client, 0..50, DestinationConcurrent), 50);
    }
    // From an eighth of the limit on.
    assert_eq!(lab.shared(), 100);
    sleep(Duration::from_millis(1_500));
    for _ in 0..4 {
        lab.sweep_all();
    }
    assert_eq!((lab.sessions().len(), lab.shared()), (0, 0));
}
