//! The table of IPv4 sessions, at its limits.

use gateway_common::DropReason::SessionTableFull;
use gateway_tests::{
    counters,
    gateway::Action,
    packet::{Packet, bare, udp},
};

use crate::support::{POOL, standard};

/// Sessions that the table takes.
const CAPACITY: u32 = 512;

fn flow(number: u32) -> Packet {
    let (client, server) = (number % 200 + 2, number / 200 % 250 + 1);
    udp(
        &format!("10.0.1.{client}:{}", 1_024 + number / 7),
        &format!("203.0.113.{server}:{}", 1 + number % 60_000),
    )
}

#[test]
fn a_table_takes_what_it_is_made_for_again_and_again_and_no_more() {
    let Some(mut lab) = standard(|policy| {
        policy.pool("nat", POOL, "1024-65535").routes("0.0.0.0/0 via pool nat").sessions(CAPACITY)
    }) else {
        return;
    };
    let mut next = 0;
    for round in 1..=4 {
        let before = lab.counters();
        for number in next..next + CAPACITY {
            let outcome = lab.prepare("in0", &flow(number));
            assert_eq!(outcome.action, Action::Redirect, "flow {} of round {round}", number - next);
        }
        assert_eq!(lab.prepare("in0", &flow(next + CAPACITY)).action, Action::Drop);
        assert_eq!(lab.counters().since(&before).packets(&counters::drops(SessionTableFull)), 1);
        // Reads every bucket, and compares it with its counts.
        assert_eq!(lab.elements(), 2 * CAPACITY as usize);
        assert_eq!(lab.sessions().len(), CAPACITY as usize);
        // Each session is found, by both of its elements.
        for number in next..next + CAPACITY {
            assert_eq!(lab.prepare("in0", &flow(number)).action, Action::Redirect);
        }
        assert_eq!(lab.session_balance().2, CAPACITY as usize);
        // All are cut, and removed.
        lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via blackhole"));
        for number in next..next + CAPACITY {
            assert_eq!(lab.prepare("in0", &flow(number)).action, Action::Drop);
        }
        lab.sweep_until_cut_are_gone();
        assert_eq!(lab.elements(), 0, "round {round}");
        lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via pool nat"));
        next += CAPACITY + 1;
    }
}

/// The key of a slot that nothing was put into yet is zero.
#[test]
fn a_packet_whose_key_is_zero_meets_no_session() {
    let Some(mut lab) =
        standard(|policy| policy.pool("nat", POOL, "1024-65535").routes("0.0.0.0/0 via pool nat"))
    else {
        return;
    };
    for port in ["in0", "out0"] {
        let outcome = lab.prepare(port, &bare("0.0.0.0", "0.0.0.0", 0));
        assert_eq!(outcome.action, Action::Drop, "{port}");
    }
    assert_eq!(lab.elements(), 0);
}

#[test]
fn the_key_of_a_session_that_was_removed_is_nobodys() {
    let Some(mut lab) =
        standard(|policy| policy.pool("nat", POOL, "1024-65535").routes("0.0.0.0/0 via pool nat"))
    else {
        return;
    };
    let packet = flow(1);
    let first = lab.prepare("in0", &packet);
    assert_eq!(first.action, Action::Redirect);
    lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via blackhole"));
    assert_eq!(lab.prepare("in0", &packet).action, Action::Drop);
    lab.sweep_until_cut_are_gone();
    assert_eq!(lab.elements(), 0);
    let bytes: Vec<u8> = lab.slots().iter().flat_map(|slot| slot.tuple.words()[1].to_ne_bytes()).collect();
    assert!(bytes.iter().all(|byte| [0, 0xff].contains(byte)), "what is left of keys is no packet's");
}
