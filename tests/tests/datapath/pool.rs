//! Addresses and ports: which a flow gets, and what happens when there are none.

use std::{
    collections::BTreeSet,
    net::{IpAddr, TcpListener, UdpSocket},
};

use gateway_common::{
    DropReason::{PoolExhausted, SessionTableFull},
    Verdict::{Reply, Snat},
};
use gateway_tests::{
    gateway::Action,
    packet::{Packet, SYN, echo_request, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, POOL6, ROUTER, ROUTER6, dropped, sent, snat, standard, translated};

const ALL: &str = "0.0.0.0/0";

/// A gateway whose pool `nat` has these addresses and ports.
fn pool(addresses: &str, ports: &str) -> Option<Lab> {
    standard(|policy| policy.pool("nat", addresses, ports).routes("0.0.0.0/0 via pool nat"))
}

/// The flow number `number` of clients behind in0, to one destination.
fn flow(number: u16) -> Packet {
    udp(&format!("10.0.2.{}:{}", number % 200 + 1, 2000 + number), "203.0.113.10:53")
}

#[test]
fn two_clients_with_the_same_port_are_kept_apart() {
    let Some(mut lab) = snat() else { return };
    let (first, second) = (udp("10.0.1.2:4000", "203.0.113.10:53"), udp("10.0.1.3:4000", "203.0.113.10:53"));
    assert_eq!(lab.open("in0", &first), (ip(POOL), 4000));
    let (address, port) = lab.open("in0", &second);
    assert_eq!(address, ip(POOL));
    assert_ne!(port, 4000);
    for (client, port) in [("10.0.1.2", 4000), ("10.0.1.3", port)] {
        let answer = udp("203.0.113.10:53", &format!("{POOL}:{port}"));
        let expected = sent("in0", client, Reply, &answer.clone().to(&format!("{client}:4000")));
        lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
    }
}

#[test]
fn a_port_serves_as_many_destinations_as_there_are() {
    let Some(mut lab) = pool(POOL, "4000-4000") else { return };
    for to in ["203.0.113.10:53", "203.0.113.10:54", "203.0.113.11:53"] {
        let query = udp("10.0.1.2:4000", to);
        let expected = sent("out0", ROUTER, Snat, &query.clone().from("198.51.100.10:4000"));
        lab.check("in0", &query, expected.by(ALL, "pool").opening("udp", POOL));
    }
    // And as many protocols.
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:53", SYN);
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by(ALL, "pool").opening("tcp", POOL));
    let ping = echo_request("10.0.1.2", "203.0.113.10", 9);
    let expected = sent("out0", ROUTER, Snat, &ping.clone().from("198.51.100.10:4000"));
    lab.check("in0", &ping, expected.by(ALL, "pool").opening("icmp", POOL));
    let refused = udp("10.0.1.3:4000", "203.0.113.10:53");
    let expected = dropped(PoolExhausted).by(ALL, "pool");
    let expected = expected.counting("pool nat 198.51.100.10 attempts");
    lab.check("in0", &refused, expected.counting("pool nat 198.51.100.10 allocation_errors"));
}

#[test]
fn every_port_of_every_address_is_given_once_before_the_pool_is_exhausted() {
    let Some(mut lab) = pool("198.51.100.10 198.51.100.11", "5000-5099") else { return };
    let mut given = BTreeSet::new();
    for number in 0..200 {
        let place = lab.open("in0", &flow(number));
        assert!((5000..=5099).contains(&place.1), "{place:?}");
        assert!(given.insert(place), "{place:?} is given twice");
    }
    let addresses: BTreeSet<IpAddr> = given.iter().map(|(address, _)| *address).collect();
    assert_eq!(addresses, BTreeSet::from([ip("198.51.100.10"), ip("198.51.100.11")]));

    let before = lab.counters();
    assert_eq!(lab.prepare("in0", &flow(200)).action, Action::Drop);
    let moved = lab.counters().since(&before).to_string();
    assert!(moved.contains("drops pool_exhausted: 1"), "{moved}");
    assert!(moved.contains("allocation_errors: 1"), "{moved}");
    // Those that have a port keep working.
    for number in 0..200 {
        let outcome = lab.prepare("in0", &flow(number));
        assert!(given.contains(&translated(&outcome.frame)), "{outcome:?}");
    }
    // And so do other destinations.
    lab.open("in0", &udp("10.0.2.1:5000", "203.0.113.11:53"));
}

#[test]
fn a_port_of_a_full_pool_is_given_again_as_soon_as_it_is_free() {
    let Some(mut lab) = pool(POOL, "5000-5099") else { return };
    for number in 0..100 {
        lab.open("in0", &flow(number));
    }
    assert_eq!(lab.prepare("in0", &flow(100)).action, Action::Drop);
    // One route less cuts one session, whose port is free after the sweep.
    lab.change(|policy| policy.table("none", &["10.0.2.1/32"], ""));
    assert_eq!(lab.prepare("in0", &flow(0)).action, Action::Drop);
    lab.sweep_all();
    assert_eq!(lab.open("in0", &flow(101)).0, ip(POOL));
    assert_eq!(lab.prepare("in0", &flow(102)).action, Action::Drop);
}

