//! What the outside may not do.

use std::time::Duration;

use anyhow::Result;
use gateway_lab::{UdpClient, server::Server, wait_until, wire::Wire};

use super::{A_WHILE, with_one_pool};

const SOON: Duration = Duration::from_secs(2);

#[test]
fn an_inside_host_cannot_be_reached_from_outside() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let inside = Wire::open(&rig.lab.c1, "eth0")?;
    // The provider routes 10.0.0.0/16 to the gateway, and the gateway's own stack would forward it.
    rig.lab.api.run(&["ping", "-c", "3", "-i", "0.1", "-W", "1", "10.0.1.2"])?.expect_failure()?;
    let heard = inside.collect(A_WHILE)?;
    assert!(!heard.iter().any(|frame| !frame.sent && frame.bytes.get(23) == Some(&1)), "{heard:?}");
    Ok(())
}

#[test]
fn a_pool_address_without_a_session_answers_nothing() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let curl = ["curl", "-sS", "--max-time", "1", "http://198.51.100.10/"];
    let said = rig.lab.api.run(&curl)?;
    assert_eq!(said.code, Some(28), "curl should run out of time: {said:?}");
    rig.lab.api.run(&["ping", "-c", "2", "-i", "0.1", "-W", "1", "198.51.100.10"])?.expect_failure()?;
    assert!(rig.daemon.drops("no_session")? >= 3);
    Ok(())
}

#[test]
fn only_the_server_that_was_asked_may_answer() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let seen = client.ask("203.0.113.10:53")?;
    let inside = Wire::open(&rig.lab.c1, "eth0")?;
    // Another port of the same server, and another server.
    for stranger in ["203.0.113.10:54", "203.0.113.20:53"] {
        let socket = rig.lab.api.enter(|| std::net::UdpSocket::bind(stranger))??;
        socket.send_to(b"surprise", seen)?;
    }
    let dropped = || rig.daemon.drops("no_session").is_ok_and(|drops| drops == 2);
    wait_until("both to be dropped", SOON, dropped)?;
    let heard = inside.collect(A_WHILE)?;
    assert!(!heard.iter().any(|frame| !frame.sent && frame.bytes.get(23) == Some(&17)), "{heard:?}");
    assert_eq!(client.ask("203.0.113.10:53")?, seen, "the session is as it was");
    Ok(())
}

#[test]
fn the_gateway_host_itself_stays_reachable() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::http(&rig.lab.gw, "0.0.0.0:8000".parse()?)?;
    let curl = ["curl", "-sS", "--max-time", "3", "http://198.51.100.2:8000/"];
    rig.lab.isp.ok(&curl)?;
    rig.lab.c1.ok(&["ping", "-c", "1", "-W", "2", "10.0.1.1"])?;
    // And it reaches the outside by its own address.
    rig.lab.gw.ok(&["ping", "-c", "1", "-W", "2", "203.0.113.10"])?;
    Ok(())
}
