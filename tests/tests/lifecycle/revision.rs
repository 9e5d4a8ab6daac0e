//! Changes that have to be confirmed, while daemons come and go.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::Result;
use gateway_lab::{Rig, ask_udp, server::Server, wait_until};

use super::{DNS, ONE_POOL, json};

const SOON: Duration = Duration::from_secs(10);

/// Writes what is in force to a file, with the route sent straight on.
fn without_translation(rig: &Rig) -> Result<PathBuf> {
    let path = rig.daemon.config_path().with_file_name("next.toml");
    fs::write(&path, rig.daemon.tell("export")?.replace("via = \"pool nat\"", "via = \"direct\""))?;
    Ok(path)
}

fn source_seen(rig: &Rig, port: u16) -> Result<String> {
    Ok(ask_udp(&rig.lab.c1, &format!("10.0.1.2:{port}"), DNS)?.ip().to_string())
}

#[test]
fn what_nobody_confirms_is_taken_back_also_if_the_daemon_is_killed_meanwhile() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    let next = without_translation(&rig)?.display().to_string();
    let curl = |rig: &Rig, query: &str| {
        let socket = rig.daemon.socket().display().to_string();
        let (body, uri) = (format!("@{next}"), format!("http://gw/v1/apply?{query}"));
        rig.lab.gw.ok(&["curl", "-sf", "--unix-socket", &socket, "--data-binary", &body, &uri])
    };
    curl(&rig, "confirm=5s")?;
    assert_eq!(source_seen(&rig, 5000)?, "10.0.1.2");
    rig.daemon.kill()?;
    thread::sleep(Duration::from_secs(5));
    // The data plane goes on with what it has; the next daemon takes it back before it answers.
    assert_eq!(source_seen(&rig, 5001)?, "10.0.1.2");
    rig.daemon.start_again(&[])?;
    assert_eq!(source_seen(&rig, 5002)?, "198.51.100.10");
    let history = json(&rig, "history")?;
    assert_eq!(history["items"][0]["command"], "take back revision 2, which nobody has confirmed");
    // A daemon that comes back in time waits for the rest of it.
    curl(&rig, "confirm=9s")?;
    rig.daemon.kill()?;
    rig.daemon.start_again(&[])?;
    assert_eq!(source_seen(&rig, 5003)?, "10.0.1.2");
    wait_until("the change to be taken back", SOON, || {
        json(&rig, "history").is_ok_and(|history| history["revision"] == 5)
    })?;
    assert_eq!(source_seen(&rig, 5004)?, "198.51.100.10");
    Ok(())
}

#[test]
fn a_revision_from_before_a_kill_is_brought_back() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    let next = without_translation(&rig)?;
    rig.daemon.ok(&["apply", "-f", &next.display().to_string()])?;
    rig.daemon.tell("route add 192.0.2.0/24 via blackhole")?;
    assert_eq!(source_seen(&rig, 5000)?, "10.0.1.2");
    rig.daemon.kill()?;
    rig.daemon.start_again(&[])?;
    assert_eq!(source_seen(&rig, 5001)?, "10.0.1.2");
    rig.daemon.tell("undo 1")?;
    assert_eq!(source_seen(&rig, 5002)?, "198.51.100.10");
    rig.daemon.tell("undo")?;
    assert_eq!(source_seen(&rig, 5003)?, "10.0.1.2");
    Ok(())
}
