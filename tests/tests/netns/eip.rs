//! EIPs: an inside host that the outside knows by an address of its own.

use std::time::Duration;

use anyhow::Result;
use gateway_lab::{Rig, UdpClient, ask_http, ask_udp, server::Server, wire::Wire};

use super::{A_WHILE, source};

const TWO_EIPS: &str = r#"
[[eip]]
address = "198.51.100.10"
host = "10.0.1.2"
[[eip]]
address = "198.51.100.11"
host = "10.0.2.2"
[[eip]]
address = "2001:db8:ff::10"
host = "2001:db8:1::2"
[[table]]
name = "main"
routes = [
  { to = "203.0.113.0/24", via = "eip" },
  { to = "198.51.100.0/24", via = "eip" },
  { to = "2001:db8::/32", via = "eip" },
]
"#;
const EIP: &str = "198.51.100.10";
const EIP6: &str = "2001:db8:ff::10";

fn with_two_eips() -> Result<Option<Rig>> {
    Rig::start("active", TWO_EIPS)
}

#[test]
fn a_host_speaks_as_its_eip() -> Result<()> {
    let Some(rig) = with_two_eips()? else { return Ok(()) };
    let _web = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let _udp6 = Server::udp(&rig.lab.api, "[2001:db8:a::10]:53".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), EIP);
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?.to_string(), format!("{EIP}:5000"));
    let six = UdpClient::new(&rig.lab.c1, "[2001:db8:1::2]:5000")?;
    assert_eq!(six.ask("[2001:db8:a::10]:53")?.to_string(), format!("[{EIP6}]:5000"));
    rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "203.0.113.10"])?;
    rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "2001:db8:a::10"])?;
    // Larger than any packet: fragments, both ways.
    rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", "4000", "203.0.113.10"])?;
    rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", "4000", "2001:db8:a::10"])?;
    // p1 has none.
    rig.lab.p1.run(&["ping", "-c", "1", "-W", "1", "203.0.113.10"])?.expect_failure()?;
    assert_eq!(rig.daemon.drops("no_eip")?, 1);
    Ok(())
}

#[test]
fn a_server_on_an_inside_host_is_reached_by_its_eip() -> Result<()> {
    let Some(rig) = with_two_eips()? else { return Ok(()) };
    let _web = Server::http(&rig.lab.c1, "10.0.1.2:80".parse()?)?;
    let _web6 = Server::http(&rig.lab.c1, "[2001:db8:1::2]:80".parse()?)?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    // The server tells who asked: the outside is not translated.
    assert_eq!(ask_http(&rig.lab.api, EIP)?.ip().to_string(), "203.0.113.10");
    assert_eq!(ask_http(&rig.lab.api, &format!("[{EIP6}]"))?.ip().to_string(), "2001:db8:a::10");
    for address in [EIP, EIP6] {
        rig.lab.api.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", address])?;
        rig.lab.api.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", "4000", address])?;
    }
    // Nothing listens there, and the client hears of it: a reset for TCP, an ICMP error for UDP.
    let refused = ["curl", "-sS", "--max-time", "3", "http://198.51.100.10:81/"];
    assert_eq!(rig.lab.api.run(&refused)?.code, Some(7));
    let udp = rig.lab.api.enter(|| -> Result<_> {
        let socket = std::net::UdpSocket::bind("203.0.113.10:6000")?;
        socket.connect("198.51.100.10:9")?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send(b"anybody?")?;
        Ok(socket.recv(&mut [0; 16]).map_err(|error| error.kind()))
    })??;
    assert_eq!(udp, Err(std::io::ErrorKind::ConnectionRefused));
    let private = |address: &[u8; 4]| address[0] == 10;
    let leaked = wire.collect(A_WHILE)?.into_iter().filter(|frame| !frame.sent);
    assert_eq!(leaked.filter(|frame| source(&frame.bytes).as_ref().is_some_and(private)).count(), 0);
    Ok(())
}

#[test]
fn arp_for_an_eip_is_answered_while_there_is_one() -> Result<()> {
    let Some(rig) = with_two_eips()? else { return Ok(()) };
    let neighbour = |rig: &Rig| rig.lab.isp.ip(&["neighbour", "show", EIP]);
    rig.lab.isp.ok(&["ping", "-c", "1", "-W", "2", EIP])?;
    assert!(neighbour(&rig)?.contains(&rig.lab.gw.mac("eth_out")?));
    rig.daemon.tell("eip del 198.51.100.10")?;
    rig.lab.isp.ip(&["neighbour", "flush", "to", EIP])?;
    rig.lab.isp.run(&["ping", "-c", "1", "-W", "1", EIP])?.expect_failure()?;
    assert!(!neighbour(&rig)?.contains(&rig.lab.gw.mac("eth_out")?));
    Ok(())
}

#[test]
fn traceroute_shows_every_hop_to_and_from_an_eip() -> Result<()> {
    let Some(rig) = with_two_eips()? else { return Ok(()) };
    // TTLs by hand, so that no tool is needed: 2 dies at the provider, which is behind the gateway.
    let out = rig.lab.c1.run(&["ping", "-c", "1", "-W", "2", "-t", "2", "203.0.113.10"])?;
    assert!(
        out.stdout.contains("From 198.51.100.1 ") && out.stdout.contains("Time to live exceeded"),
        "{out:?}"
    );
    let near = rig.lab.c1.run(&["ping", "-c", "1", "-W", "2", "-t", "1", "203.0.113.10"])?;
    assert!(near.stdout.contains("From 10.0.1.1 "), "{near:?}");
    let back = rig.lab.api.run(&["ping", "-c", "1", "-W", "2", "-t", "2", EIP])?;
    assert!(back.stdout.contains("From 198.51.100.2 "), "{back:?}");
    Ok(())
}

#[test]
fn inside_hosts_reach_each_other_by_their_eips() -> Result<()> {
    let Some(rig) = with_two_eips()? else { return Ok(()) };
    let _web = Server::http(&rig.lab.c2, "10.0.2.2:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "198.51.100.11")?.ip().to_string(), EIP);
    rig.lab.c2.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", EIP])?;
    Ok(())
}

#[test]
fn what_is_taken_away_is_cut_at_once() -> Result<()> {
    let Some(rig) = with_two_eips()? else { return Ok(()) };
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    assert_eq!(client.ask("203.0.113.10:53")?.to_string(), format!("{EIP}:5000"));
    rig.daemon.tell("eip del 198.51.100.10")?;
    assert!(client.ask("203.0.113.10:53").is_err());
    rig.daemon.tell("eip add 198.51.100.10 host 10.0.1.2")?;
    assert_eq!(client.ask("203.0.113.10:53")?.to_string(), format!("{EIP}:5000"));
    rig.daemon.tell("route del 203.0.113.0/24")?;
    assert!(client.ask("203.0.113.10:53").is_err());
    rig.lab.api.run(&["ping", "-c", "1", "-W", "1", EIP])?.expect_failure()?;
    Ok(())
}