#[test]
fn a_client_keeps_its_address() {
    let Some(mut lab) = pool("198.51.100.8/29", "1024-65535") else { return };
    let mut addresses = BTreeSet::new();
    for client in 1..=64 {
        let address = |lab: &mut Lab, port: u16, to: &str| {
            lab.open("in0", &udp(&format!("10.0.2.{client}:{port}"), to)).0
        };
        let first = address(&mut lab, 4000, "203.0.113.10:53");
        for (port, to) in [(4001, "203.0.113.10:53"), (4000, "203.0.113.11:443"), (80, "203.0.113.10:53")] {
            assert_eq!(address(&mut lab, port, to), first);
        }
        addresses.insert(first);
    }
    // 64 clients over 8 addresses: one that nobody got would be a wonder of 1 in 600.
    assert!(addresses.len() >= 6, "{addresses:?}");
}

#[test]
fn a_full_session_table_refuses_new_flows_and_keeps_the_old() {
    let Some(mut lab) = standard(|policy| {
        policy
            .pool("nat", &format!("{POOL} {POOL6}"), "1024-65535")
            .routes("0.0.0.0/0 via pool nat\n::/0 via pool nat")
            .sessions(50)
    }) else {
        return;
    };
    for number in 0..50 {
        lab.open("in0", &flow(number));
    }
    let refused = flow(50);
    assert!(!lab.sweep());
    for _ in 0..3 {
        lab.check("in0", &refused, dropped(SessionTableFull).by(ALL, "pool"));
    }
    // Removing sessions is urgent as long as some are refused.
    assert!(lab.sweep());
    assert!(!lab.sweep());
    for number in 0..50 {
        let query = flow(number);
        let port = 2000 + number;
        let expected = sent("out0", ROUTER, Snat, &query.clone().from(&format!("{POOL}:{port}")));
        lab.check("in0", &query, expected.by(ALL, "pool"));
    }
    // The table of IPv6 is another one.
    for number in 0..50 {
        lab.open("in0", &udp(&format!("[2001:db8:1::2]:{}", 2000 + number), "[2001:db8:f::1]:53"));
    }
    let refused = udp("[2001:db8:1::2]:2050", "[2001:db8:f::1]:53");
    lab.check("in0", &refused, dropped(SessionTableFull).by("::/0", "pool"));
    let query = udp("[2001:db8:1::2]:2049", "[2001:db8:f::1]:53");
    let expected = sent("out0", ROUTER6, Snat, &query.clone().from(&format!("[{POOL6}]:2049")));
    lab.check("in0", &query, expected.by("::/0", "pool"));
}

#[test]
fn ipv6_flows_are_translated_like_ipv4_flows() {
    let Some(mut lab) = snat() else { return };
    let to = "[2001:db8:f::1]:443";
    for (name, packet) in [
        ("tcp", tcp("[2001:db8:1::2]:4000", to, SYN)),
        ("udp", udp("[2001:db8:1::2]:4000", to)),
        ("icmp", echo_request("2001:db8:1::2", "2001:db8:f::1", 4000)),
        // Behind extension headers too.
        ("udp", udp("[2001:db8:1::2]:4001", to).extension(60, &[1, 4, 0, 0, 0, 0])),
    ] {
        let (_, port) = translated(&packet.clone().frame());
        let port = if packet.extensions.is_empty() { port } else { 4001 };
        let out = packet.clone().from(&format!("[{POOL6}]:{port}"));
        let expected = sent("out0", ROUTER6, Snat, &out);
        lab.check("in0", &packet, expected.by("::/0", "pool").opening(name, POOL6));
        let answer = out.macs([0; 6], [0; 6]).answer();
        let expected =
            sent("in0", "2001:db8:1::2", Reply, &answer.clone().to(&format!("[2001:db8:1::2]:{port}")));
        lab.check("out0", &answer, expected.by("::/0", "pool").establishing(POOL6));
    }
}

#[test]
fn sessions_are_shown_as_they_are() {
    let Some(mut lab) = snat() else { return };
    let query = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).length(100);
    lab.open("in0", &query);
    lab.prepare("out0", &tcp("203.0.113.10:443", "198.51.100.10:4000", 0x12).length(60));
    let sessions = lab.sessions();
    let [session] = sessions.as_slice() else { panic!("{sessions:?}") };
    assert_eq!((session.source, session.source_port), (ip("10.0.1.2"), 4000));
    assert_eq!((session.translated, session.translated_port), (ip(POOL), 4000));
    assert_eq!((session.destination, session.destination_port), (ip("203.0.113.10"), 443));
    assert_eq!((session.sent.packets, session.sent.bytes), (1, 100));
    assert_eq!((session.received.packets, session.received.bytes), (1, 60));
    assert_eq!(session.pool.as_deref(), Some("nat"));
}

