//! Routes that change a thousand times and more while packets flow, as fast as the data plane changes them: every packet
//! goes one of the two ways, or is dropped for a reason that one of them has, and is counted once.

use std::{collections::BTreeMap, sync::atomic::Ordering::SeqCst, time::Instant};

use gateway_common::DropReason::{self, Blackhole, NoSession};
use gateway_tests::{
    counters::drops,
    gateway::{Action, Outcome},
    network::mac,
    packet::{ip, udp},
    policy::Policy,
};

use crate::support::{POOL, ROUTER, standard, translated};

/// Changes while packets flow.
const FLIPS: u64 = 1_000;
/// Flows of which there may be sessions.
const FLOWS: u16 = 30_000;
/// Packets of flows that were there before, for each new flow.
const OLD: usize = 7;
const TO: &str = "203.0.113.10:53";
/// Addresses of pool `other` and of the proxy's host, behind `in1`.
const OTHER: &str = "198.51.100.20";
const HOST: &str = "10.0.3.2";
const CLIENT: &str = "10.0.1.2";

/// Where a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// To the router of the outside, with this source.
    Out(&'static str),
    /// To the proxy's host, unchanged.
    Proxied,
    Dropped,
}

/// Whatever these targets name is there.
fn ready(policy: Policy, targets: [&str; 2]) -> Policy {
    let policy = policy
        .sessions(u32::from(FLOWS) * 2)
        .pool("nat", POOL, "1024-65535")
        .pool("other", OTHER, "1024-65535")
        .routes("0.0.0.0/0 via pool nat");
    if targets.contains(&"proxy squid") { policy.proxy("squid", HOST, "closed") } else { policy }
}

fn way(port: u16, outcome: &Outcome) -> Way {
    if outcome.action == Action::Drop {
        return Way::Dropped;
    }
    assert_eq!(outcome.action, Action::Redirect, "neither sent nor dropped");
    let (source, source_port) = translated(&outcome.frame);
    let known = [CLIENT, POOL, OTHER].into_iter().find(|known| ip(known) == source);
    let known = known.unwrap_or_else(|| panic!("it left with {source}"));
    assert_eq!(outcome.frame[30..34], [203, 0, 113, 10], "to somewhere else");
    if outcome.frame[..6] == mac(ip(HOST)) {
        assert_eq!((known, source_port), (CLIENT, port), "the proxy gets it as it is");
        return Way::Proxied;
    }
    assert_eq!(outcome.frame[..6], mac(ip(ROUTER)), "to somebody else");
    Way::Out(known)
}

/// Flips the route to the server between two targets while packets flow; how many went which way.
fn flip(targets: [&str; 2], reasons: &[DropReason]) -> Option<BTreeMap<Way, u64>> {
    let mut lab = standard(|policy| ready(policy, targets))?;
    let policies = targets.map(|target| lab.policy().routes(&format!("203.0.113.10/32 via {target}")));
    lab.apply(&policies[1]);
    let frames: Vec<(u16, Vec<u8>)> = (1_024..1_024 + FLOWS)
        .map(|port| (port, lab.arriving("in0", &udp(&format!("{CLIENT}:{port}"), TO)).frame()))
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    let before = lab.counters();
    let (mut ways, mut sent) = (BTreeMap::new(), 0);
    let begin = Instant::now();
    lab.while_changing([&policies[0], &policies[1]], |run, begun| {
        for fresh in (0..frames.len()).cycle() {
            for number in (0..OLD).map(|_| random.usize(..=fresh)).chain([fresh]) {
                let (port, frame) = &frames[number];
                *ways.entry(way(*port, &run("in0", frame))).or_insert(0) += 1;
                sent += 1;
            }
            if begun.load(SeqCst) > FLIPS {
                break;
            }
        }
    });
    let rate = f64::from(FLIPS as u32) / begin.elapsed().as_secs_f64();
    println!("{targets:?}: {rate:.0} flips a second, {sent} packets: {ways:?}");
    let counted = lab.counters().since(&before);
    let sum = |what: &str| {
        let all = counted.filter(|name| name.starts_with(what));
        all.rename(|_| what.to_owned()).packets(what)
    };
    assert_eq!(sum("traffic "), sent, "every packet is counted once");
    let dropped = ways.get(&Way::Dropped).copied().unwrap_or_default();
    assert_eq!(sum("drops "), dropped, "every drop is counted once");
    let known: u64 = reasons.iter().map(|reason| counted.packets(&drops(*reason))).sum();
    assert_eq!(known, dropped, "for a reason that is none:\n{counted}");
    Some(ways)
}

#[test]
fn between_two_pools_no_packet_is_lost_and_none_leaves_untranslated() {
    let Some(ways) = flip(["pool nat", "pool other"], &[]) else { return };
    assert!(ways.keys().eq(&[Way::Out(POOL), Way::Out(OTHER)]), "{ways:?}");
}

#[test]
fn between_a_proxy_and_a_pool_no_packet_is_lost() {
    let Some(ways) = flip(["proxy squid", "pool nat"], &[]) else { return };
    assert!(ways.keys().eq(&[Way::Out(POOL), Way::Proxied]), "{ways:?}");
}

#[test]
fn between_direct_and_blackhole_packets_leave_as_they_are_or_not_at_all() {
    let Some(ways) = flip(["direct", "blackhole"], &[Blackhole]) else { return };
    assert!(ways.keys().eq(&[Way::Out(CLIENT), Way::Dropped]), "{ways:?}");
}

#[test]
fn between_a_pool_and_blackhole_sessions_are_cut_and_nothing_leaves_untranslated() {
    let Some(ways) = flip(["pool nat", "blackhole"], &[Blackhole, NoSession]) else { return };
    assert!(ways.keys().eq(&[Way::Out(POOL), Way::Dropped]), "{ways:?}");
}

#[test]
fn between_a_pool_and_direct_no_packet_is_lost() {
    let Some(ways) = flip(["pool nat", "direct"], &[]) else { return };
    assert!(ways.keys().eq(&[Way::Out(CLIENT), Way::Out(POOL)]), "{ways:?}");
}
