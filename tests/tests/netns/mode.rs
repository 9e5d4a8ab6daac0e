//! How the programs are attached, and what follows from it.

use anyhow::Result;
use gateway_lab::{Gatewayd, Lab, Rig, ask_udp, runnable, server::Server};

use super::{ONE_POOL, with_one_pool};

const DNS: &str = "203.0.113.10:53";

#[test]
fn native_mode_is_taken_where_every_interface_can() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    assert_eq!(modes(&rig.daemon)?, ["native"; 5]);
    Ok(())
}

#[test]
fn an_interface_that_takes_no_redirected_frames_makes_all_generic() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = deaf_outside()?;
    let daemon = Gatewayd::start(&lab.sandbox, &lab.gw, &Gatewayd::standard_config("active", ONE_POOL))?;
    assert_eq!(modes(&daemon)?, ["generic"; 5]);
    assert_eq!(daemon.gwctl(&["status"])?.code, Some(0));
    let _server = Server::udp(&lab.api, DNS.parse()?)?;
    assert_eq!(ask_udp(&lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
    Ok(())
}

#[test]
fn native_mode_that_loses_frames_is_a_problem() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = deaf_outside()?;
    let inside = "name = \"eth_in1\"\n";
    let config = Gatewayd::standard_config("active", ONE_POOL);
    let config = config.replace(inside, &format!("{inside}mode = \"native\"\n"));
    let daemon = Gatewayd::start(&lab.sandbox, &lab.gw, &config)?;
    let said = daemon.gwctl(&["status"])?;
    assert_eq!(said.code, Some(9), "{said:?}");
    let problem = "what arrives through `eth_in1` is lost when it should leave through `eth_out`";
    assert!(said.stdout.contains(problem), "{}", said.stdout);
    // Whoever can make it right need not restart anything.
    lab.isp.ok(&["ethtool", "--features", "eth_gw", "gro", "on"])?;
    assert_eq!(daemon.gwctl(&["status"])?.code, Some(0));
    Ok(())
}

#[test]
fn a_native_interface_is_not_detached_because_another_became_deaf() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let Rig { daemon, lab } = &rig;
    lab.isp.ok(&["ethtool", "--features", "eth_gw", "gro", "off"])?;
    assert_eq!(daemon.gwctl(&["status"])?.code, Some(9));
    assert_eq!(modes(daemon)?, ["native"; 5]);
    Ok(())
}

/// The standard lab, but what is redirected to the way out is lost.
fn deaf_outside() -> Result<Lab> {
    let lab = Lab::standard()?;
    lab.isp.ok(&["ethtool", "--features", "eth_gw", "gro", "off"])?;
    Ok(lab)
}

fn modes(daemon: &Gatewayd) -> Result<Vec<String>> {
    let shown: serde_json::Value = serde_json::from_str(&daemon.ok(&["--json", "interface", "show"])?)?;
    let items = shown["items"].as_array().into_iter().flatten();
    Ok(items.map(|item| item["attached"].as_str().unwrap_or("none").to_owned()).collect())
}
