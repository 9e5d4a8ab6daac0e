//! Datagrams in fragments and routers with a small MTU, as real programs meet them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{Rig, ask_http, server::Server, wait_until, wire::Wire};
use serde_json::Value;

use super::{A_WHILE, source};

/// A pool of both families, and routes to `api` through it.
const POOL: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:ff::10"]
[[table]]
name = "main"
routes = [
  { to = "203.0.113.0/24", via = "pool nat" },
  { to = "2001:db8:a::/64", via = "pool nat" },
]
"#;

fn translating() -> Result<Option<Rig>> {
    Rig::start("active", POOL)
}

#[test]
fn a_large_ping_passes_in_fragments_both_ways() -> Result<()> {
    let Some(rig) = translating()? else { return Ok(()) };
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    for server in ["203.0.113.10", "2001:db8:a::10"] {
        let ping = ["ping", "-c", "5", "-i", "0.1", "-W", "2", "-s", "4000", server];
        let said = rig.lab.c1.run(&ping)?.ok()?;
        // The first one may be lost while a router asks for a MAC address.
        assert!(said.contains(" 5 received") || said.contains(" 4 received"), "{said}");
    }
    let frames = wire.collect(A_WHILE)?;
    let sources: BTreeSet<_> =
        frames.iter().filter(|frame| !frame.sent).filter_map(|frame| source(&frame.bytes)).collect();
    assert_eq!(sources, BTreeSet::from([[198, 51, 100, 10]]));
    Ok(())
}

#[test]
fn large_datagrams_pass_in_fragments_both_ways() -> Result<()> {
    let Some(rig) = translating()? else { return Ok(()) };
    let _server = rig.lab.api.spawn(&["iperf3", "--server"])?;
    wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let sockets = rig.lab.api.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
        sockets.is_ok_and(|text| text.contains(":5201 "))
    })?;
    for server in ["203.0.113.10", "2001:db8:a::10"] {
        rig.lab.c1.run(&["ping", "-c", "3", "-i", "0.1", "-W", "1", server])?.ok()?;
        for direction in ["--time=1", "--reverse"] {
            let load = ["--udp", "--length=8000", "--bitrate=20M", "--time=1", "--json", direction];
            let report = rig.lab.c1.ok(&[&["iperf3", "--client", server], &load[..]].concat())?;
            let report: Value = serde_json::from_str(&report)?;
            let sum = &report["end"]["sum"];
            let packets = sum["packets"].as_u64().context("no packets")?;
            let lost = sum["lost_packets"].as_u64().context("nothing lost or not lost")?;
            assert!(packets > 100 && lost * 20 < packets, "{server} {direction}: {lost} of {packets} lost");
        }
    }
    Ok(())
}

#[test]
fn traceroute_shows_the_gateway_and_what_is_behind_it() -> Result<()> {
    let Some(rig) = translating()? else { return Ok(()) };
    for (server, hops) in [
        ("203.0.113.10", ["10.0.1.1", "198.51.100.1", "203.0.113.10"]),
        ("2001:db8:a::10", ["2001:db8:1::1", "2001:db8:ff::1", "2001:db8:a::10"]),
    ] {
        rig.lab.c1.run(&["ping", "-c", "3", "-i", "0.1", "-W", "1", server])?.ok()?;
        for method in ["--udp", "--icmp", "--tcp"] {
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
fn connections_get_through_a_router_with_a_small_mtu() -> Result<()> {
    let Some(rig) = translating()? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _iperf = rig.lab.api.spawn(&["iperf3", "--server"])?;
    ask_http(&rig.lab.c1, "203.0.113.10")?;
    // Behind the gateway: its router tells the pool's address, and the gateway tells the client.
    rig.lab.isp.ip(&["link", "set", "eth_api", "mtu", "1300"])?;
    let ping = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", "203.0.113.10"];
    let said = rig.lab.c1.run(&ping)?.expect_failure()?;
    assert!(said.stdout.contains("mtu = 1300"), "{}", said.stdout);
    rig.lab.c1.ok(&["ip", "route", "flush", "cache"])?;
    rig.lab.c1.ok(&["iperf3", "--client", "203.0.113.10", "--bytes=2M", "--json"])?;
    Ok(())
}

#[test]
fn connections_get_through_a_gateway_with_a_small_mtu() -> Result<()> {
    let Some(rig) = translating()? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _iperf = rig.lab.api.spawn(&["iperf3", "--server"])?;
    ask_http(&rig.lab.c1, "203.0.113.10")?;
    let small = |device: &str| rig.lab.gw.ip(&["link", "set", device, "mtu", "1300"]);
    // On its way out, and on its way in: the client is told, and the server.
    small("eth_out")?;
    let ping = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", "203.0.113.10"];
    wait_until("the gateway to notice the MTU", Duration::from_secs(5), || {
        rig.lab.c1.run(&ping).is_ok_and(|said| said.stdout.contains("mtu = 1300"))
    })?;
    rig.lab.c1.ok(&["ip", "route", "flush", "cache"])?;
    rig.lab.c1.ok(&["iperf3", "--client", "203.0.113.10", "--bytes=2M", "--json"])?;
    small("eth_in1")?;
    let file = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}"];
    let size = rig.lab.c1.ok(&[&file[..], &["http://203.0.113.10/2000000"]].concat())?;
    assert_eq!(size, "2000000");
    Ok(())
}

#[test]
fn connections_announce_segments_that_fit_the_way_out() -> Result<()> {
    let Some(rig) = translating()? else { return Ok(()) };
    let _iperf = rig.lab.api.spawn(&["iperf3", "--server"])?;
    // The MTU of a route, which no device has.
    rig.lab.gw.ip(&["route", "change", "0.0.0.0/0", "via", "198.51.100.1", "mtu", "lock", "1300"])?;
    let ping = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", "203.0.113.10"];
    wait_until("the gateway to notice the MTU", Duration::from_secs(5), || {
        rig.lab.c1.run(&ping).is_ok_and(|said| said.stdout.contains("mtu = 1300"))
    })?;
    let dropped = rig.daemon.drops("mtu_exceeded")?;
    // Another client, which has been told nothing: its segments have to fit from the first on.
    let report = rig.lab.c2.ok(&["iperf3", "--client", "203.0.113.10", "--bytes=2M", "--json"])?;
    let report: Value = serde_json::from_str(&report)?;
    let size = report["start"]["tcp_mss_default"].as_u64().context("no segment size")?;
    assert!((1200..=1260).contains(&size), "segments of {size} bytes");
    assert_eq!(rig.daemon.drops("mtu_exceeded")?, dropped, "some did not fit");
    Ok(())
}
