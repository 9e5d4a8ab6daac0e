//! Source NAT: what servers see, and that clients do not notice.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{UdpClient, ask_http, ask_udp, server::Server, wait_until, wire::Wire};
use serde_json::Value;

use super::{A_WHILE, source, with_one_pool};

const POOL: &str = "198.51.100.10";

#[test]
fn a_ping_leaves_with_the_pool_address_and_is_answered() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    rig.lab.c1.ok(&["ping", "-c", "3", "-i", "0.1", "-W", "2", "203.0.113.10"])?;
    let requests = wire.collect(A_WHILE)?;
    let sources: BTreeSet<_> =
        requests.iter().filter(|frame| !frame.sent).filter_map(|frame| source(&frame.bytes)).collect();
    assert_eq!(sources, BTreeSet::from([[198, 51, 100, 10]]));
    Ok(())
}

#[test]
fn curl_arrives_with_the_pool_address_and_gets_its_file() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), POOL);
    let file = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}"];
    let size = rig.lab.c2.ok(&[&file[..], &["http://203.0.113.10/5000000"]].concat())?;
    assert_eq!(size, "5000000");
    assert!(server.seen().iter().all(|peer| peer.ip().to_string() == POOL), "{:?}", server.seen());
    Ok(())
}

#[test]
fn iperf3_runs_in_both_directions() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = rig.lab.api.spawn(&["iperf3", "--server"])?;
    wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let sockets = rig.lab.api.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
        sockets.is_ok_and(|text| text.contains(":5201 "))
    })?;
    for direction in ["--time=1", "--reverse"] {
        let report =
            rig.lab.c1.ok(&["iperf3", "--client", "203.0.113.10", "--time=1", "--json", direction])?;
        let report: Value = serde_json::from_str(&report)?;
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().context("no bytes")?;
        assert!(bytes > 1_000_000, "{direction}: {bytes} bytes in a second");
    }
    Ok(())
}

#[test]
fn udp_goes_out_and_comes_back() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let first = client.ask("203.0.113.10:53")?;
    assert_eq!(first.to_string(), "198.51.100.10:5000", "the client's own port is free, and should be taken");
    assert_eq!(client.ask("203.0.113.10:53")?, first, "a session keeps its port");
    Ok(())
}

#[test]
fn two_clients_with_the_same_source_port_are_told_apart() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _udp = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let one = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let other = UdpClient::new(&rig.lab.c2, "10.0.2.2:5000")?;
    let (first, second) = (one.ask("203.0.113.10:53")?, other.ask("203.0.113.10:53")?);
    assert_eq!((first.ip(), second.ip()), (POOL.parse()?, POOL.parse()?));
    assert_ne!(first.port(), second.port());
    // Each still gets its own answers.
    assert_eq!(one.ask("203.0.113.10:53")?, first);
    assert_eq!(other.ask("203.0.113.10:53")?, second);

    let _tcp = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let curl = ["curl", "-sS", "--max-time", "5", "--local-port", "40000", "http://203.0.113.10/"];
    let (first, second) = (rig.lab.c1.ok(&curl)?, rig.lab.c2.ok(&curl)?);
    assert_ne!(first, second, "the first connection's port rests");
    Ok(())
}

#[test]
fn a_client_keeps_its_address_of_a_larger_pool() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    rig.daemon.tell("pool set nat address 198.51.100.10,198.51.100.11,198.51.100.12")?;
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    for client in [&rig.lab.c1, &rig.lab.c2, &rig.lab.p1] {
        let seen: BTreeSet<_> = (0..20)
            .map(|number| Ok(ask_udp(client, &format!("0.0.0.0:{}", 6000 + number), "203.0.113.10:53")?.ip()))
            .collect::<Result<_>>()?;
        assert_eq!(seen.len(), 1, "{} was seen as {seen:?}", client.name());
        assert!(seen.iter().all(|address| address.to_string().starts_with("198.51.100.1")));
    }
    Ok(())
}

#[test]
fn no_private_address_leaves() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    ask_http(&rig.lab.c1, "203.0.113.10")?;
    rig.lab.c1.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "203.0.113.10"])?;
    // Nothing listens there: the server's RST comes back, and ends nothing but the connection.
    rig.lab.c2.run(&["curl", "-sS", "--max-time", "2", "http://203.0.113.10:81/"])?.expect_failure()?;
    // Neither a route nor a pool: dropped.
    rig.lab.c2.run(&["curl", "-sS", "--max-time", "1", "http://192.0.2.10/"])?.expect_failure()?;
    let leaked = wire.collect(A_WHILE)?.into_iter().filter(|frame| !frame.sent);
    let leaked = leaked.filter(|frame| source(&frame.bytes).is_some_and(|address| address[0] == 10)).count();
    assert_eq!(leaked, 0);
    Ok(())
}

#[test]
fn sessions_show_both_sides_of_a_connection() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?;
    let shown: Value = serde_json::from_str(&rig.daemon.ok(&["--json", "session", "show", "proto", "udp"])?)?;
    let session = &shown["items"][0];
    assert_eq!(shown["items"].as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!(
        (&session["source"]["address"], &session["source"]["port"]),
        (&"10.0.1.2".into(), &5000.into())
    );
    assert_eq!(session["translated"]["address"], POOL);
    assert_eq!(session["destination"]["port"], 53);
    assert_eq!((&session["pool"], &session["route"]), (&"nat".into(), &"203.0.113.0/24".into()));
    assert_eq!((&session["sent"]["packets"], &session["received"]["packets"]), (&1.into(), &1.into()));
    let counted: Value =
        serde_json::from_str(&rig.daemon.ok(&["--json", "session", "count", "by", "pool"])?)?;
    assert_eq!(counted["items"], serde_json::json!([{ "pool": "nat", "count": 1 }]));
    Ok(())
}
