//! Hosts of proxies that come and go.

use gateway_common::{
    DropReason::{NoSession, ProxyDown},
    Verdict::{Direct, Proxy, Reply, Snat},
};
use gateway_tests::{
    gateway::Action,
    network::mac,
    packet::{ACK, Packet, SYN, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, POOL6, ROUTER, dropped, reset, sent, standard};

const ALL: &str = "0.0.0.0/0";
/// Behind in1 and in0.
const HOSTS: [&str; 2] = ["10.0.3.2", "10.0.1.3"];
const DEVICES: [&str; 2] = ["in1", "in0"];

fn two_hosts(fail: &str) -> impl FnOnce(Policy) -> Policy {
    let fail = fail.to_owned();
    move |policy| {
        policy
            .pool("nat", &format!("{POOL} {POOL6}"), "1024-65535")
            .proxy("other", "10.0.1.254", "closed")
            .proxy("squid", &HOSTS.join(" "), &fail)
            .routes("0.0.0.0/0 via proxy squid")
    }
}

/// Lets a packet pass and says to which of the hosts it went.
#[track_caller]
fn went_to(lab: &mut Lab, packet: &Packet) -> usize {
    let frame = lab.prepare("in0", packet).frame;
    let host = HOSTS.iter().position(|host| frame[..6] == mac(ip(host)));
    host.unwrap_or_else(|| panic!("to no host: {frame:?}"))
}

/// A datagram to another server for each number.
fn query(number: u8) -> Packet {
    udp("10.0.1.2:4000", &format!("203.0.113.{number}:53"))
}

#[test]
fn flows_are_shared_out_and_all_flows_of_two_hosts_meet_one() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let mut flows = [0; 2];
    for number in 1..=60 {
        let host = went_to(&mut lab, &query(number));
        flows[host] += 1;
        let other = tcp("10.0.1.2:9", &format!("203.0.113.{number}:80"), SYN);
        assert_eq!(went_to(&mut lab, &other), host);
    }
    assert!(flows.iter().all(|flows| *flows > 10), "{flows:?}");
}

#[test]
fn new_flows_avoid_a_host_that_is_down_and_flows_of_others_stay() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let before: Vec<usize> = (1..=40).map(|number| went_to(&mut lab, &query(number))).collect();
    lab.health("squid", HOSTS[0], false);
    for (number, host) in (1..=40).zip(&before) {
        let other = udp("10.0.1.2:5000", &format!("203.0.113.{number}:53"));
        assert_eq!(went_to(&mut lab, &other), 1);
        if *host == 1 {
            assert_eq!(went_to(&mut lab, &query(number)), 1);
        }
    }
    lab.health("squid", HOSTS[0], true);
    for (number, host) in (1..=40).zip(&before) {
        let other = udp("10.0.1.2:6000", &format!("203.0.113.{number}:53"));
        assert_eq!(went_to(&mut lab, &other), *host);
    }
}

#[test]
fn a_datagram_or_a_syn_of_a_session_whose_host_is_down_goes_to_another_host_at_once() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let number =
        (1..=200).find(|number| went_to(&mut lab, &query(*number)) == 0).expect("a flow of the first");
    let syn = tcp("10.0.1.2:4000", &format!("203.0.113.{number}:443"), SYN);
    assert_eq!(went_to(&mut lab, &syn), 0);
    let sessions = lab.sessions().len();
    lab.health("squid", HOSTS[0], false);
    for packet in [query(number), syn.clone()] {
        for _ in 0..2 {
            lab.check("in0", &packet, sent(DEVICES[1], HOSTS[1], Proxy, &packet).by(ALL, "proxy"));
        }
    }
    assert_eq!(lab.sessions().len(), sessions);
    // Answers of the other host are those of the session.
    let answer = udp(&format!("203.0.113.{number}:53"), "10.0.1.2:4000");
    let from_host = answer.clone().macs(mac(ip(HOSTS[1])), lab.network().find("in0").mac());
    let expected = sent("in0", "10.0.1.2", Reply, &answer).by(ALL, "proxy");
    lab.check("in0", &from_host, expected);
    // What the sessions have left behind goes.
    lab.sweep_all();
    assert_eq!(lab.elements(), 2 * sessions);
    let (created, removed, left) = lab.session_balance();
    assert_eq!(created - removed, left as u64);
}

#[test]
fn a_segment_of_a_connection_whose_host_is_down_is_answered_by_a_reset() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let connection = |number: u8, flags| tcp("10.0.1.2:4000", &format!("203.0.113.{number}:443"), flags);
    let on = |lab: &mut Lab, host| {
        (1..=200).find(|number| went_to(lab, &connection(*number, SYN)) == host).expect("a flow")
    };
    let (first, second) = (on(&mut lab, 0), on(&mut lab, 1));
    lab.health("squid", HOSTS[0], false);
    lab.check("in0", &connection(first, ACK), reset(NoSession));
    let other = connection(second, ACK);
    lab.check("in0", &other, sent(DEVICES[1], HOSTS[1], Proxy, &other).by(ALL, "proxy"));
    // It begins anew.
    let syn = connection(first, SYN);
    lab.check("in0", &syn, sent(DEVICES[1], HOSTS[1], Proxy, &syn).by(ALL, "proxy"));
}

