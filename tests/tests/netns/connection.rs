//! TCP connections of real programs, from their first SYN to their end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use etherparse::PacketBuilder;
use gateway_lab::{Process, Rig, server::Server, wait_until, wire::Wire};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{ONE_POOL, frames::octets, with_one_pool};

/// Within that time a client has noticed that a connection is over; none of them has a timeout that short.
const AT_ONCE: Duration = Duration::from_secs(3);

#[test]
fn a_client_learns_at_once_that_its_server_was_killed() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let server = iperf3_server(&rig)?;
    let client = ["iperf3", "--client", "203.0.113.10", "--time=60", "--reverse"];
    let mut client = rig.lab.c1.spawn(&client)?;
    wait_until("the stream", AT_ONCE, || states(&rig).is_ok_and(|all| all == ["established"; 2]))?;
    server.signal(Signal::SIGKILL)?;
    client.wait(AT_ONCE)?;
    // What is left of it does not count as alive.
    wait_until("the end of the sessions", AT_ONCE, || {
        states(&rig).is_ok_and(|all| all.iter().all(|state| state != "established"))
    })
}

#[test]
fn a_client_learns_at_once_that_nobody_listens() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let begin = Instant::now();
    let curl = ["curl", "-sS", "--max-time", "20", "http://203.0.113.10:81/"];
    assert_eq!(rig.lab.c1.run(&curl)?.code, Some(7), "connection refused");
    assert!(begin.elapsed() < AT_ONCE);
    assert_eq!(states(&rig)?, ["closed"]);
    Ok(())
}

#[test]
fn a_client_is_reset_when_the_address_of_its_connection_leaves_the_pool() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _receiver = iperf3_server(&rig)?;
    let sender = rig.lab.c1.spawn_piped(&["iperf3", "--client", "203.0.113.10", "--time=60"])?;
    wait_until("the stream", AT_ONCE, || states(&rig).is_ok_and(|all| all == ["established"; 2]))?;
    rig.daemon.tell("pool set nat address 198.51.100.11")?;
    let sender = sender.finish(AT_ONCE)?;
    assert!(format!("{sender:?}").contains("reset by peer"), "{sender:?}");
    // And the next one has the new address.
    let said = rig.lab.c1.ok(&["curl", "-sS", "--max-time", "5", "http://203.0.113.10/"])?;
    assert!(said.starts_with("198.51.100.11:"), "{said}");
    Ok(())
}

#[test]
fn a_flood_of_syns_does_not_harm_a_connection() -> Result<()> {
    // A quarter of the sessions that the gateways of the lab have room for.
    const HALF_OPEN: u64 = 4_096;
    const SERIES: &str = "gateway_map_entries{map=\"half_open\"}";
    // The bound on what is half open is looked at here, and not the limit of one destination.
    let unlimited = "[[pool]]\nper_destination = { rate = 0, concurrent = 0 }";
    let Some(rig) = Rig::start("active", &ONE_POOL.replace("[[pool]]", unlimited))? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let file = ["curl", "-sS", "--max-time", "20", "--limit-rate", "2M", "-o", "/dev/null"];
    let file = [&file[..], &["-w", "%{size_download}", "http://203.0.113.10/6000000"]].concat();
    let stream = rig.lab.c1.spawn_piped(&file)?;
    wait_until("the stream", AT_ONCE, || states(&rig).is_ok_and(|all| all == ["established"]))?;

    // Nobody answers there.
    let wire = Wire::open(&rig.lab.c2, "eth0")?;
    let (source, destination) = (octets(&rig.lab.c2.mac("eth0")?)?, octets(&rig.lab.gw.mac("eth_in2")?)?);
    let flood = |ports: std::ops::Range<u16>| -> Result<()> {
        for port in ports {
            let syn = PacketBuilder::ethernet2(source, destination)
                .ipv4([10, 0, 2, 2], [203, 0, 113, 77], 64)
                .tcp(port, 80, 1, 1024)
                .syn();
            let mut frame = Vec::with_capacity(syn.size(0));
            syn.write(&mut frame, &[])?;
            wire.send(&frame)?;
        }
        Ok(())
    };
    flood(10_000..16_000)?;
    wait_until("the flood to stand at its bound", AT_ONCE, || {
        rig.daemon.count(SERIES).is_ok_and(|count| count == HALF_OPEN)
    })?;
    assert!(rig.daemon.drops("session_table_full")? >= 1_000);
    flood(16_000..20_000)?;
    assert_eq!(rig.daemon.count(SERIES)?, HALF_OPEN);
    // New connections have to wait, and those there are do not notice.
    rig.lab.c1.run(&["curl", "-sS", "--max-time", "1", "http://203.0.113.10/"])?.expect_failure()?;
    rig.lab.c1.ok(&["ping", "-c", "1", "-W", "2", "203.0.113.10"])?;
    let stream = stream.finish(Duration::from_secs(20))?;
    assert_eq!(stream.ok()?, "6000000");
    Ok(())
}

