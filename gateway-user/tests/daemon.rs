//! The real daemon in the standard lab: next hops that nobody resolved yet, and metrics under traffic.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use gateway_lab::{Rig, UdpClient, server::Server, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);

/// Everything may go anywhere, unchanged.
const OPEN: &str = "[[table]]\nname = \"main\"\nroutes = [\n\
     { to = \"0.0.0.0/0\", via = \"direct\" },\n\
     { to = \"::/0\", via = \"direct\" },\n]\n";

#[test]
fn the_first_packet_to_an_unknown_neighbor_gets_it_resolved() -> Result<()> {
    let Some(rig) = Rig::start("active", OPEN)? else { return Ok(()) };
    let lab = &rig.lab;
    for (target, device) in [("10.0.2.2", "eth_in2"), ("2001:db8:2::2", "eth_in2")] {
        lab.gw.ip(&["neigh", "flush", "to", target, "dev", device])?;
        let shown = || lab.gw.ip(&["neigh", "show", "to", target, "dev", device]);
        ensure!(shown()?.is_empty(), "{target} is known already");
        let before = rig.daemon.drops("neighbor_unresolved")?;
        wait_until("an answer", PATIENCE, || {
            lab.c1.run(&["ping", "-c", "1", "-W", "1", target]).is_ok_and(|said| said.success())
        })?;
        ensure!(rig.daemon.drops("neighbor_unresolved")? > before, "the first packet went through");
        ensure!(shown()?.contains("lladdr"), "{}", shown()?);
    }
    ensure!(rig.daemon.count("gateway_events_lost_total")? == 0, "messages were lost");
    Ok(())
}

#[test]
fn the_default_router_is_resolved_before_the_first_packet() -> Result<()> {
    let Some(rig) = Rig::start("active", OPEN)? else { return Ok(()) };
    default_router(&rig)?;
    rig.lab.c1.ok(&["ping", "-c", "1", "-W", "1", "203.0.113.10"])?;
    ensure!(rig.daemon.drops("neighbor_unresolved")? == 0, "a packet found it unresolved");
    Ok(())
}

#[test]
fn sessions_follow_a_router_to_another_mac_address() -> Result<()> {
    let pool = "[[pool]]\nname = \"nat\"\naddresses = [\"198.51.100.10\"]\n\
         [[table]]\nname = \"main\"\nroutes = [{ to = \"0.0.0.0/0\", via = \"pool nat\" }]\n";
    let Some(rig) = Rig::start("active", pool)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5353")?;
    default_router(&rig)?;
    let ask = || client.ask("203.0.113.10:53");
    let first = wait_for(ask)?;
    ensure!(first.ip().to_string() == "198.51.100.10", "the server saw {first}");

    // The provider replaces its router, and the new one asks for the gateway's MAC address.
    let isp = &rig.lab.isp;
    isp.ip(&["link", "set", "eth_gw", "address", "02:00:00:00:01:01"])?;
    isp.ip(&["neigh", "flush", "dev", "eth_gw"])?;
    isp.ok(&["ping", "-c", "1", "-W", "1", "198.51.100.2"])?;
    let again = wait_for(ask)?;
    ensure!(again == first, "it is another session: {again}");
    Ok(())
}

#[test]
fn every_packet_is_counted_once() -> Result<()> {
    let some = "[[table]]\nname = \"main\"\nroutes = [\n\
         { to = \"203.0.113.0/24\", via = \"direct\" },\n\
         { to = \"192.0.2.0/24\", via = \"blackhole\" },\n]\n";
    let Some(rig) = Rig::start("active", some)? else { return Ok(()) };
    for target in ["203.0.113.10", "192.0.2.10", "198.18.0.1", "10.0.1.1"] {
        rig.lab.c1.run(&["ping", "-c", "3", "-i", "0.2", "-W", "1", target])?;
    }
    let page = rig.daemon.metrics()?;
    let total = |name: &str, label: &str| -> u64 {
        page.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    };
    let dropped = total("gateway_drops_total{", "");
    ensure!(dropped >= 6, "{dropped} packets dropped");
    ensure!(dropped == total("gateway_packets_total{", r#"direction="in",verdict="drop""#), "{page}");
    ensure!(
        total("gateway_drop_bytes_total{", "")
            == total("gateway_bytes_total{", r#"direction="in",verdict="drop""#)
    );
    let direct = |direction: &str| {
        total("gateway_packets_total{", &format!(r#"direction="{direction}",verdict="direct""#))
    };
    ensure!(direct("in") == 3 && direct("out") == 3, "{} in, {} out", direct("in"), direct("out"));
    ensure!(total("gateway_table_packets_total{", r#"target="blackhole""#) == 3, "{page}");
    let parts = page.lines().filter(|line| line.starts_with("gateway_scrape_success{")).count();
    ensure!(
        parts > 0 && total("gateway_scrape_success{", "") == parts as u64,
        "a part cannot be read:\n{page}"
    );
    check_with_promtool(&page)
}

/// Waits until the kernel knows the MAC address of the provider's router.
fn default_router(rig: &Rig) -> Result<()> {
    let shown = || rig.lab.gw.ip(&["neigh", "show", "to", "198.51.100.1", "dev", "eth_out"]);
    wait_until("the default router", PATIENCE, || {
        shown().is_ok_and(|text| text.contains("managed REACHABLE"))
    })
}

/// An extra check where Prometheus happens to be installed.
fn check_with_promtool(page: &str) -> Result<()> {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else {
        gateway_lab::skip("the page was not checked: promtool is not installed");
        return Ok(());
    };
    promtool.stdin.take().context("a pipe")?.write_all(page.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{said}");
    Ok(())
}

/// The first success within [`PATIENCE`].
fn wait_for<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut found = None;
    wait_until("success", PATIENCE, || {
        found = attempt().ok();
        found.is_some()
    })?;
    found.context("nothing")
}