/// The policy of a pool whose addresses the host has, too.
fn of_host() -> Option<Lab> {
    standard(|policy| {
        policy
            .pool("nat", "198.51.100.1 2001:db8:2::1", "4000-4003")
            .routes("0.0.0.0/0 via pool nat\n::/0 via pool nat")
    })
}

#[test]
fn a_port_on_which_the_host_listens_is_not_given() {
    let Some(mut lab) = of_host() else { return };
    let tcp4 = TcpListener::bind("198.51.100.1:4000").expect("a listener");
    let tcp6 = TcpListener::bind("[::]:4001").expect("a listener of both families");
    let udp4 = UdpSocket::bind("198.51.100.1:4002").expect("a socket");
    let udp6 = UdpSocket::bind("[2001:db8:2::1]:4003").expect("a socket");
    let ports = |lab: &mut Lab, packet: fn(&str, &str) -> Packet, clients: &str, server: &str| {
        let mut given = BTreeSet::new();
        for client in 2..4 {
            for port in 4000..4004 {
                let from = clients.replace('*', &client.to_string());
                let outcome = lab.prepare("in0", &packet(&format!("{from}:{port}"), server));
                if outcome.action == Action::Redirect {
                    assert!(given.insert(translated(&outcome.frame).1), "given twice");
                }
            }
        }
        Vec::from_iter(given)
    };
    let syn = |from: &str, to: &str| tcp(from, to, SYN);
    assert_eq!(ports(&mut lab, syn, "10.0.1.*", "203.0.113.10:443"), [4002, 4003]);
    assert_eq!(ports(&mut lab, syn, "[2001:db8:1::*]", "[2001:db8:f::1]:443"), [4000, 4002, 4003]);
    assert_eq!(ports(&mut lab, udp, "10.0.1.*", "203.0.113.10:53"), [4000, 4001, 4003]);
    assert_eq!(ports(&mut lab, udp, "[2001:db8:1::*]", "[2001:db8:f::1]:53"), [4000, 4001, 4002]);
    // The socket is closed, and its port the pool's again, for the destination that had all others.
    drop((tcp4, tcp6, udp4, udp6));
    assert_eq!(ports(&mut lab, udp, "10.0.1.*", "203.0.113.10:53"), [4000, 4001, 4002, 4003]);
}

#[test]
fn a_port_that_the_host_talks_from_is_not_given_towards_the_same_server() {
    let Some(mut lab) = of_host() else { return };
    let socket = UdpSocket::bind("198.51.100.1:4000").expect("a socket");
    socket.connect("203.0.113.10:53").expect("a way to the server");
    assert_ne!(lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53")).1, 4000);
    assert_eq!(lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.11:53")).1, 4000);
}

#[test]
fn a_drained_address_keeps_its_sessions_and_takes_no_more() {
    for (pair, route) in [
        (["198.51.100.10", "198.51.100.11"], "0.0.0.0/0 via pool nat"),
        (["2001:db8:100::10", "2001:db8:100::11"], "::/0 via pool nat"),
    ] {
        let policy = |policy: Policy| policy.pool("nat", &pair.join(" "), "1024-65535").routes(route);
        let Some(mut lab) = standard(policy) else { return };
        let query = |client: u16, port: u16| {
            if pair[0].contains(':') {
                udp(&format!("[2001:db8:4::{client}]:{port}"), "[2001:db8:f::1]:53")
            } else {
                udp(&format!("10.0.2.{client}:{port}"), "203.0.113.10:53")
            }
        };
        let before: Vec<_> = (1..=16).map(|client| lab.open("in0", &query(client, 4000)).0).collect();
        assert!(before.contains(&ip(pair[0])) && before.contains(&ip(pair[1])));
        lab.change(|policy| policy.drain("nat", pair[0]));
        for client in 1..=16 {
            // What there is goes on, also through the look at the new policy.
            assert_eq!(lab.open("in0", &query(client, 4000)).0, before[usize::from(client) - 1]);
            assert_eq!(lab.open("in0", &query(client, 4001)).0, ip(pair[1]));
        }
        // All of them: no session, and no leak.
        lab.change(|policy| policy.drain("nat", &pair.join(" ")));
        assert_eq!(lab.prepare("in0", &query(1, 4002)).action, Action::Drop);
        assert_eq!(lab.open("in0", &query(1, 4001)).0, ip(pair[1]));
        // And back: everyone has the address that was theirs.
        lab.change(|policy| policy.drain("nat", ""));
        for client in 1..=16 {
            assert_eq!(lab.open("in0", &query(client, 4003)).0, before[usize::from(client) - 1]);
        }
    }
}
