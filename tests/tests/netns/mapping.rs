//! Endpoint-independent mappings: what programs that want to be reached make of them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::Result;
use gateway_lab::{Rig, UdpClient, server::Server};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

/// As `ONE_POOL`, with endpoint-independent mappings, and for the network of the server `web`, too.
const POLICY: &str = r#"
[[pool]]
name = "calls"
addresses = ["198.51.100.10"]
mapping = "endpoint-independent"
[[table]]
name = "main"
routes = [
  { to = "203.0.113.0/24", via = "pool calls" },
  { to = "192.0.2.0/24", via = "pool calls" },
]
"#;

fn start() -> Result<Option<Rig>> {
    start_with(POLICY)
}

fn start_with(policy: &str) -> Result<Option<Rig>> {
    Rig::start("active", policy)
}

#[test]
fn two_servers_see_a_client_under_one_address_and_port() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    let _one = Server::udp(&rig.lab.api, "203.0.113.10:3478".parse()?)?;
    let _other = Server::udp(&rig.lab.api, "203.0.113.20:3479".parse()?)?;
    let _far = Server::udp(&rig.lab.web, "192.0.2.10:3478".parse()?)?;
    // Another client has the port that this one would have got.
    UdpClient::new(&rig.lab.c2, "10.0.2.2:5000")?.ask("203.0.113.10:3478")?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let seen = client.ask("203.0.113.10:3478")?;
    assert_ne!(seen.port(), 5000);
    assert_eq!(client.ask("203.0.113.20:3479")?, seen);
    assert_eq!(client.ask("192.0.2.10:3478")?, seen);
    Ok(())
}

#[test]
fn a_third_host_reaches_the_client_and_is_answered_from_the_same_port() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:3478".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let seen = client.ask("203.0.113.10:3478")?;
    let client = client.into_socket();
    let caller = rig.lab.web.enter(|| UdpSocket::bind("192.0.2.20:7000"))??;
    for socket in [&client, &caller] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let mut datagram = [0; 64];
    caller.send_to(b"call", seen)?;
    let (length, from) = client.recv_from(&mut datagram)?;
    assert_eq!((&datagram[..length], from.to_string()), (&b"call"[..], "192.0.2.20:7000".to_owned()));
    client.send_to(b"answer", from)?;
    let (length, from) = caller.recv_from(&mut datagram)?;
    assert_eq!((&datagram[..length], from), (&b"answer"[..], seen));
    Ok(())
}

#[test]
fn a_connection_from_outside_reaches_the_clients_server() -> Result<()> {
    let Some(rig) = start()? else { return Ok(()) };
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let mut own = rig.lab.c1.enter(|| connect_from("10.0.1.2:40000", "203.0.113.10:80"))??;
    own.set_read_timeout(Some(Duration::from_secs(5)))?;
    own.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut seen = String::new();
    own.read_to_string(&mut seen)?;
    assert!(seen.trim().ends_with("198.51.100.10:40000"), "{seen}");
    let server = Server::http(&rig.lab.c1, "10.0.1.2:40000".parse()?)?;
    let file = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"];
    let size = rig.lab.web.ok(&[&file[..], &["http://198.51.100.10:40000/500000"]].concat())?;
    assert_eq!(size, "500000");
    assert!(server.seen().iter().all(|peer| peer.ip().to_string() == "192.0.2.10"), "{:?}", server.seen());
    // A port without a mapping stays closed.
    let closed = ["curl", "-sS", "--max-time", "1", "http://198.51.100.10:40001/"];
    assert_eq!(rig.lab.web.run(&closed)?.code, Some(28));
    Ok(())
}

/// A connection from a port that somebody can listen on at the same time.
fn connect_from(from: &str, to: &str) -> Result<TcpStream> {
    let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse()?, to.parse()?);
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(socket.into())
}

#[test]
fn two_clients_meet_by_what_a_server_has_told_them() -> Result<()> {
    let Some(rig) = start_with(
        &POLICY.replace("routes = [", "routes = [\n  { to = \"198.51.100.10/32\", via = \"pool calls\" },"),
    )?
    else {
        return Ok(());
    };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:3478".parse()?)?;
    let one = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let other = UdpClient::new(&rig.lab.c2, "10.0.2.2:5000")?;
    let (first, second) = (one.ask("203.0.113.10:3478")?, other.ask("203.0.113.10:3478")?);
    let (one, other) = (one.into_socket(), other.into_socket());
    let mut datagram = [0; 64];
    for socket in [&one, &other] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    for _ in 0..3 {
        one.send_to(b"hello", second)?;
        let (_, from) = other.recv_from(&mut datagram)?;
        assert_eq!(from, first);
        other.send_to(b"hello", from)?;
        assert_eq!(one.recv_from(&mut datagram)?.1, second);
    }
    // A connection, to a port that a connection to the outside has opened.
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _own = rig.lab.c1.enter(|| connect_from("10.0.1.2:40000", "203.0.113.10:80"))??;
    let _met = Server::http(&rig.lab.c1, "10.0.1.2:40000".parse()?)?;
    let file = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"];
    let size = rig.lab.c2.ok(&[&file[..], &["http://198.51.100.10:40000/500000"]].concat())?;
    assert_eq!(size, "500000");
    Ok(())
}
