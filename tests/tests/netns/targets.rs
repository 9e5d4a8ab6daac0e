//! What each target of a route does, and what happens without a route.

use std::time::{Duration, Instant};

use anyhow::Result;
use gateway_lab::{Rig, ask_http, ask_udp, server::Server, wire::Wire};

use super::{A_WHILE, source, with_one_pool};

const QUICK: [&str; 4] = ["curl", "-sS", "--max-time", "2"];

#[test]
fn without_a_route_nothing_leaves_and_every_packet_is_counted() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    let wires = [Wire::open(&rig.lab.isp, "eth_gw")?, Wire::open(&rig.lab.line, "eth_gw")?];
    rig.lab.c1.run(&["ping", "-c", "5", "-i", "0.1", "-W", "1", "203.0.113.10"])?.expect_failure()?;
    rig.lab.c1.run(&["ping", "-c", "3", "-i", "0.1", "-W", "1", "2001:db8:a::10"])?.expect_failure()?;
    for wire in wires {
        let heard = wire.collect(A_WHILE)?;
        assert!(!heard.iter().any(|frame| source(&frame.bytes) == Some([10, 0, 1, 2])));
    }
    assert_eq!(rig.daemon.drops("no_route")?, 8);
    Ok(())
}

#[test]
fn a_blackhole_is_silent() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    rig.daemon.tell("route add 203.0.113.20/32 via blackhole")?;
    let said = rig.lab.c1.run(&[&QUICK[..], &["http://203.0.113.20/"]].concat())?;
    assert_eq!(said.code, Some(28), "curl should run out of time: {said:?}");
    assert!(rig.daemon.drops("blackhole")? >= 1);
    // The rest of the network is reached as before.
    rig.lab.c1.ok(&["ping", "-c", "1", "-W", "2", "203.0.113.10"])?;
    Ok(())
}

#[test]
fn prohibit_tells_the_client_at_once() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    rig.daemon.tell("route add 203.0.113.20/32 via prohibit")?;
    let begin = Instant::now();
    let said = rig.lab.c1.run(&[&QUICK[..], &["http://203.0.113.20/"]].concat())?;
    assert_eq!(said.code, Some(7), "curl should be refused: {said:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "curl was refused after {:?}", begin.elapsed());
    let said = rig.lab.c1.run(&["ping", "-c", "1", "-W", "1", "203.0.113.20"])?.expect_failure()?;
    assert!(said.stdout.contains("Packet filtered"), "{}", said.stdout);
    assert!(rig.daemon.drops("prohibited")? >= 2);
    Ok(())
}

#[test]
fn direct_keeps_the_clients_address() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    rig.daemon.tell("route add 203.0.113.0/24 via direct")?;
    let _http = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), "10.0.1.2");
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    assert_eq!(ask_udp(&rig.lab.c2, "10.0.2.2:5000", "203.0.113.10:53")?.to_string(), "10.0.2.2:5000");
    let direct = r#"gateway_packets_total{direction="in",interface="eth_in2",verdict="direct"}"#;
    assert_eq!(rig.daemon.count(direct)?, 1);
    Ok(())
}

#[test]
fn gateway_sends_to_the_router_that_the_route_names() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    rig.daemon.tell("route add 192.0.2.10/32 via gateway 10.9.0.1 dev eth_line")?;
    let _server = Server::http(&rig.lab.web, "192.0.2.10:80".parse()?)?;
    let line = Wire::open(&rig.lab.line, "eth_gw")?;
    assert_eq!(ask_http(&rig.lab.c1, "192.0.2.10")?.ip().to_string(), "10.0.1.2");
    let carried =
        line.collect(A_WHILE)?.into_iter().filter(|frame| source(&frame.bytes) == Some([10, 0, 1, 2]));
    assert!(carried.count() >= 3, "the connection did not take the leased line");
    Ok(())
}