#[test]
fn a_flood_of_syns_to_a_proxy_does_not_fill_the_session_table() -> Result<()> {
    const HALF_OPEN: u64 = 4_096;
    let config = "[[pool]]\nname = \"nat\"\naddresses = [\"198.51.100.10\"]\n\
                  [[proxy]]\nname = \"inspect\"\nhosts = [\"10.0.3.2\"]\n\
                  [[table]]\nname = \"main\"\nroutes = [\n\
                  { to = \"203.0.113.10/32\", via = \"pool nat\" },\n\
                  { to = \"203.0.113.0/24\", via = \"proxy inspect\" }]\n";
    let Some(rig) = Rig::start("active", config)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let file = ["curl", "-sS", "--max-time", "20", "--limit-rate", "2M", "-o", "/dev/null"];
    let file = [&file[..], &["-w", "%{size_download}", "http://203.0.113.10/6000000"]].concat();
    let stream = rig.lab.c1.spawn_piped(&file)?;
    wait_until("the stream", AT_ONCE, || states(&rig).is_ok_and(|all| all == ["established"]))?;

    // The host of the proxy is silent about packets that it should forward.
    let wire = Wire::open(&rig.lab.c2, "eth0")?;
    let (source, destination) = (octets(&rig.lab.c2.mac("eth0")?)?, octets(&rig.lab.gw.mac("eth_in2")?)?);
    for port in 10_000..16_000 {
        let syn = PacketBuilder::ethernet2(source, destination)
            .ipv4([10, 0, 2, 2], [203, 0, 113, 77], 64)
            .tcp(port, 80, 1, 1024)
            .syn();
        let mut frame = Vec::with_capacity(syn.size(0));
        syn.write(&mut frame, &[])?;
        wire.send(&frame)?;
    }
    let series = "gateway_map_entries{map=\"half_open\"}";
    wait_until("the flood to stand at its bound", AT_ONCE, || {
        rig.daemon.count(series).is_ok_and(|count| count == HALF_OPEN)
    })?;
    assert!(rig.daemon.drops("session_table_full")? >= 1_000);
    assert_eq!(rig.daemon.count("gateway_map_entries{map=\"sessions\"}")?, HALF_OPEN + 1);
    let stream = stream.finish(Duration::from_secs(20))?;
    assert_eq!(stream.ok()?, "6000000");
    Ok(())
}

fn iperf3_server(rig: &Rig) -> Result<Process> {
    let server = rig.lab.api.spawn(&["iperf3", "--server"])?;
    wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let sockets = rig.lab.api.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
        sockets.is_ok_and(|text| text.contains(":5201 "))
    })?;
    Ok(server)
}

/// The states of all TCP sessions.
fn states(rig: &Rig) -> Result<Vec<String>> {
    let shown: Value = serde_json::from_str(&rig.daemon.tell("--json session show proto tcp")?)?;
    let rows = shown["items"].as_array().context("no list of sessions")?;
    Ok(rows.iter().filter_map(|row| row["state"].as_str().map(str::to_owned)).collect())
}
