//! A proxy whose host is a router: it forwards what it gets, with the addresses that it has.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{Rig, UdpClient, ask_http, ask_udp, server::Server};

/// Clients go through p1, and p1 out through a pool.
const THROUGH_P1: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:ff::10"]
[[proxy]]
name = "p1"
hosts = ["10.0.3.2"]
[[table]]
name = "main"
routes = [{ to = "0.0.0.0/0", via = "proxy p1" }, { to = "::/0", via = "proxy p1" }]
[[table]]
name = "beyond"
bind = ["10.0.3.2/32"]
routes = [{ to = "0.0.0.0/0", via = "pool nat" }, { to = "::/0", via = "pool nat" }]
"#;
const POOL: &str = "198.51.100.10";
const POOL6: &str = "2001:db8:ff::10";

/// A gateway whose proxy host is a router.
fn with_a_router() -> Result<Option<Rig>> {
    let Some(rig) = Rig::start("active", THROUGH_P1)? else { return Ok(None) };
    rig.lab.p1.sysctl("net.ipv4.ip_forward", "1")?;
    rig.lab.p1.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    for family in ["ipv4", "ipv6"] {
        let _absent_for_ipv6 = rig.lab.p1.sysctl(&format!("net.{family}.conf.all.send_redirects"), "0");
    }
    rig.lab.p1.sysctl("net.ipv4.conf.eth0.send_redirects", "0")?;
    Ok(Some(rig))
}

/// Packets that p1 has forwarded from clients and to them.
fn forwarded(rig: &Rig, what: &str) -> Result<u64> {
    let rules = rig.lab.p1.ok(&["nft", "list", "chain", "inet", "count", "forward"])?;
    let rule = rules.lines().find(|rule| rule.contains(what)).context("no such rule")?;
    let packets =
        rule.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).context("no count")?;
    Ok(packets.parse()?)
}

#[test]
fn a_router_in_the_middle_sees_both_directions() -> Result<()> {
    let Some(rig) = with_a_router()? else { return Ok(()) };
    for words in [
        "add table inet count",
        "add chain inet count forward { type filter hook forward priority 0 ; }",
        "add rule inet count forward udp dport 53 counter",
        "add rule inet count forward udp sport 53 counter",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        rig.lab.p1.ok(&[&["nft"], &words[..]].concat())?;
    }
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let _udp6 = Server::udp(&rig.lab.api, "[2001:db8:a::10]:53".parse()?)?;
    let _web = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?.to_string(), format!("{POOL}:5000"));
    let six = UdpClient::new(&rig.lab.c1, "[2001:db8:1::2]:5000")?;
    assert_eq!(six.ask("[2001:db8:a::10]:53")?.to_string(), format!("[{POOL6}]:5000"));
    assert!(forwarded(&rig, "dport 53")? >= 2);
    assert!(forwarded(&rig, "sport 53")? >= 2);
    assert_eq!(ask_http(&rig.lab.c2, "203.0.113.10")?.ip().to_string(), POOL);
    // Whole datagrams and such in fragments, both ways.
    for (server, size) in [
        ("203.0.113.10", "56"),
        ("203.0.113.10", "4000"),
        ("2001:db8:a::10", "56"),
        ("2001:db8:a::10", "4000"),
    ] {
        rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", size, server])?;
    }
    // What p1 says itself is its own.
    assert_eq!(ask_http(&rig.lab.p1, "203.0.113.10")?.ip().to_string(), POOL);
    assert_eq!(rig.daemon.drops("spoofed_source")?, 0);
    Ok(())
}

#[test]
fn a_host_that_gets_another_mac_address_is_found_again() -> Result<()> {
    let Some(rig) = with_a_router()? else { return Ok(()) };
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    client.ask("203.0.113.10:53")?;
    rig.lab.p1.ip(&["link", "set", "eth0", "address", "02:00:00:00:03:99"])?;
    // It speaks, so that the gateway's host learns where it is.
    rig.lab.p1.run(&["ping", "-c", "1", "-W", "1", "10.0.3.1"])?;
    sleep(Duration::from_secs(1));
    client.ask("203.0.113.10:53")?;
    Ok(())
}
