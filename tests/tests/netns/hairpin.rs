//! Inside hosts that reach each other by what the outside knows them by: a client of a pool, and a host with an EIP.

use std::{net::UdpSocket, time::Duration};

use anyhow::Result;
use gateway_lab::{Rig, ask_http, server::Server, wire::Wire};

use super::{A_WHILE, source};

/// `c1` leaves by a pool, `c2` by its EIP.
const POLICY: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:ff::10"]
[[eip]]
address = "198.51.100.11"
host = "10.0.2.2"
[[eip]]
address = "2001:db8:ff::11"
host = "2001:db8:2::2"
[[table]]
name = "main"
routes = [
  { to = "0.0.0.0/0", via = "pool nat" },
  { to = "::/0", via = "pool nat" },
]
[[table]]
name = "servers"
bind = ["10.0.2.0/24", "2001:db8:2::/64"]
routes = [
  { to = "0.0.0.0/0", via = "eip" },
  { to = "::/0", via = "eip" },
]
"#;
const EIP: &str = "198.51.100.11";
const EIP6: &str = "2001:db8:ff::11";

fn start() -> Result<Option<Rig>> {
    Rig::start("active", POLICY)
}

#[test]
fn a_client_of_a_pool_fetches_from_a_server_with_an_eip() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    let _web = Server::http(&rig.lab.c2, "10.0.2.2:80".parse()?)?;
    let _web6 = Server::http(&rig.lab.c2, "[2001:db8:2::2]:80".parse()?)?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    // The server tells who asked: the pool, as a server outside would see it.
    assert_eq!(ask_http(&rig.lab.c1, EIP)?.ip().to_string(), "198.51.100.10");
    assert_eq!(ask_http(&rig.lab.c1, &format!("[{EIP6}]"))?.ip().to_string(), "2001:db8:ff::10");
    let file = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"];
    for _ in 0..3 {
        let size = rig.lab.c1.ok(&[&file[..], &[&format!("http://{EIP}/500000")]].concat())?;
        assert_eq!(size, "500000");
    }
    for address in [EIP, EIP6] {
        rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", address])?;
        rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", "4000", address])?;
    }
    // None of it was on the outside.
    let ours = |address: &[u8; 4]| address[0] == 10 || address[..3] == [198, 51, 100] && address[3] >= 10;
    let leaked = wire.collect(A_WHILE)?.into_iter().filter(|frame| !frame.sent);
    assert_eq!(leaked.filter(|frame| source(&frame.bytes).as_ref().is_some_and(ours)).count(), 0);
    Ok(())
}

#[test]
fn a_large_datagram_and_its_answer_pass_in_fragments() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    for (server, client, eip) in
        [("10.0.2.2:7000", "10.0.1.2:5000", EIP), ("[2001:db8:2::2]:7000", "[2001:db8:1::2]:5000", EIP6)]
    {
        let server = rig.lab.c2.enter(|| UdpSocket::bind(server))??;
        let client = rig.lab.c1.enter(|| UdpSocket::bind(client))??;
        let datagram: Vec<u8> = (0..4000u16).map(|number| number as u8).collect();
        let mut buffer = [0; 8000];
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        client.send_to(&datagram, (eip, 7000))?;
        let (length, from) = server.recv_from(&mut buffer)?;
        assert!(buffer[..length] == datagram, "{length} bytes");
        assert!(["198.51.100.10", "2001:db8:ff::10"].contains(&from.ip().to_string().as_str()), "{from}");
        server.send_to(&datagram, from)?;
        let (length, from) = client.recv_from(&mut buffer)?;
        assert!(buffer[..length] == datagram, "{length} bytes");
        assert_eq!(from.ip().to_string(), eip);
    }
    Ok(())
}

#[test]
fn errors_and_traceroute_tell_the_client() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    // Nothing listens there.
    let refused = ["curl", "-sS", "--max-time", "3", "http://198.51.100.11:81/"];
    assert_eq!(rig.lab.c1.run(&refused)?.code, Some(7));
    let told = rig.lab.c1.enter(|| -> Result<_> {
        let socket = UdpSocket::bind("10.0.1.2:6000")?;
        socket.connect((EIP, 9))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send(b"anybody?")?;
        Ok(socket.recv(&mut [0; 16]).map_err(|error| error.kind()))
    })??;
    assert_eq!(told, Err(std::io::ErrorKind::ConnectionRefused));
    // Each half of the way is a hop of the gateway's.
    for (server, hops) in
        [(EIP, ["10.0.1.1", "10.0.1.1", EIP]), (EIP6, ["2001:db8:1::1", "2001:db8:1::1", EIP6])]
    {
        rig.lab.c1.ok(&["ping", "-c", "1", "-W", "2", server])?;
        for method in ["--udp", "--icmp"] {
            let said =
                rig.lab.c1.ok(&["traceroute", "-n", "-q", "1", "-w", "2", "-N", "1", method, server])?;
            let seen: Vec<_> =
                said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(seen, hops, "{method}: {said}");
        }
    }
    Ok(())
}

#[test]
fn the_client_learns_the_mtu_of_the_way_in() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    rig.lab.gw.ip(&["link", "set", "eth_in2", "mtu", "1300"])?;
    gateway_lab::wait_until("the gateway to know the MTU", Duration::from_secs(5), || {
        let ping = ["ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1400", EIP];
        rig.lab.c1.run(&ping).is_ok_and(|said| said.stdout.contains("mtu = 1300"))
    })?;
    let _web = Server::http(&rig.lab.c2, "10.0.2.2:80".parse()?)?;
    let file = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"];
    let size = rig.lab.c1.ok(&[&file[..], &[&format!("http://{EIP}/500000")]].concat())?;
    assert_eq!(size, "500000");
    Ok(())
}