#[test]
fn host_leaves_the_packet_to_the_hosts_own_stack() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    rig.daemon.tell("route add 203.0.113.0/24 via host")?;
    rig.lab.gw.ok(&[
        "nft",
        "add table ip lab; add chain ip lab count { type filter hook forward priority 0; }; \
        add rule ip lab count ip saddr 10.0.1.2 counter",
    ])?;
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), "10.0.1.2");
    let rules = rig.lab.gw.ok(&["nft", "list", "table", "ip", "lab"])?;
    assert!(!rules.contains("packets 0 "), "the host's stack forwarded nothing: {rules}");
    Ok(())
}

#[test]
fn the_longest_prefix_wins() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    rig.daemon.tell("route add 203.0.113.16/28 via blackhole")?;
    rig.daemon.tell("route add 203.0.113.20/32 via direct")?;
    let _pool = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _direct = Server::http(&rig.lab.api, "203.0.113.20:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), "198.51.100.10");
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.20")?.ip().to_string(), "10.0.1.2");
    rig.daemon.tell("route del 203.0.113.20/32")?;
    rig.lab.c1.run(&[&QUICK[..], &["http://203.0.113.20/"]].concat())?.expect_failure()?;
    assert!(rig.daemon.drops("blackhole")? >= 1);
    Ok(())
}

#[test]
fn protocol_and_port_select_among_routes_of_one_prefix() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    rig.daemon.tell("pool add nat address 198.51.100.10")?;
    rig.daemon.tell("pool add dns address 198.51.100.11")?;
    rig.daemon.tell("route add 203.0.113.0/24 via pool nat proto tcp dport 80")?;
    rig.daemon.tell("route add 203.0.113.0/24 via pool dns proto udp dport 50-59")?;
    let _http = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _other = Server::http(&rig.lab.api, "203.0.113.10:8080".parse()?)?;
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), "198.51.100.10");
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?.ip().to_string(), "198.51.100.11");
    rig.lab.c1.run(&[&QUICK[..], &["http://203.0.113.10:8080/"]].concat())?.expect_failure()?;
    rig.lab.c1.run(&["ping", "-c", "1", "-W", "1", "203.0.113.10"])?.expect_failure()?;
    assert!(rig.daemon.drops("no_route")? >= 2);
    Ok(())
}

#[test]
fn a_table_serves_the_clients_that_are_bound_to_it() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    rig.daemon.tell("table add servers")?;
    rig.daemon.tell("route add 203.0.113.0/24 via direct table servers")?;
    rig.daemon.tell("table bind servers from 10.0.2.0/24")?;
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), "198.51.100.10");
    assert_eq!(ask_http(&rig.lab.c2, "203.0.113.10")?.ip().to_string(), "10.0.2.2");
    rig.daemon.tell("table unbind servers from 10.0.2.0/24")?;
    assert_eq!(ask_http(&rig.lab.c2, "203.0.113.10")?.ip().to_string(), "198.51.100.10");
    Ok(())
}

#[test]
fn ipv6_is_routed_by_the_same_rules() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    // The router of a new route may have to be asked for its MAC address first: one answer will do.
    let ping = |server: &str| rig.lab.c1.run(&["ping", "-6", "-c", "3", "-i", "0.2", "-W", "1", server]);
    rig.daemon.tell("route add 2001:db8:a::/64 via direct")?;
    rig.daemon.tell("route add 2001:db8:b::/64 via gateway 2001:db8:fe::1 dev eth_line")?;
    ping("2001:db8:a::10")?.ok()?;
    let line = Wire::open(&rig.lab.line, "eth_gw")?;
    ping("2001:db8:b::10")?.ok()?;
    assert!(line.collect(A_WHILE)?.iter().any(|frame| frame.bytes.get(12..14) == Some(&[0x86, 0xdd])));
    let _http = Server::http(&rig.lab.api, "[2001:db8:a::10]:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "[2001:db8:a::10]")?.ip().to_string(), "2001:db8:1::2");
    rig.daemon.tell("route add 2001:db8:a::10/128 via blackhole")?;
    ping("2001:db8:a::10")?.expect_failure()?;
    assert_eq!(rig.daemon.drops("blackhole")?, 3);
    rig.daemon.tell("route replace 2001:db8:a::10/128 via prohibit")?;
    let said = ping("2001:db8:a::10")?.expect_failure()?;
    assert!(said.stdout.contains("prohibited"), "{}", said.stdout);
    Ok(())
}
