//! A change of the policy is in force for the next packet.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use gateway_lab::{Rig, UdpClient, ask_udp, server::Server};

use super::with_one_pool;

const SOON: Duration = Duration::from_secs(2);
const DNS: &str = "203.0.113.10:53";

#[test]
fn a_route_is_in_force_when_the_command_returns() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    rig.daemon.tell("pool add nat address 198.51.100.10")?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    client.ask_in_vain(DNS)?;
    for _ in 0..10 {
        rig.daemon.tell("route add 203.0.113.10/32 via pool nat")?;
        client.ask(DNS)?;
        rig.daemon.tell("route del 203.0.113.10/32")?;
        client.ask_in_vain(DNS)?;
    }
    Ok(())
}

#[test]
fn a_deleted_route_cuts_the_connections_that_it_allowed() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let mut connection = echo_connection(&rig)?;
    echo(&mut connection).context("before")?;
    rig.daemon.tell("route del 203.0.113.0/24")?;
    assert!(echo(&mut connection).is_err(), "the connection goes on without a route");
    assert!(rig.daemon.drops("no_route")? >= 1);
    Ok(())
}

#[test]
fn a_route_that_denies_cuts_connections_of_a_wider_one() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let mut connection = echo_connection(&rig)?;
    echo(&mut connection).context("before")?;
    rig.daemon.tell("route add 203.0.113.10/32 via blackhole")?;
    assert!(echo(&mut connection).is_err(), "the connection goes on into a blackhole");
    assert!(rig.daemon.drops("blackhole")? >= 1);
    Ok(())
}

#[test]
fn an_unrelated_change_leaves_connections_alone() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let mut connection = echo_connection(&rig)?;
    for octet in 0..20 {
        rig.daemon.tell(&format!("route add 192.0.2.{octet}/32 via blackhole"))?;
        echo(&mut connection).with_context(|| format!("after change {octet}"))?;
    }
    Ok(())
}

#[test]
fn a_route_moved_to_another_pool_leaves_live_sessions_where_they_are() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    rig.daemon.tell("pool add other address 198.51.100.11")?;
    let live = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let seen = live.ask(DNS)?;
    rig.daemon.tell("route replace 203.0.113.0/24 via pool other")?;
    assert_eq!(live.ask(DNS)?, seen, "a live session stays");
    assert_eq!(
        ask_udp(&rig.lab.c1, "10.0.1.2:5001", DNS)?.ip().to_string(),
        "198.51.100.11",
        "a new one moves"
    );
    Ok(())
}

#[test]
fn a_refused_command_changes_nothing() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let before = rig.daemon.tell("export")?;
    for (line, code) in [
        ("route add 203.0.113.0/24 via pool nat", 5),
        ("route add 203.0.113.1/24 via pool nat", 7),
        ("route add 192.0.2.0/24 via pool nowhere", 7),
        ("route del 192.0.2.0/24", 4),
        ("pool del nat", 7),
        ("pool add again address 198.51.100.10", 7),
    ] {
        let said = rig.daemon.gwctl(&line.split(' ').collect::<Vec<_>>())?;
        assert_eq!(said.code, Some(code), "{line}: {said:?}");
        assert!(
            said.stderr.starts_with("error: ") && said.stderr.contains("\nhint: "),
            "{line}: {}",
            said.stderr
        );
        assert_eq!(said.stdout, "");
    }
    assert_eq!(rig.daemon.tell("export")?, before);
    Ok(())
}

/// A TCP connection from `c1` to a server on `api` that sends back what it gets.
pub(super) fn echo_connection(rig: &Rig) -> Result<TcpStream> {
    let address: SocketAddr = "203.0.113.10:7".parse()?;
    let listener = rig.lab.api.enter(|| TcpListener::bind(address))??;
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut byte = [0; 1];
        while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
    });
    let connection = rig.lab.c1.enter(|| TcpStream::connect_timeout(&address, SOON))??;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(SOON))?;
    Ok(connection)
}

pub(super) fn echo(connection: &mut TcpStream) -> Result<()> {
    let mut byte = [0; 1];
    connection.write_all(b"x")?;
    connection.read_exact(&mut byte)?;
    Ok(())
}
