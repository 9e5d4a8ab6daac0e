//! Changes of policy under live flows: in force for the next packet.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::atomic::Ordering::SeqCst};

use gateway_common::{
    DropReason::{Blackhole, NoRoute, NoSession, Prohibited, SpoofedSource},
    Verdict::{Reply, Snat},
};
use gateway_tests::{
    gateway::Action,
    packet::{ACK, BROADCAST_MAC, Packet, SYN, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{
    Expected, Lab, POOL, POOL6, ROUTER, dropped, nat, passed, refused, reset, sent, snat, standard,
    translated,
};

const ALL: &str = "0.0.0.0/0";

/// A query with an established session, and its answer.
fn established(lab: &mut Lab) -> (Packet, Packet) {
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    let answer = udp("203.0.113.10:53", "198.51.100.10:4000");
    lab.open("in0", &query);
    lab.prepare("out0", &answer);
    (query, answer)
}

fn forth(query: &Packet, route: &'static str, target: &'static str) -> Expected {
    sent("out0", ROUTER, Snat, &query.clone().from("198.51.100.10:4000")).by(route, target)
}

fn back(answer: &Packet, route: &'static str, target: &'static str) -> Expected {
    sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:4000")).by(route, target)
}

#[test]
fn an_unrelated_change_leaves_sessions_alone() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(|policy| policy.routes("192.0.2.128/25 via blackhole"));
    lab.check("in0", &query, forth(&query, ALL, "pool"));
    lab.check("out0", &answer, back(&answer, ALL, "pool"));
}

#[test]
fn a_change_of_several_prefixes_comes_into_force_with_one_word() {
    let Some(mut lab) = snat() else { return };
    let word = lab.config().policy.bindings();
    lab.change(|policy| policy.routes("203.0.113.10/32 via blackhole"));
    assert_eq!(lab.config().policy.bindings(), word, "one element is replaced where it is");
    lab.change(|policy| policy.routes("203.0.113.20/32 via blackhole\n203.0.113.21/32 via blackhole"));
    assert_eq!(
        lab.config().policy.bindings(),
        1 - word,
        "a packet between two elements would see half of the change"
    );
    for host in [20, 21] {
        let packet = udp("10.0.1.2:4000", &format!("203.0.113.{host}:53"));
        let prefix = if host == 20 { "203.0.113.20/32" } else { "203.0.113.21/32" };
        lab.check("in0", &packet, dropped(Blackhole).by(prefix, "blackhole"));
    }
}

#[test]
fn an_eip_and_a_route_change_with_one_word() {
    // One prefix, which would be replaced in place if it changed alone, and two.
    for prefixes in [&["203.0.113.10/32"][..], &["203.0.113.10/32", "203.0.113.11/32"]] {
        let routes = |target: &str| {
            prefixes.iter().map(|prefix| format!("{prefix} via {target}")).collect::<Vec<_>>().join("\n")
        };
        let before = |policy: Policy| policy.eip("198.51.100.50", "10.0.1.2").routes(&routes("eip"));
        let Some(mut lab) = standard(before) else { return };
        let after = lab
            .policy()
            .without_eip("198.51.100.50")
            .eip("198.51.100.51", "10.0.1.2")
            .routes(&routes("direct"));
        let policies = [&after, &lab.policy()];
        let frame = lab.arriving("in0", &udp("10.0.1.2:4000", "203.0.113.10:53")).frame();
        let mut seen = BTreeSet::new();
        lab.while_changing(policies, |run, begun| {
            while begun.load(SeqCst) < 80 {
                let outcome = run("in0", &frame);
                assert_eq!(outcome.action, Action::Redirect, "a route without its EIP");
                seen.insert(translated(&outcome.frame).0);
            }
        });
        let both = BTreeSet::from([ip("198.51.100.50"), ip("10.0.1.2")]);
        assert_eq!(seen, both, "the new EIP by the old route, or one of the policies only");
    }
}

#[test]
fn a_large_table_comes_into_force_with_one_word() {
    const PREFIXES: u32 = 30_000;
    let Some(mut lab) = standard(|policy| nat(policy).prefixes(PREFIXES + 1)) else { return };
    let (query, answer) = established(&mut lab);
    let blocked = |target: &str| -> String {
        let line = |number| format!("{}/32 via {target}", Ipv4Addr::from(0xcb00_7800 + number));
        (0..PREFIXES).map(line).collect::<Vec<_>>().join("\n")
    };
    let word = lab.config().policy.bindings();
    lab.change(|policy| policy.routes(&blocked("blackhole")));
    assert_eq!(lab.config().policy.bindings(), 1 - word);
    // The last has no counter of its own: there are more routes than counters.
    let last = udp("10.0.1.2:4000", "203.0.237.47:53");
    lab.check("in0", &last, dropped(Blackhole).by_shared("main", "blackhole"));
    lab.check("in0", &query, forth(&query, ALL, "pool"));
    lab.check("out0", &answer, back(&answer, ALL, "pool"));
    lab.change(|policy| {
        policy.without_routes().routes("0.0.0.0/0 via pool nat\n203.0.237.47/32 via prohibit")
    });
    // What was given back rests until the change after that.
    lab.check("in0", &last, refused(Prohibited).by_shared("main", "prohibit"));
}

#[test]
fn a_deleted_route_cuts_its_sessions() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(Policy::without_routes);
    lab.check("in0", &query, dropped(NoRoute));
    lab.check("out0", &answer, dropped(NoSession));
    lab.check("in0", &query, dropped(NoRoute));
    assert_eq!(lab.sessions(), [], "a session that was cut is not shown");
}

