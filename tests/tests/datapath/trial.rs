//! Trials: what `explain --live` is told, and that nobody notices.

use gateway_common::{DropReason, Verdict};
use gateway_tests::{
    gateway::Gateway,
    network::Network,
    packet::{ACK, Packet, RST, SYN, echo_request, tcp, udp},
    policy::Policy,
};
use gateway_user::dataplane::Tried;

use crate::support::{POOL, POOL6, nat, standard};

/// A gateway with all that a packet may leave a trace in.
fn gateway() -> Option<Gateway> {
    let network = Network::standard();
    let policy = nat(Policy::of(&network))
        .pool("nat", &format!("{POOL} {POOL6}"), "1024-65535")
        .limit("nat", 900, 900, 55_000)
        .limit_sources("clients", "10.0.0.0/8", "source", (100, 100, 1000))
        .eip("198.51.100.50", "10.0.1.3");
    let mut gateway = Gateway::start(network, &policy)?;
    for port in 4000..4010 {
        let syn = tcp(&format!("10.0.1.2:{port}"), "203.0.113.10:443", SYN);
        gateway.run("in0", &arriving(&gateway, "in0", &syn));
    }
    Some(gateway)
}

fn arriving(gateway: &Gateway, device: &str, packet: &Packet) -> Vec<u8> {
    let network = gateway.network();
    let way = network.way(packet.source).map_or(packet.source, |way| way.neighbor);
    packet.clone().macs(gateway_tests::network::mac(way), network.find(device).mac()).frame()
}

fn tried(gateway: &Gateway, device: &str, packet: &Packet) -> Tried {
    gateway.try_packet(device, &arriving(gateway, device, packet))
}

#[test]
fn a_trial_leaves_every_map_as_it_was() {
    let Some(gateway) = gateway() else { return };
    let packets = [
        ("in0", tcp("10.0.1.2:5000", "203.0.113.10:443", SYN)),
        ("in0", tcp("10.0.1.2:4000", "203.0.113.10:443", ACK)),
        ("in0", tcp("10.0.1.2:4001", "203.0.113.10:443", ACK | RST)),
        ("in0", tcp("10.0.1.2:4999", "203.0.113.10:443", ACK)),
        ("in0", udp("10.0.1.3:53", "203.0.113.11:53")),
        ("in0", udp("10.0.1.99:53", "203.0.113.11:53")),
        ("in0", echo_request("10.0.1.2", "203.0.113.10", 7)),
        ("in0", udp("10.0.3.2:53", "203.0.113.11:53")),
        ("in0", udp("10.0.1.2:53", "203.0.113.11:53").fragment(0, true)),
        ("in0", udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53")),
        ("out0", tcp("203.0.113.10:443", &format!("{POOL}:4000"), SYN | ACK)),
        ("out0", udp("203.0.113.10:53", &format!("{POOL}:53"))),
        ("out0", udp("203.0.113.10:53", "198.51.100.50:53")),
    ];
    let before = gateway.contents();
    assert!(before["SESSIONS_V4"].len() >= 10 && !before["DESTINATIONS"].is_empty());
    for (device, packet) in &packets {
        tried(&gateway, device, packet);
    }
    for (name, elements) in gateway.contents() {
        assert_eq!(elements, before[&name], "map {name}");
    }
}

#[test]
fn a_trial_says_what_becomes_of_a_new_flow() {
    let Some(gateway) = gateway() else { return };
    let tried = tried(&gateway, "in0", &tcp("10.0.1.2:5000", "203.0.113.10:443", SYN));
    assert_eq!((tried.verdict, tried.reason, tried.opens), (Verdict::Snat, None, true));
    assert_eq!(tried.egress.as_deref(), Some("out0"));
    assert_eq!(tried.frame[26..30], [198, 51, 100, 10]);
    let routes: Vec<String> = tried.routes.iter().map(|(table, key)| format!("{table} {key}")).collect();
    assert_eq!(routes, ["main 0.0.0.0/0"]);
}

#[test]
fn a_trial_knows_the_sessions_that_there_are() {
    let Some(gateway) = gateway() else { return };
    let answer = tried(&gateway, "out0", &tcp("203.0.113.10:443", &format!("{POOL}:4000"), SYN | ACK));
    assert_eq!((answer.verdict, answer.opens), (Verdict::Reply, false));
    assert_eq!(answer.frame[30..34], [10, 0, 1, 2]);
    let stray = tried(&gateway, "out0", &tcp("203.0.113.10:443", &format!("{POOL}:9"), SYN | ACK));
    assert_eq!(stray.reason, Some(DropReason::NoSession));
}

#[test]
fn a_trial_finds_no_port_where_there_is_none() {
    let Some(mut lab) = standard(|policy| nat(policy).pool("nat", &format!("{POOL} {POOL6}"), "5000-5000"))
    else {
        return;
    };
    lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    let other = tcp("10.0.1.3:4000", "203.0.113.10:443", SYN);
    let gateway = lab.gateway();
    assert_eq!(tried(gateway, "in0", &other).reason, Some(DropReason::PoolExhausted));
    let elsewhere = tcp("10.0.1.3:4000", "203.0.113.11:443", SYN);
    assert_eq!(tried(gateway, "in0", &elsewhere).verdict, Verdict::Snat);
}