#[test]
fn a_drained_host_keeps_its_flows_and_gets_no_new_ones() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let number =
        (1..=200).find(|number| went_to(&mut lab, &query(*number)) == 0).expect("a flow of the first");
    lab.change(|policy| policy.drain_hosts("squid", HOSTS[0]));
    assert_eq!(went_to(&mut lab, &query(number)), 0);
    let other = udp("10.0.1.2:5000", &format!("203.0.113.{number}:53"));
    assert_eq!(went_to(&mut lab, &other), 1);
}

#[test]
fn a_host_that_is_removed_is_as_one_that_is_down_and_finds_its_flows_when_it_returns() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let number =
        (1..=200).find(|number| went_to(&mut lab, &query(*number)) == 0).expect("a flow of the first");
    let stays =
        (1..=200).find(|number| went_to(&mut lab, &query(*number)) == 1).expect("a flow of the second");
    let idle = udp("10.0.1.2:7000", &format!("203.0.113.{number}:53"));
    assert_eq!(went_to(&mut lab, &idle), 0);
    lab.change(|policy| policy.proxy("squid", HOSTS[1], "closed"));
    assert_eq!(went_to(&mut lab, &query(number)), 1);
    assert_eq!(went_to(&mut lab, &query(stays)), 1);
    lab.change(|policy| policy.proxy("squid", &HOSTS.join(" "), "closed"));
    assert_eq!(went_to(&mut lab, &idle), 0);
    assert_eq!(went_to(&mut lab, &query(number)), 1);
}

#[test]
fn without_a_host_a_proxy_that_fails_closed_drops() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let host = went_to(&mut lab, &query(1));
    for host in HOSTS {
        lab.health("squid", host, false);
    }
    lab.check("in0", &query(2), dropped(ProxyDown).by(ALL, "proxy"));
    lab.check("in0", &query(1), dropped(ProxyDown).by(ALL, "proxy"));
    // The session waits for its host.
    lab.health("squid", HOSTS[host], true);
    assert_eq!(went_to(&mut lab, &query(1)), host);
}

#[test]
fn without_a_host_a_proxy_may_let_flows_go_direct() {
    let Some(mut lab) = standard(two_hosts("direct")) else { return };
    for host in HOSTS {
        lab.health("squid", host, false);
    }
    lab.check("in0", &query(1), sent("out0", ROUTER, Direct, &query(1)).by(ALL, "proxy"));
}

#[test]
fn without_a_host_a_proxy_may_let_flows_go_through_a_pool() {
    let Some(mut lab) = standard(two_hosts("pool nat")) else { return };
    for host in HOSTS {
        lab.health("squid", host, false);
    }
    let expected = sent("out0", ROUTER, Snat, &query(1).from("198.51.100.10:4000"));
    lab.check("in0", &query(1), expected.by(ALL, "proxy").opening("udp", POOL));
    lab.check(
        "in0",
        &query(1),
        sent("out0", ROUTER, Snat, &query(1).from("198.51.100.10:4000")).by(ALL, "proxy"),
    );
}

#[test]
fn without_a_host_another_proxy_may_stand_in() {
    let Some(mut lab) = standard(two_hosts("proxy other")) else { return };
    for host in HOSTS {
        lab.health("squid", host, false);
    }
    let opening = sent("in0", "10.0.1.254", Proxy, &query(1)).by(ALL, "proxy");
    lab.check("in0", &query(1), opening.counting("sessions udp created"));
    lab.health("other", "10.0.1.254", false);
    lab.check("in0", &query(2), dropped(ProxyDown).by(ALL, "proxy"));
}

#[test]
fn the_sessions_of_each_host_are_counted_through_every_move() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    let before: Vec<usize> = (1..=30).map(|number| went_to(&mut lab, &query(number))).collect();
    let first = before.iter().filter(|host| **host == 0).count() as u64;
    assert_eq!(HOSTS.map(|host| lab.flows(host)), [first, 30 - first]);
    lab.health("squid", HOSTS[0], false);
    for number in 1..=30 {
        assert_eq!(went_to(&mut lab, &query(number)), 1);
    }
    assert_eq!(HOSTS.map(|host| lab.flows(host)), [0, 30]);
    lab.change(|policy| policy.routes("203.0.113.0/28 via blackhole"));
    for number in 1..=30 {
        lab.prepare("in0", &query(number));
    }
    lab.sweep_until_cut_are_gone();
    assert_eq!(HOSTS.map(|host| lab.flows(host)), [0, 15]);
    assert_eq!(lab.elements(), 30);
}

#[test]
fn packets_of_one_flow_on_several_cpus_open_one_session_and_none_is_lost() {
    let Some(mut lab) = standard(two_hosts("closed")) else { return };
    for number in 1..=20 {
        let frames = vec![lab.arriving("in0", &query(number)).frame(); 4];
        for outcome in lab.race("in0", &frames) {
            assert!(matches!(outcome.action, Action::Redirect | Action::Tx), "{outcome:?}");
        }
    }
    assert_eq!(lab.session_balance(), (20, 0, 20));
    assert_eq!(lab.elements(), 40);
    // And move it once.
    lab.health("squid", HOSTS[0], false);
    for number in 1..=20 {
        let frames = vec![lab.arriving("in0", &query(number)).frame(); 4];
        lab.race("in0", &frames);
        assert_eq!(went_to(&mut lab, &query(number)), 1);
    }
    assert_eq!(HOSTS.map(|host| lab.flows(host)), [0, 20]);
    lab.sweep_all();
    assert_eq!(lab.elements(), 40);
}
