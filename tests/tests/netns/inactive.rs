//! A gateway that only watches.

use anyhow::Result;
use gateway_lab::{Rig, ask_http, server::Server};

use super::ONE_POOL;

#[test]
fn an_inactive_gateway_changes_nothing_and_counts_everything() -> Result<()> {
    let Some(rig) = Rig::start("inactive", ONE_POOL)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "203.0.113.10")?.ip().to_string(), "10.0.1.2");
    rig.lab.c2.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "192.0.2.10"])?;
    rig.lab.c2.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "2001:db8:b::10"])?;
    let host = r#"gateway_packets_total{direction="in",interface="eth_in2",verdict="host"}"#;
    assert!(rig.daemon.count(host)? >= 4);
    let page = rig.daemon.metrics()?;
    let dropped =
        page.lines().filter(|line| line.starts_with("gateway_drops_total") && !line.ends_with(" 0"));
    assert_eq!(dropped.collect::<Vec<_>>(), Vec::<&str>::new());
    Ok(())
}

#[test]
fn activation_is_reversible() -> Result<()> {
    let Some(rig) = Rig::start("inactive", ONE_POOL)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let seen = || ask_http(&rig.lab.c1, "203.0.113.10").map(|peer| peer.ip().to_string());
    assert_eq!(seen()?, "10.0.1.2");
    rig.daemon.tell("activate")?;
    assert_eq!(seen()?, "198.51.100.10");
    assert_eq!(rig.daemon.count("gateway_active")?, 1);
    rig.daemon.tell("deactivate")?;
    assert_eq!(seen()?, "10.0.1.2");
    Ok(())
}
