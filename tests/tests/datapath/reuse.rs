//! The floor itself: tests of one process use the same programs, one after the other.

use gateway_common::session::{TCP_ACK, TCP_SYN};
use gateway_tests::packet::{tcp, udp};

use crate::support::{nat, standard};

#[test]
fn what_a_test_leaves_in_the_maps_is_gone_before_the_next_one() {
    let Some(mut lab) = standard(|policy| {
        let policy = nat(policy).pool("open", "198.51.100.30", "1024-65535").endpoint_independent("open");
        policy.eip("198.51.100.50", "10.0.1.3").routes(
            "203.0.113.0/24 proto tcp dport 80 via pool nat\n192.0.2.0/28 via pool open\n\
             10.9.0.0/16 via gateway 192.0.2.2",
        )
    }) else {
        return;
    };
    for packet in [
        udp("10.0.1.2:4000", "203.0.113.10:53"),
        udp("10.0.1.2:4000", "192.0.2.2:53"),
        udp("10.0.1.2:4001", "203.0.113.10:53").fragment(0, true),
        udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53"),
        udp("10.0.1.99:4000", "203.0.113.10:53"),
        udp("10.0.1.2:4000", "192.0.2.99:53"),
        tcp("10.0.1.2:4000", "203.0.113.10:80", TCP_SYN),
        tcp("10.0.1.2:4009", "203.0.113.10:80", TCP_ACK),
    ] {
        lab.prepare("in0", &packet);
    }
    lab.change(nat);
    lab.sweep();
    let [before, after] = lab.end();
    let used = [
        "ADDRESSES",
        "BINDINGS",
        "CONFIG",
        "DESTINATIONS",
        "DROPS",
        "EGRESS",
        "FRAGMENTS",
        "HALF_OPEN",
        "INTERFACES",
        "NEXT_HOPS",
        "POOLS",
        "POOL_ADDRESSES",
        "POOL_COUNTERS",
        "POOL_MEMBERS",
        "REFUSALS",
        "ROUTERS",
        "ROUTES_V4",
        "ROUTES_V6",
        "ROUTE_COUNTERS",
        "RULES",
        "SESSIONS_V4",
        "SESSIONS_V6",
        "SESSION_COUNTERS",
        "SUBJECT_V4",
        "SWEEPS",
        "TRAFFIC",
    ];
    let missing: Vec<_> = used.iter().filter(|name| !before.iter().any(|full| full == *name)).collect();
    assert!(missing.is_empty(), "the test did not use {missing:?}, but {before:?}");
    assert_eq!(after, Vec::<String>::new());
}
