//! A gateway that only watches.

use std::{thread, time::Duration};

use anyhow::Result;
use gateway_lab::{Gatewayd, Lab, Node, Rig, UdpClient, ask_http, runnable, server::Server, wait_until};

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

#[test]
fn activation_is_in_force_for_the_next_packet_however_often_it_changes() -> Result<()> {
    let Some(rig) = Rig::start("inactive", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let seen = || client.ask("203.0.113.10:53").map(|peer| peer.ip().to_string());
    for _ in 0..5 {
        assert_eq!(seen()?, "10.0.1.2");
        rig.daemon.tell("activate")?;
        assert_eq!(seen()?, "198.51.100.10");
        rig.daemon.tell("deactivate")?;
    }
    Ok(())
}

#[test]
fn the_host_is_as_it_was_while_the_gateway_is_inactive_and_when_it_is_gone() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    lab.gw.ok(&["nft", "add", "table", "inet", "own"])?;
    lab.gw.ip(&["rule", "add", "from", "10.0.99.0/24", "lookup", "99"])?;
    let more = "[[eip]]\naddress = \"198.51.100.11\"\nhost = \"10.0.2.2\"\n\
                [[proxy]]\nname = \"squid\"\nhosts = [\"10.0.3.2\"]\ncheck = \"icmp\"\n";
    let config = Gatewayd::standard_config("inactive", &format!("{ONE_POOL}{more}"));
    let mut daemon = Gatewayd::new(&lab.sandbox, &lab.gw, &config)?;
    let before = state(&lab.gw)?;
    assert_eq!(kept_neighbors(&lab.gw)?, 0);
    daemon.start_again(&["--detach-on-exit"])?;
    unchanged(&before, &state(&lab.gw)?, "while it is inactive");
    daemon.tell("activate")?;
    daemon.tell("route add 10.9.9.0/24 via gateway 10.9.0.1")?;
    ask_http_of_nobody(&lab.c1)?;
    daemon.tell("deactivate")?;
    unchanged(&before, &state(&lab.gw)?, "when it is inactive again");
    assert!(daemon.stop()?.success(), "{}", daemon.log());
    unchanged(&before, &state(&lab.gw)?, "when it is gone");
    assert_eq!(kept_neighbors(&lab.gw)?, 0, "the kernel goes on to resolve neighbours for the gateway");
    let attached = || lab.gw.ip(&["-details", "link", "show"]).is_ok_and(|links| links.contains("prog/xdp"));
    wait_until("the programs to be gone", Duration::from_secs(5), || !attached())
}

/// Something to decide about: nobody answers.
fn ask_http_of_nobody(client: &Node) -> Result<()> {
    client.run(&["curl", "--silent", "--max-time", "1", "http://203.0.113.10/"])?.expect_failure()?;
    // What the gateway has asked the host meanwhile is settled.
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// What the host is set up to do, a part for each kind of it: links but for their programs, addresses, rules, routes,
/// packet filter, traffic control, settings.
fn state(host: &Node) -> Result<Vec<(&'static str, String)>> {
    let links = host.ip(&["-details", "link", "show"])?;
    let settings = host.ok(&["sysctl", "--all", "--pattern", "^net\\."])?;
    let settings: Vec<&str> = settings.lines().filter(|line| !line.contains("nf_conntrack_count")).collect();
    Ok(vec![
        ("links", links.lines().filter(|line| !line.contains("prog/xdp")).map(plain).collect()),
        ("addresses", host.ip(&["address", "show"])?.lines().map(plain).collect()),
        ("rules", host.ip(&["rule", "show"])? + &host.ip(&["-6", "rule", "show"])?),
        ("routes", host.ip(&["route", "show", "table", "all"])?),
        ("routes of IPv6", host.ip(&["-6", "route", "show", "table", "all"])?),
        ("packet filter", host.ok(&["nft", "list", "ruleset"])?),
        ("traffic control", host.ok(&["tc", "qdisc", "show"])?),
        ("settings", settings.join("\n")),
    ])
}

/// Neighbours that do not go by themselves, because somebody has put them there.
fn kept_neighbors(host: &Node) -> Result<usize> {
    let neighbors = host.ip(&["neighbor", "show"])?;
    let kept = ["PERMANENT", "managed", "extern_learn"];
    Ok(neighbors.lines().filter(|line| kept.iter().any(|word| line.contains(word))).count())
}

/// A line of `ip`, without the mark that a program is attached.
fn plain(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.starts_with("xdp"));
    words.collect::<Vec<_>>().join(" ") + "\n"
}

#[track_caller]
fn unchanged(before: &[(&str, String)], now: &[(&str, String)], when: &str) {
    for ((what, before), (_, now)) in before.iter().zip(now) {
        let of = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (before, now) = (of(before), of(now));
        let gone: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
        let fresh: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
        assert!(gone.is_empty() && fresh.is_empty(), "{what} {when}: gone {gone:#?}, fresh {fresh:#?}");
    }
}
