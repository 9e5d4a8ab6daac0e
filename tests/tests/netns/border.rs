//! The border table: replies that come back by way of a router of the inside.

use std::{net::TcpStream, time::Duration};

use anyhow::{Result, ensure};
use gateway_lab::{Rig, UdpClient, ask_http, server::Server, wait_until};

use super::{
    change::{echo, echo_connection},
    walk::{Seen, routes_and_counts, seen},
};

/// c1 leaves through a pool, c2 as it is, and `p1`, which is no host of a proxy, has what comes back.
const LED_BY_P1: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:ff::10"]
[[table]]
name = "main"
routes = [{ to = "0.0.0.0/0", via = "pool nat" }, { to = "::/0", via = "pool nat" }]
[[table]]
name = "plain"
bind = ["10.0.2.0/24", "2001:db8:2::/64"]
routes = [{ to = "0.0.0.0/0", via = "direct" }, { to = "::/0", via = "direct" }]
[[table]]
name = "return"
kind = "border"
routes = [
  { to = "10.0.1.0/24", via = "gateway 10.0.3.2" },
  { to = "10.0.2.0/24", via = "gateway 10.0.3.2" },
  { to = "2001:db8:1::/64", via = "gateway 2001:db8:3::2" },
  { to = "2001:db8:2::/64", via = "gateway 2001:db8:3::2" },
]
"#;
const SOON: Duration = Duration::from_secs(10);

fn led() -> Result<Option<Rig>> {
    let Some(rig) = Rig::start("active", LED_BY_P1)? else { return Ok(None) };
    routes_and_counts(&rig)?;
    Ok(Some(rig))
}

#[test]
fn replies_reach_clients_by_way_of_a_router_that_is_no_proxy() -> Result<()> {
    let Some(rig) = led()? else { return Ok(()) };
    let lab = &rig.lab;
    for address in ["203.0.113.10", "[2001:db8:a::10]"] {
        let _udp = Server::udp(&lab.api, format!("{address}:53").parse()?)?;
        let _web = Server::http(&lab.api, format!("{address}:80").parse()?)?;
        let pool = if address.starts_with('[') { "2001:db8:ff::10" } else { "198.51.100.10" };
        let own = if address.starts_with('[') { "2001:db8:2::2" } else { "10.0.2.2" };
        for (client, expected) in [(&lab.c1, pool), (&lab.c2, own)] {
            assert_eq!(ask_http(client, address)?.ip().to_string(), expected);
            let file = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"];
            let url = format!("http://{address}/2000000");
            assert_eq!(client.ok(&[&file[..], &[&url]].concat())?, "2000000");
            for size in ["56", "4000"] {
                let server = address.trim_matches(['[', ']']);
                client.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", size, server])?;
            }
        }
        let way = seen(&lab.p1)?;
        // Segments are counted as the receiver has joined them.
        ensure!(way.requests == 0 && way.replies > 20, "only replies take that way: {way:?}");
    }
    // An error of a router far away, about a packet that has left with the pool's address.
    let traced = lab.c1.ok(&["traceroute", "-n", "-U", "-q", "1", "-w", "1", "-m", "3", "203.0.113.10"])?;
    ensure!(traced.contains(" 198.51.100.1 "), "{traced}");
    assert_eq!(rig.daemon.drops("spoofed_source")?, 0);
    Ok(())
}

#[test]
fn nobody_but_the_router_of_the_border_table_speaks_for_the_outside() -> Result<()> {
    let Some(rig) = led()? else { return Ok(()) };
    let listener = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?.into_socket();
    listener.set_read_timeout(Some(super::A_WHILE))?;
    let mut datagram = [0; 16];
    for node in [&rig.lab.c1, &rig.lab.p1] {
        // The host knows where they are.
        let router = if node.name().ends_with("c1") { "10.0.1.1" } else { "10.0.3.1" };
        node.ok(&["ping", "-c", "1", "-W", "2", router])?;
    }
    for (node, arrives) in [(&rig.lab.p1, true), (&rig.lab.c2, false)] {
        node.ip(&["address", "add", "203.0.113.77/32", "dev", "lo"])?;
        let sender = UdpClient::new(node, "203.0.113.77:53")?.into_socket();
        sender.send_to(b"from outside", "10.0.1.2:5000")?;
        assert_eq!(listener.recv_from(&mut datagram).is_ok(), arrives, "from {}", node.name());
    }
    assert_eq!(rig.daemon.drops("spoofed_source")?, 1);
    Ok(())
}

#[test]
fn a_border_table_that_denies_cuts_connections() -> Result<()> {
    let Some(rig) = led()? else { return Ok(()) };
    let mut connection = echo_connection(&rig)?;
    echo(&mut connection)?;
    rig.daemon.tell("route replace 10.0.1.0/24 via direct table return")?;
    let before = seen(&rig.lab.p1)?;
    ensure!(before.replies > 0, "{before:?}");
    echo(&mut connection)?;
    assert_eq!(seen(&rig.lab.p1)?, Seen::default(), "replies go straight");
    rig.daemon.tell("route add 10.0.1.2/32 via blackhole table return")?;
    ensure!(echo(&mut connection).is_err(), "the connection goes on without replies");
    ensure!(rig.daemon.drops("blackhole")? >= 1);
    rig.daemon.tell("route flush table return")?;
    ensure!(echo(&mut connection).is_err(), "a connection that was cut goes on");
    Ok(())
}

#[test]
fn connections_outlive_an_outage_of_the_router_that_their_replies_take() -> Result<()> {
    let Some(rig) = led()? else { return Ok(()) };
    let mut connection = echo_connection(&rig)?;
    echo(&mut connection)?;
    rig.lab.p1.ip(&["link", "set", "eth0", "down"])?;
    ensure!(echo(&mut connection).is_err(), "a reply has come past the router");
    rig.lab.p1.ip(&["link", "set", "eth0", "up"])?;
    rig.lab.p1.ip(&["route", "replace", "default", "via", "10.0.3.1"])?;
    goes_on(&mut connection)
}

/// Waits until what is under way arrives.
fn goes_on(connection: &mut TcpStream) -> Result<()> {
    wait_until("the connection to go on", SOON, || echo(connection).is_ok())
}
