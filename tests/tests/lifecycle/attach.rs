//! What passes an interface while the program is not on it: nothing, if the gateway is active.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use gateway_lab::{Gatewayd, Lab, Rig, ask_udp, server::Server, wait_until, wire::Wire};

use super::{DNS, ONE_POOL, json};

/// Leaves through the host's own routes, if anything does.
const PLAIN: &str = "203.0.113.10";
const BOTH: [bool; 2] = [true; 2];
const NEITHER: [bool; 2] = [false; 2];
const SOON: Duration = Duration::from_secs(5);

#[test]
fn nothing_passes_a_device_that_appears_while_no_daemon_runs() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    rig.lab.gw.ip(&["link", "del", "eth_in1"])?;
    wait_until("the interface to be shut", SOON, || {
        shut(&rig.lab, "eth_in1").is_ok_and(|shut| shut == BOTH)
    })?;
    rig.daemon.kill()?;
    bring_back(&rig.lab)?;
    rig.lab.c1.run(&["ping", "-c", "2", "-i", "0.2", "-W", "1", PLAIN])?.expect_failure()?;
    rig.lab.c1.run(&["ping", "-6", "-c", "2", "-i", "0.2", "-W", "1", "2001:db8:a::10"])?.expect_failure()?;
    // The host itself can be reached.
    rig.lab.c1.ok(&["ping", "-c", "1", "-W", "2", "10.0.1.1"])?;
    rig.daemon.start_again(&[])?;
    assert_eq!(shut(&rig.lab, "eth_in1")?, NEITHER);
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
    Ok(())
}

#[test]
fn an_inactive_gateway_leaves_a_missing_device_to_the_host() -> Result<()> {
    let Some(rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    rig.lab.gw.ip(&["link", "del", "eth_in1"])?;
    wait_until("the interface to be shut", SOON, || {
        shut(&rig.lab, "eth_in1").is_ok_and(|shut| shut == BOTH)
    })?;
    rig.daemon.tell("deactivate")?;
    assert_eq!(shut(&rig.lab, "eth_in1")?, NEITHER);
    rig.daemon.tell("activate")?;
    assert_eq!(shut(&rig.lab, "eth_in1")?, BOTH);
    rig.daemon.tell("interface del eth_in1")?;
    assert_eq!(shut(&rig.lab, "eth_in1")?, NEITHER);
    Ok(())
}

#[test]
fn a_change_of_mode_lets_nothing_through() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    let outside = Wire::open(&rig.lab.isp, "eth_gw")?;
    // No route allows this, and the host has one.
    let socket = rig.lab.c1.enter(|| UdpSocket::bind("10.0.1.2:4000"))??;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Refused while the device is down.
                let _ = socket.send_to(b"leak", "192.0.2.10:9");
                thread::sleep(Duration::from_micros(50));
            }
        });
        let changed = ["generic", "native", "generic"].into_iter().try_for_each(|mode| -> Result<()> {
            rig.daemon.kill()?;
            set_mode(&rig.daemon, mode)?;
            rig.daemon.start_again(&[])?;
            wait_until("the mode to change", SOON, || {
                let shown = json(&rig, "interface show");
                shown.is_ok_and(|shown| shown["items"][0]["attached"] == mode)
            })?;
            assert_eq!(shut(&rig.lab, "eth_in1")?, NEITHER);
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        changed
    })?;
    let client: Ipv4Addr = "10.0.1.2".parse()?;
    let heard = outside.collect(Duration::from_millis(100))?;
    let leaked = heard.iter().filter(|frame| frame.bytes.get(26..30) == Some(&client.octets()));
    assert_eq!(leaked.count(), 0, "packets left untranslated");
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
    Ok(())
}

#[test]
fn an_interface_that_refuses_a_mode_stays_in_the_one_it_has() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    rig.daemon.kill()?;
    set_mode(&rig.daemon, "generic")?;
    rig.daemon.start_again(&[])?;
    rig.daemon.kill()?;
    set_mode(&rig.daemon, "native")?;
    // A veth refuses native programs while its peer may send larger frames than a page holds.
    rig.lab.c1.ip(&["link", "set", "eth0", "mtu", "9000"])?;
    // The daemon may answer for a moment before it gives up.
    let _ = rig.daemon.start_again(&[]);
    wait_until("the daemon to give up", SOON, || {
        rig.daemon.log().contains("eth_in1 stays attached in generic mode")
    })?;
    assert_eq!(shut(&rig.lab, "eth_in1")?, NEITHER);
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
    rig.lab.c1.run(&["ping", "-c", "1", "-W", "1", "192.0.2.10"])?.expect_failure()?;
    Ok(())
}

/// Whether the host is kept from forwarding what arrives through a device of the gateway: IPv4, IPv6.
fn shut(lab: &Lab, device: &str) -> Result<[bool; 2]> {
    let rule = format!("iif {device} ");
    let shown = |family| lab.gw.ip(&[family, "rule", "show"]).map(|rules| rules.contains(&rule));
    Ok([shown("-4")?, shown("-6")?])
}

/// Makes `eth_in1` again.
fn bring_back(lab: &Lab) -> Result<()> {
    lab.sandbox.link((&lab.c1, "eth0"), (&lab.gw, "eth_in1"))?;
    for address in ["10.0.1.1/24", "2001:db8:1::1/64"] {
        lab.gw.ip(&["address", "add", address, "dev", "eth_in1"])?;
    }
    for (address, router) in [("10.0.1.2/24", "10.0.1.1"), ("2001:db8:1::2/64", "2001:db8:1::1")] {
        lab.c1.ip(&["address", "add", address, "dev", "eth0"])?;
        lab.c1.ip(&["route", "add", "default", "via", router])?;
    }
    Ok(())
}

/// Writes another mode of `eth_in1` into the configuration file.
fn set_mode(daemon: &Gatewayd, mode: &str) -> Result<()> {
    let config = fs::read_to_string(daemon.config_path())?;
    let lines = config.lines().filter(|line| !line.starts_with("mode = "));
    let edited = lines.map(|line| match line {
        "name = \"eth_in1\"" => format!("{line}\nmode = \"{mode}\"\n"),
        line => format!("{line}\n"),
    });
    Ok(fs::write(daemon.config_path(), edited.collect::<String>())?)
}
