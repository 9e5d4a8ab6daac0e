//! Limits of what clients open.

use std::{thread::sleep, time::Duration};

use gateway_common::{
    DropReason::{self, SourceConcurrent, SourceRate},
    Verdict::Proxy,
};
use gateway_tests::{
    gateway::Action,
    network::mac,
    packet::{ACK, Packet, RST, SYN, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, dropped, nat, sent, standard};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";

/// A flow of this client, to a destination of its own.
fn flow(client: &str, number: u16) -> Packet {
    udp(&format!("{client}:{}", 2_000 + number), "203.0.113.10:53")
}

/// Sessions that the limit counts, of all clients, and of the one that has most.
fn counted(lab: &Lab, name: &str) -> (u64, u64) {
    let limits = lab.limits();
    let found = limits.iter().find(|limit| limit.name == name).expect("the limit");
    (found.sessions, found.most)
}

#[track_caller]
fn refused(lab: &mut Lab, packet: &Packet, reason: DropReason, name: &str) {
    let what = if matches!(reason, SourceRate) { "over_rate" } else { "over_concurrent" };
    let route = if packet.source.is_ipv4() { ALL } else { ALL6 };
    let expected = dropped(reason).by(route, "pool").counting(&format!("limit {name} {what}"));
    lab.check("in0", packet, expected);
}

#[test]
fn each_client_of_the_prefix_has_the_limit_for_itself() {
    let Some(mut lab) = standard(|policy| nat(policy).limit_sources("a", "10.0.1.0/24", "source", (0, 0, 2)))
    else {
        return;
    };
    for client in ["10.0.1.2", "10.0.1.3"] {
        for number in 0..2 {
            lab.open("in0", &flow(client, number));
        }
        refused(&mut lab, &flow(client, 2), SourceConcurrent, "a");
        // What is established goes on.
        lab.open("in0", &flow(client, 0));
    }
    assert_eq!(counted(&lab, "a"), (4, 2));
}

#[test]
fn all_clients_of_the_prefix_share_a_limit_per_prefix() {
    let Some(mut lab) = standard(|policy| nat(policy).limit_sources("a", "10.0.1.0/24", "prefix", (1, 3, 0)))
    else {
        return;
    };
    lab.open("in0", &flow("10.0.1.2", 0));
    lab.open("in0", &flow("10.0.1.3", 0));
    lab.open("in0", &flow("10.0.1.2", 1));
    refused(&mut lab, &flow("10.0.1.3", 1), SourceRate, "a");
    sleep(Duration::from_millis(1_100));
    lab.open("in0", &flow("10.0.1.3", 1));
    refused(&mut lab, &flow("10.0.1.2", 2), SourceRate, "a");
    assert_eq!(counted(&lab, "a"), (4, 4));
}

#[test]
fn the_longest_prefix_decides_and_one_without_bounds_exempts() {
    let policy = |policy| {
        nat(policy)
            .limit_sources("all", "0.0.0.0/0", "prefix", (0, 0, 1))
            .limit_sources("subnet", "10.0.1.0/24", "source", (0, 0, 2))
            .limit_sources("trusted", "10.0.1.3/32", "source", (0, 0, 0))
            .limit_sources("six", "2001:db8:1::/48", "source", (0, 0, 1))
    };
    let Some(mut lab) = standard(policy) else { return };
    for number in 0..20 {
        lab.open("in0", &flow("10.0.1.3", number));
    }
    for number in 0..2 {
        lab.open("in0", &flow("10.0.1.2", number));
    }
    refused(&mut lab, &flow("10.0.1.2", 2), SourceConcurrent, "subnet");
    let six = |port: u16| udp("[2001:db8:1::2]:1", "[2001:db8:77::1]:53").from_port(port);
    lab.open("in0", &six(1_000));
    refused(&mut lab, &six(1_001), SourceConcurrent, "six");
    assert_eq!((counted(&lab, "all"), counted(&lab, "trusted")), ((0, 0), (20, 20)));
}

#[test]
fn a_client_gets_back_what_its_sessions_held_and_what_came_to_nothing() {
    let policy = |policy: Policy| {
        policy
            .pool("nat", POOL, "4000-4001")
            .routes("0.0.0.0/0 via pool nat")
            .limit_sources("a", "10.0.1.0/24", "source", (0, 0, 4))
            .idle(Duration::from_secs(1))
    };
    let Some(mut lab) = standard(policy) else { return };
    for number in 0..2 {
        lab.open("in0", &flow("10.0.1.2", number));
    }
    // There is no port for these, and no session.
    for number in 2..9 {
        assert_eq!(lab.prepare("in0", &flow("10.0.1.2", number)).action, Action::Drop);
    }
    assert_eq!(counted(&lab, "a"), (2, 2));
    assert_eq!(lab.counters().packets("limit a admitted"), 2);
    sleep(Duration::from_millis(1_500));
    lab.sweep_all();
    assert_eq!(counted(&lab, "a"), (0, 0));
    sleep(Duration::from_millis(1_100));
    lab.sweep_all();
    assert_eq!(lab.limits()[0].sources, 0, "an idle bucket goes");
}

#[test]
fn a_limit_that_changes_counts_what_is_there() {
    let Some(mut lab) = standard(nat) else { return };
    for number in 0..5 {
        lab.open("in0", &flow("10.0.1.2", number));
    }
    lab.change(|policy| policy.limit_sources("a", "10.0.1.0/24", "source", (0, 0, 6)));
    lab.sweep_all();
    assert_eq!(counted(&lab, "a"), (5, 5));
    lab.open("in0", &flow("10.0.1.2", 5));
    refused(&mut lab, &flow("10.0.1.2", 6), SourceConcurrent, "a");
    // Of another kind, and then with a longer one beside it.
    lab.change(|policy| policy.limit_sources("a", "10.0.1.0/24", "prefix", (0, 0, 7)));
    lab.sweep_all();
    lab.open("in0", &flow("10.0.1.3", 0));
    assert_eq!(counted(&lab, "a"), (7, 7));
    lab.change(|policy| policy.limit_sources("b", "10.0.1.2/32", "source", (0, 0, 0)));
    lab.sweep_all();
    assert_eq!((counted(&lab, "a"), counted(&lab, "b")), ((1, 1), (6, 6)));
    // And back to none, and to one.
    lab.change(|policy| policy.without_limit("a").without_limit("b"));
    lab.sweep_all();
    lab.open("in0", &flow("10.0.1.3", 1));
    lab.change(|policy| policy.limit_sources("c", "0.0.0.0/0", "prefix", (0, 0, 9)));
    lab.sweep_all();
    assert_eq!(counted(&lab, "c"), (8, 8));
    lab.open("in0", &flow("10.0.1.3", 2));
    refused(&mut lab, &flow("10.0.1.3", 3), SourceConcurrent, "c");
}

#[test]
fn connections_through_a_proxy_count_once_and_what_its_host_sends_does_not() {
    const HOST: &str = "10.0.3.2";
    let policy = |policy: Policy| {
        policy
            .pool("nat", POOL, "1024-65535")
            .proxy("squid", HOST, "closed")
            .routes("0.0.0.0/0 via proxy squid")
            .table("beyond", &["10.0.3.2/32"], "0.0.0.0/0 via pool nat")
            .limit_sources("a", "10.0.0.0/8", "source", (0, 0, 1))
    };
    let Some(mut lab) = standard(policy) else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let opening = sent("in1", HOST, Proxy, &syn).by(ALL, "proxy").counting("sessions tcp created");
    lab.check("in0", &syn, opening.counting("limit a admitted"));
    let over = dropped(SourceConcurrent).by(ALL, "proxy").counting("limit a over_concurrent");
    lab.check("in0", &syn.clone().from_port(4_001), over);
    for port in 4_000..4_010 {
        let on = syn.clone().from_port(port).macs(mac(ip(HOST)), lab.network().find("in1").mac());
        lab.open("in1", &on);
    }
    assert_eq!(counted(&lab, "a"), (1, 1));
    assert_eq!(lab.prepare("in0", &syn.flags(ACK)).action, Action::Redirect);
}

#[test]
fn connections_through_mappings_count_and_those_from_outside_do_not() {
    let policy = |policy| {
        nat(policy).endpoint_independent("nat").limit_sources("a", "10.0.1.0/24", "source", (0, 0, 2))
    };
    let Some(mut lab) = standard(policy) else { return };
    let query = |server: u16| udp("10.0.1.2:2000", &format!("203.0.113.10:{}", 5_000 + server));
    let (_, port) = lab.open("in0", &query(0));
    lab.open("in0", &query(1));
    refused(&mut lab, &query(2), SourceConcurrent, "a");
    for stranger in 0..5 {
        let packet = udp(&format!("203.0.113.12:{}", 6_000 + stranger), &format!("{POOL}:{port}"));
        assert_eq!(lab.prepare("out0", &packet).action, Action::Redirect);
    }
    assert_eq!((counted(&lab, "a"), lab.sessions().len()), ((2, 2), 7));
    // Nor when they are looked at again.
    lab.change(|policy| policy.limit_sources("a", "10.0.1.0/24", "prefix", (0, 0, 2)));
    lab.sweep_all();
    assert_eq!(counted(&lab, "a"), (2, 2));
}

#[test]
fn the_counts_are_exact_whatever_many_cpus_do_and_however_limits_change() {
    let policy = |policy: Policy| {
        nat(policy)
            .limit_sources("a", "10.0.1.0/24", "source", (0, 0, 40))
            .tcp_idle(Duration::from_mins(10), Duration::from_secs(1))
    };
    let Some(mut lab) = standard(policy) else { return };
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let clients = ["10.0.1.2", "10.0.1.3", "10.0.1.4"];
    for round in 0..12 {
        let frames: Vec<Vec<u8>> = (0..300)
            .map(|_| {
                let flags = [SYN, SYN, SYN, RST][next(4)];
                let client = clients[next(3)];
                let packet =
                    tcp(&format!("{client}:1"), "203.0.113.10:443", flags).from_port(4_000 + next(80) as u16);
                lab.arriving("in0", &packet).frame()
            })
            .collect();
        lab.race_all("in0", &[frames.clone(), frames]);
        match next(4) {
            0 => lab.change(|policy| policy.limit_sources("a", "10.0.1.0/24", "prefix", (0, 0, 90))),
            1 => lab.change(|policy| policy.limit_sources("b", "10.0.1.3/32", "source", (0, 0, 30))),
            2 => lab.change(|policy| policy.without_limit("b")),
            _ => {
                sleep(Duration::from_millis(1_300));
                lab.change(|policy| policy.limit_sources("a", "10.0.1.0/24", "source", (0, 0, 40)));
            }
        }
        lab.sweep_all();
        let sessions = lab.sessions();
        let with_b = lab.limits().iter().any(|limit| limit.name == "b");
        let of = |client: &str| sessions.iter().filter(|row| row.source == ip(client)).count() as u64;
        let all = sessions.len() as u64;
        let of_b = if with_b { of("10.0.1.3") } else { 0 };
        assert_eq!(counted(&lab, "a").0, all - of_b, "round {round}");
        if with_b {
            assert_eq!(counted(&lab, "b"), (of_b, of_b), "round {round}");
        }
    }
}

#[test]
fn many_processors_admit_no_more_than_the_limit_of_a_client() {
    let Some(mut lab) =
        standard(|policy| nat(policy).limit_sources("a", "10.0.1.0/24", "source", (0, 0, 100)))
    else {
        return;
    };
    let lists: Vec<Vec<Vec<u8>>> = (0..4)
        .map(|list| {
            let flows = (0..100).map(|number| flow("10.0.1.2", list * 100 + number));
            flows.map(|packet| lab.arriving("in0", &packet).frame()).collect()
        })
        .collect();
    let outcomes = lab.race_all("in0", &lists);
    let sent = outcomes.iter().flatten().filter(|outcome| outcome.action == Action::Redirect).count();
    assert_eq!(sent, 100);
    assert_eq!(counted(&lab, "a"), (100, 100));
}
