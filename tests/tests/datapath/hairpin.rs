//! Inside hosts that reach each other by endpoint-independent mappings.

use std::{thread, time::Duration};

use gateway_common::{
    DropReason::{FragmentUnmatched, NoRoute, NoSession},
    Verdict::Snat,
};
use gateway_tests::{
    gateway::Action,
    packet::{ACK, FIN, Packet, SYN, Transport, ip, tcp, udp},
};

use crate::support::{Lab, POOL, dropped, nat, sent, standard};

const ALL: &str = "0.0.0.0/0";

/// A gateway whose pool `nat` has endpoint-independent mappings, of which 10.0.3.2:5000 has 198.51.100.10:5000.
fn meeting() -> Option<Lab> {
    let mut lab = standard(|policy| nat(policy).endpoint_independent("nat"))?;
    assert_eq!(lab.open("in1", &udp("10.0.3.2:5000", "203.0.113.10:53")), (ip(POOL), 5000));
    Some(lab)
}

/// `packet` as it leaves for `to` after two hops, counted by both routes.
fn turned(egress: &'static str, to: &str, packet: &Packet) -> crate::support::Expected {
    let packet = packet.clone().ttl(packet.ttl - 1);
    sent(egress, to, Snat, &packet).by(ALL, "pool").by(ALL, "pool")
}

#[test]
fn two_clients_meet_under_the_addresses_that_the_outside_sees() {
    let Some(mut lab) = meeting() else { return };
    let call = udp("10.0.1.2:4000", "198.51.100.10:5000");
    let arrives = call.clone().from("198.51.100.10:4000").to("10.0.3.2:5000");
    let expected = turned("in1", "10.0.3.2", &arrives).opening("udp", POOL);
    let expected = expected.counting("sessions udp created").counting("pool nat 198.51.100.10 opened");
    lab.check("in0", &call, expected);
    let answer = udp("10.0.3.2:5000", "198.51.100.10:4000");
    let arrives = answer.clone().from("198.51.100.10:5000").to("10.0.1.2:4000");
    lab.check("in1", &answer, turned("in0", "10.0.1.2", &arrives).establishing(POOL));
    // And again, both ways.
    lab.check("in1", &answer, turned("in0", "10.0.1.2", &arrives));
    let arrives = call.clone().from("198.51.100.10:4000").to("10.0.3.2:5000");
    lab.check("in0", &call, turned("in1", "10.0.3.2", &arrives));
    assert_eq!((lab.map_entries("mappings"), lab.sessions().len()), (2, 3));
}

#[test]
fn connections_and_ipv6_meet_as_well() {
    let Some(mut lab) = meeting() else { return };
    lab.open("in1", &tcp("10.0.3.2:6000", "203.0.113.10:80", SYN));
    let steps = [
        ("in0", "in1", tcp("10.0.1.2:4000", "198.51.100.10:6000", SYN)),
        ("in1", "in0", tcp("10.0.3.2:6000", "198.51.100.10:4000", SYN | ACK)),
        ("in0", "in1", tcp("10.0.1.2:4000", "198.51.100.10:6000", ACK)),
        ("in1", "in0", tcp("10.0.3.2:6000", "198.51.100.10:4000", FIN | ACK)),
        ("in0", "in1", tcp("10.0.1.2:4000", "198.51.100.10:6000", FIN | ACK)),
    ];
    for (ingress, egress, packet) in steps {
        let outcome = lab.prepare(ingress, &packet);
        assert_eq!(outcome.action, Action::Redirect, "{packet:?}");
        let (from, to) = if egress == "in1" {
            ("198.51.100.10:4000", "10.0.3.2:6000")
        } else {
            ("198.51.100.10:6000", "10.0.1.2:4000")
        };
        let mac = |address: &str| gateway_tests::network::mac(ip(address));
        let host = to.split(':').next().expect("an address");
        let expected = packet.clone().from(from).to(to).ttl(packet.ttl - 2);
        let expected = expected.macs(lab.network().find(egress).mac(), mac(host));
        assert_eq!(outcome.frame, expected.frame());
    }
    let states: Vec<_> = lab
        .sessions()
        .iter()
        .filter(|session| session.state == "closed")
        .map(|row| row.source_port)
        .collect();
    assert_eq!(states.len(), 2, "{states:?}");

    lab.open("in1", &udp("[2001:db8:3::2]:5000", "[2001:db8:f::1]:53"));
    let outcome = lab.prepare("in0", &udp("[2001:db8:1::2]:4000", "[2001:db8:100::10]:5000"));
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(crate::support::translated(&outcome.frame), (ip("2001:db8:100::10"), 4000));
}

#[test]
fn an_endpoint_dependent_client_may_call() {
    let Some(mut lab) = meeting() else { return };
    lab.change(|policy| {
        policy.pool("other", "198.51.100.20", "1024-65535").table(
            "callers",
            &["10.0.1.0/24"],
            "198.51.100.0/24 via pool other",
        )
    });
    let call = udp("10.0.1.2:4000", "198.51.100.10:5000");
    let outcome = lab.prepare("in0", &call);
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(crate::support::translated(&outcome.frame), (ip("198.51.100.20"), 4000));
    let answer = udp("10.0.3.2:5000", "198.51.100.20:4000");
    // Its own address lets nobody in that it has not called; its callee was called.
    assert_eq!(lab.prepare("in1", &answer).action, Action::Redirect);
    assert_eq!(lab.prepare("in1", &udp("10.0.3.2:5001", "198.51.100.20:4000")).action, Action::Drop);
}