#[test]
fn a_deleted_route_cuts_its_sessions_also_when_a_reply_comes_first() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(Policy::without_routes);
    lab.check("out0", &answer, dropped(NoRoute));
    lab.check("out0", &answer, dropped(NoSession));
    lab.check("in0", &query, dropped(NoRoute));
}

#[test]
fn a_route_that_denies_cuts_its_sessions() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    let tcp_query = tcp("10.0.1.2:4000", "203.0.113.11:443", SYN);
    lab.open("in0", &tcp_query);
    lab.change(|policy| policy.routes("203.0.113.10/32 via blackhole\n203.0.113.11/32 via prohibit"));
    lab.check("in0", &query, dropped(Blackhole).by("203.0.113.10/32", "blackhole"));
    lab.check("out0", &answer, dropped(NoSession));
    let segment = tcp_query.flags(ACK);
    lab.check("in0", &segment, reset(Prohibited).by("203.0.113.11/32", "prohibit"));
    lab.check("in0", &segment, reset(Prohibited).by("203.0.113.11/32", "prohibit"));
}

#[test]
fn a_session_that_was_cut_can_begin_anew_after_the_sweep() {
    let Some(mut lab) = snat() else { return };
    let (query, _) = established(&mut lab);
    lab.change(Policy::without_routes);
    lab.check("in0", &query, dropped(NoRoute));
    lab.change(nat);
    // Its elements are in the way until then.
    lab.check("in0", &query, dropped(NoSession).by(ALL, "pool"));
    let before = lab.counters();
    lab.sweep_all();
    let swept = lab.counters().since(&before);
    assert_eq!(swept.to_string(), "  pool nat 198.51.100.10 closed: 1\n  sessions udp killed: 1\n");
    lab.check("in0", &query, forth(&query, ALL, "pool").opening("udp", POOL));
}

#[test]
fn a_session_stays_on_its_pool_when_the_route_moves_to_another() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(|policy| {
        policy.pool("other", "198.51.100.20", "1024-65535").routes("203.0.113.0/24 via pool other")
    });
    lab.check("in0", &query, forth(&query, "203.0.113.0/24", "pool"));
    lab.check("out0", &answer, back(&answer, "203.0.113.0/24", "pool"));
    let another = udp("10.0.1.2:4001", "203.0.113.10:53");
    let expected = sent("out0", ROUTER, Snat, &another.clone().from("198.51.100.20:4001"));
    lab.check(
        "in0",
        &another,
        expected.by("203.0.113.0/24", "pool").opening_in("other", "udp", "198.51.100.20"),
    );
}

#[test]
fn a_session_stays_on_its_pool_when_the_route_becomes_direct_gateway_or_host() {
    for target in ["direct", "gateway 192.0.2.2", "host"] {
        let Some(mut lab) = snat() else { return };
        let (query, answer) = established(&mut lab);
        lab.change(|policy| policy.routes(&format!("203.0.113.0/24 via {target}")));
        let kind = target.split(' ').next().expect("a word");
        let (query_sent, answer_sent) =
            (forth(&query, "203.0.113.0/24", kind), back(&answer, "203.0.113.0/24", kind));
        lab.check("in0", &query, query_sent);
        lab.check("out0", &answer, answer_sent);
    }
}

#[test]
fn a_session_whose_address_left_its_pool_is_cut() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(|policy| policy.pool("nat", &format!("198.51.100.11 {POOL6}"), "1024-65535"));
    lab.check("in0", &query, dropped(NoSession));
    // The address is nobody's any more, and the way to it leads back to the outside.
    lab.check("out0", &answer, passed());
}

#[test]
fn a_session_keeps_its_port_when_the_range_of_its_pool_shrinks() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(|policy| policy.pool("nat", &format!("{POOL} {POOL6}"), "50000-50001"));
    lab.check("in0", &query, forth(&query, ALL, "pool"));
    lab.check("out0", &answer, back(&answer, ALL, "pool"));
}

#[test]
fn a_binding_moves_sessions_to_its_table() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    let denied = |policy: Policy| policy.table("none", &["10.0.1.2/32 iif in0"], "0.0.0.0/0 via prohibit");
    lab.change(denied);
    lab.check("out0", &answer, refused(Prohibited).by_table("none", ALL, "prohibit"));
    lab.check("in0", &query, refused(Prohibited).by_table("none", ALL, "prohibit"));
}

#[test]
fn a_session_is_of_the_interface_it_was_opened_from() {
    let Some(mut lab) = snat() else { return };
    let (query, _) = established(&mut lab);
    lab.check("in1", &query, dropped(SpoofedSource));
    lab.change(|policy| policy.routes("192.0.2.128/25 via blackhole"));
    lab.check("in1", &query, dropped(SpoofedSource));
    lab.check("in0", &query, forth(&query, ALL, "pool"));
}

#[test]
fn an_inactive_gateway_leaves_sessions_to_the_host_and_takes_them_up_again() {
    let Some(mut lab) = snat() else { return };
    let (query, answer) = established(&mut lab);
    lab.change(Policy::inactive);
    lab.check("in0", &query, passed());
    lab.check("out0", &answer, passed());
    lab.change(Policy::active);
    lab.check("in0", &query, forth(&query, ALL, "pool"));
    lab.check("out0", &answer, back(&answer, ALL, "pool"));
}

#[test]
fn a_packet_of_a_session_in_a_broadcast_frame_is_not_forwarded() {
    let Some(mut lab) = snat() else { return };
    let (query, _) = established(&mut lab);
    let broadcast = query.macs([2, 4, 10, 0, 1, 2], BROADCAST_MAC);
    lab.check("in0", &broadcast, passed());
    lab.change(|policy| policy.routes("192.0.2.128/25 via blackhole"));
    lab.check("in0", &broadcast, passed());
}