#[test]
fn who_does_not_meet() {
    let Some(mut lab) = meeting() else { return };
    // No mapping there.
    let stray = udp("10.0.1.2:4000", "198.51.100.10:5001");
    lab.check("in0", &stray, dropped(NoSession).by(ALL, "pool"));
    // Nobody sends from outside with the addresses of a pool.
    lab.prepare("in0", &udp("10.0.1.2:4000", "198.51.100.10:5000"));
    lab.check("out0", &udp("198.51.100.10:5000", "198.51.100.10:4000"), dropped(NoSession));
    // The caller's table, and that of the callee.
    let call = udp("10.0.1.2:4000", "198.51.100.10:5000");
    lab.change(|policy| policy.table("callers", &["10.0.1.0/24"], "192.0.2.0/24 via pool nat"));
    lab.check("in0", &call, dropped(NoRoute));
    let other = udp("10.0.1.3:4000", "198.51.100.10:5000");
    lab.check("in0", &other, dropped(NoRoute));
    lab.change(|policy| {
        policy.without_routes().routes("0.0.0.0/0 via pool nat").table(
            "callees",
            &["10.0.3.0/24"],
            "198.51.100.0/24 via blackhole\n0.0.0.0/0 via pool nat",
        )
    });
    assert_eq!(lab.prepare("in0", &other).action, Action::Drop);
}

#[test]
fn errors_go_through_both_sessions() {
    let Some(mut lab) = meeting() else { return };
    let call = udp("10.0.1.2:4000", "198.51.100.10:5000");
    lab.prepare("in0", &call);
    let arrived = call.clone().from("198.51.100.10:4000").to("10.0.3.2:5000").ttl(3);
    for length in [28, 1000] {
        let complains = error("10.0.3.2", &arrived, length);
        let told = error("198.51.100.10", &call.clone().ttl(3), length);
        lab.check("in1", &complains, turned("in0", "10.0.1.2", &told));
        // The caller about the answer.
        let answer = udp("10.0.3.2:5000", "198.51.100.10:4000").ttl(3);
        let complains =
            error("10.0.1.2", &answer.clone().from("198.51.100.10:5000").to("10.0.1.2:4000"), length);
        let told = error("198.51.100.10", &answer, length);
        lab.check("in0", &complains, turned("in1", "10.0.3.2", &told));
    }
    // From outside, nobody complains about it.
    let forged = error("203.0.113.7", &call.from("198.51.100.10:4000").ttl(3), 1000);
    lab.check("out0", &forged, dropped(NoSession));
}

/// A "port unreachable" of `from` about `quoted`.
fn error(from: &str, quoted: &Packet, length: usize) -> Packet {
    let quote = quoted.frame()[14..].iter().copied().take(length).collect::<Vec<_>>();
    Packet::new(ip(from), quoted.source, Transport::Icmp { kind: 3, code: 3, rest: [0; 4] }).payload(quote)
}

#[test]
fn datagrams_in_fragments_go_through_both_sessions() {
    let Some(mut lab) = meeting() else { return };
    let call = udp("10.0.1.2:4000", "198.51.100.10:5000");
    lab.prepare("in0", &call);
    let call = Packet { identification: 7, ..call }.payload((0..120).collect::<Vec<u8>>());
    let fragments = call.fragments(&[40, 80]);
    lab.check("in0", &fragments[2], dropped(FragmentUnmatched).by(ALL, "pool"));
    let mut number = 0;
    for (nth, fragment) in fragments.iter().enumerate() {
        let outcome = lab.prepare("in0", fragment);
        assert_eq!(outcome.action, Action::Redirect, "fragment {nth}");
        let given = u32::from(u16::from_be_bytes([outcome.frame[18], outcome.frame[19]]));
        number = if nth == 0 { given } else { number };
        let whole = call.clone().from("198.51.100.10:4000").to("10.0.3.2:5000").identification(number);
        let wanted = whole.fragments(&[40, 80]).swap_remove(nth).ttl(fragment.ttl - 2);
        let wanted =
            wanted.macs(lab.network().find("in1").mac(), gateway_tests::network::mac(ip("10.0.3.2")));
        assert_eq!(outcome.frame, wanted.frame(), "fragment {nth}");
    }
}

#[test]
fn hairpins_expire_and_leave_nothing() {
    let Some(mut lab) = meeting() else { return };
    lab.prepare("in0", &udp("10.0.1.2:4000", "198.51.100.10:5000"));
    assert_eq!((lab.map_entries("mappings"), lab.sessions().len()), (2, 3));
    lab.change(|policy| policy.idle(Duration::from_secs(1)));
    thread::sleep(Duration::from_millis(1_400));
    lab.sweep_all();
    assert_eq!((lab.map_entries("mappings"), lab.sessions().len()), (0, 0));
    let (created, removed) = lab.session_counts();
    assert_eq!((created, removed), (3, 3));
}
