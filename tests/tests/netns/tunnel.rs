//! Proxies in tunnels: the kernel's own devices at the other end, and squid behind them.

use std::{collections::BTreeSet, net::TcpListener, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{Node, Rig, ask_http, server::Server, wait_until};
use serde_json::Value;

use crate::proxy::programs::{Squid, installed};

const SOON: Duration = Duration::from_secs(10);
const SERVER: &str = "203.0.113.10";
const POOL: &str = "198.51.100.10";
const POOL6: &str = "2001:db8:ff::10";

/// Everything for `api` goes through a proxy in tunnels, which leaves by a pool.
fn config(proxy: &str) -> String {
    format!(
        r#"
[[pool]]
name = "nat"
addresses = ["{POOL}", "{POOL6}"]
[[proxy]]
name = "inspect"
interval = "200ms"
mode = "vxlan"
vni = 100
{proxy}
[[table]]
name = "main"
routes = [
  {{ to = "203.0.113.0/24", via = "proxy inspect" }},
  {{ to = "2001:db8:a::/64", via = "proxy inspect" }},
]
[[table]]
name = "proxies"
bind = ["10.0.3.0/24", "10.0.2.0/24", "2001:db8:3::/64"]
routes = [
  {{ to = "0.0.0.0/0", via = "pool nat" }},
  {{ to = "::/0", via = "pool nat" }},
]
"#
    )
}

/// The end of a tunnel on the host of a proxy, by which it sends everything but what goes to its own link.
fn far_end(node: &Node, host: &str, gateway: &str) -> Result<()> {
    let words = "link add vx0 type vxlan id 100 dstport 4789 udp6zerocsumrx";
    let words: Vec<_> = words.split(' ').chain(["local", host, "remote", gateway]).collect();
    node.ip(&words)?;
    node.ip(&["link", "set", "vx0", "up"])?;
    // Neighbour discovery, and `redirect` of netfilter, want the host's address on the device.
    if host.contains(':') {
        node.ip(&["address", "add", &format!("{host}/128"), "dev", "vx0", "nodad"])?;
    }
    let v4 = node.ip(&["-4", "-br", "address", "show", "dev", "eth0"])?;
    let own = v4.split_whitespace().nth(2).and_then(|word| word.split('/').next()).context("no address")?;
    node.ip(&["address", "add", &format!("{own}/32"), "dev", "vx0"])?;
    let v4 = node.ip(&["-4", "route", "show", "default"])?;
    let router = v4.split_whitespace().nth(2).context("no default route")?;
    node.ip(&["route", "replace", "default", "via", router, "dev", "vx0", "onlink"])?;
    node.ip(&["-6", "route", "replace", "default", "via", "fe80::1", "dev", "vx0"]).map(drop)
}

#[test]
fn squid_in_a_tunnel_intercepts_what_the_gateway_sends_it() -> Result<()> {
    if !installed("squid") {
        return Ok(());
    }
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"tcp:3129\""))? else {
        return Ok(());
    };
    let api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let squid = Squid::start(&rig.lab, &rig.lab.p1)?;
    // It listens, but not in the tunnel.
    up(&rig, "10.0.3.2", false)?;
    rig.lab.c1.run(&["curl", "-sS", "--max-time", "1", "http://203.0.113.10/"])?.expect_failure()?;
    assert!(rig.daemon.drops("proxy_down")? >= 1);
    assert_eq!(api.seen(), []);

    far_end(&rig.lab.p1, "10.0.3.2", "10.0.3.1")?;
    up(&rig, "10.0.3.2", true)?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    assert_eq!(squid.flows(1)?, ["10.0.1.2 203.0.113.10"]);
    // A file that takes large segments, both ways in the tunnel.
    assert_eq!(download(&rig, "203.0.113.10")?, "3000000");
    let _api6 = Server::http(&rig.lab.api, "[2001:db8:a::10]:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "[2001:db8:a::10]")?.ip().to_string(), POOL6);
    assert_eq!(download(&rig, "[2001:db8:a::10]")?, "3000000");
    assert_eq!(squid.flows(4)?[3], "2001:db8:1::2 2001:db8:a::10");

    // Nobody is there any more, and nothing gets out.
    rig.lab.p1.ip(&["link", "set", "vx0", "down"])?;
    up(&rig, "10.0.3.2", false)?;
    rig.lab.c1.run(&["curl", "-sS", "--max-time", "1", "http://203.0.113.10/"])?.expect_failure()?;
    Ok(())
}

#[test]
fn a_host_with_an_ipv6_address_is_met_in_a_tunnel_of_ipv6() -> Result<()> {
    if !installed("squid") {
        return Ok(());
    }
    let Some(rig) = Rig::start("active", &config("hosts = [\"2001:db8:3::2\"]\ncheck = \"tcp:3129\""))?
    else {
        return Ok(());
    };
    far_end(&rig.lab.p1, "2001:db8:3::2", "2001:db8:3::1")?;
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let squid = Squid::start(&rig.lab, &rig.lab.p1)?;
    up(&rig, "2001:db8:3::2", true)?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    assert_eq!(squid.flows(1)?, ["10.0.1.2 203.0.113.10"]);
    assert_eq!(download(&rig, "203.0.113.10")?, "3000000");
    rig.daemon.tell("proxy set inspect check icmp")?;
    up(&rig, "2001:db8:3::2", true)?;
    rig.lab.p1.ip(&["link", "set", "vx0", "down"])?;
    up(&rig, "2001:db8:3::2", false)
}

#[test]
fn a_squid_in_a_tunnel_that_dies_leaves_its_clients_to_the_other_one() -> Result<()> {
    if !installed("squid") {
        return Ok(());
    }
    let both = "hosts = [\"10.0.3.2\", \"10.0.2.2\"]\ncheck = \"tcp:3129\"";
    let Some(rig) = Rig::start("active", &config(both))? else { return Ok(()) };
    let clients: BTreeSet<String> = (20..40).map(|last| format!("10.0.1.{last}")).collect();
    for client in &clients {
        rig.lab.c1.ip(&["address", "add", &format!("{client}/24"), "dev", "eth0"])?;
    }
    far_end(&rig.lab.p1, "10.0.3.2", "10.0.3.1")?;
    far_end(&rig.lab.c2, "10.0.2.2", "10.0.2.1")?;
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let (first, second) = (Squid::start(&rig.lab, &rig.lab.p1)?, Squid::start(&rig.lab, &rig.lab.c2)?);
    up(&rig, "10.0.3.2", true)?;
    up(&rig, "10.0.2.2", true)?;
    let fetch_all = || -> Result<()> {
        for client in &clients {
            let curl =
                ["curl", "-sS", "--fail", "--max-time", "5", "--interface", client, "http://203.0.113.10/"];
            rig.lab.c1.run(&curl)?.ok().with_context(|| format!("{client} does not get through"))?;
        }
        Ok(())
    };
    fetch_all()?;
    first.flows(1)?;
    second.flows(1)?;
    first.signal(nix::sys::signal::Signal::SIGKILL)?;
    up(&rig, "10.0.3.2", false)?;
    fetch_all()?;
    assert_eq!(second.clients()?.len(), clients.len());
    Ok(())
}

#[test]
fn a_tunnel_outlives_the_daemon_and_goes_with_its_proxy() -> Result<()> {
    let Some(mut rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"icmp\""))? else {
        return Ok(());
    };
    far_end(&rig.lab.p1, "10.0.3.2", "10.0.3.1")?;
    // A router that sends on what it gets.
    rig.lab.p1.sysctl("net.ipv4.ip_forward", "1")?;
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    up(&rig, "10.0.3.2", true)?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    let before = device(&rig, "gwvx100")?;
    rig.daemon.kill()?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    rig.daemon.start_again(&[])?;
    assert_eq!(device(&rig, "gwvx100")?, before, "it was taken over");
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    up(&rig, "10.0.3.2", true)?;

    rig.daemon.tell("proxy set inspect mode vxlan vni 101")?;
    assert!(device(&rig, "gwvx100").is_err());
    device(&rig, "gwvx101")?;
    rig.daemon.tell("proxy set inspect mode l2")?;
    assert!(device(&rig, "gwvx101").is_err());
    let rules = rig.lab.gw.ip(&["rule"])? + &rig.lab.gw.ip(&["-6", "rule"])?;
    assert!(!rules.contains("gwvx") && !rules.contains("fwmark"), "{rules}");
    rig.daemon.tell("proxy set inspect mode vxlan vni 102")?;
    rig.daemon.stop()?;
    device(&rig, "gwvx102")?;
    rig.daemon.start_again(&["--detach-on-exit"])?;
    rig.daemon.stop()?;
    assert!(device(&rig, "gwvx102").is_err());
    Ok(())
}

#[test]
fn a_name_that_another_device_has_is_refused() -> Result<()> {
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]"))? else { return Ok(()) };
    rig.lab.gw.ip(&["link", "add", "gwvx7", "type", "bridge"])?;
    let refused = rig.daemon.gwctl(&["proxy", "set", "inspect", "mode", "vxlan", "vni", "7"])?;
    assert!(refused.stderr.contains("gwvx7"), "{}", refused.stderr);
    rig.lab.gw.ip(&["link", "add", "mine", "type", "vxlan", "id", "8", "dstport", "4789"])?;
    let refused = rig.daemon.gwctl(&["proxy", "set", "inspect", "mode", "vxlan", "vni", "8"])?;
    assert!(refused.stderr.contains("vxlan vni 8"), "{}", refused.stderr);
    // Nothing has changed.
    device(&rig, "gwvx100")?;
    device(&rig, "gwvx7")?;
    assert!(device(&rig, "gwvx8").is_err());
    Ok(())
}

#[test]
fn the_gateway_host_forwards_nothing_that_comes_out_of_a_tunnel() -> Result<()> {
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"icmp\""))? else {
        return Ok(());
    };
    far_end(&rig.lab.p1, "10.0.3.2", "10.0.3.1")?;
    up(&rig, "10.0.3.2", true)?;
    let listener = rig.lab.api.enter(|| TcpListener::bind("203.0.113.10:80"))??;
    listener.set_nonblocking(true)?;
    // In fragments, frames in tunnels are the host's.
    rig.lab.p1.ip(&["link", "set", "eth0", "mtu", "576"])?;
    rig.lab.p1.ip(&["link", "set", "vx0", "mtu", "1450"])?;
    let large = ["ping", "-c", "2", "-W", "1", "-s", "1200", "203.0.113.10"];
    rig.lab.p1.run(&large)?.expect_failure()?;
    let small = ["ping", "-c", "1", "-W", "1", "-s", "100", "203.0.113.10"];
    rig.lab.p1.ok(&small)?;
    Ok(())
}

#[test]
fn clients_learn_how_much_a_tunnel_takes_also_when_the_way_to_its_host_becomes_narrow() -> Result<()> {
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"icmp\""))? else {
        return Ok(());
    };
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _api6 = Server::http(&rig.lab.api, "[2001:db8:a::10]:80".parse()?)?;
    far_end(&rig.lab.p1, "10.0.3.2", "10.0.3.1")?;
    // A router that sends on what it gets.
    rig.lab.p1.sysctl("net.ipv4.ip_forward", "1")?;
    rig.lab.p1.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    up(&rig, "10.0.3.2", true)?;
    let ping = |server: &str, size: u32| {
        let size = size.to_string();
        rig.lab.c1.run(&["ping", "-M", "do", "-c", "1", "-W", "1", "-s", &size, server])
    };
    // Each is too large, and fits what the client knows.
    for (mtu, too_large) in [(1450, 1500), (1350, 1450)] {
        for (server, headers) in [("203.0.113.10", 28), ("2001:db8:a::10", 48)] {
            let told = format!("mtu = {mtu}");
            wait_until("the client to be told", SOON, || {
                ping(server, too_large - headers).is_ok_and(|said| {
                    let text = said.stdout.replace("mtu=", "mtu = ") + &said.stderr.replace("mtu=", "mtu = ");
                    !said.success() && text.contains(&told)
                })
            })
            .with_context(|| format!("{server} {mtu}"))?;
            ping(server, mtu - headers)?.ok().with_context(|| format!("{server} {mtu}"))?;
        }
        // Connections need not be told: they announce what fits.
        assert_eq!(download(&rig, "203.0.113.10")?, "3000000");
        assert_eq!(download(&rig, "[2001:db8:a::10]")?, "3000000");
        rig.lab.gw.ip(&["link", "set", "eth_in3", "mtu", "1400"])?;
        rig.lab.p1.ip(&["link", "set", "eth0", "mtu", "1400"])?;
        rig.lab.p1.ip(&["link", "set", "vx0", "mtu", "1350"])?;
    }
    Ok(())
}

fn download(rig: &Rig, server: &str) -> Result<String> {
    let curl = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}"];
    rig.lab.c1.ok(&[&curl[..], &[&format!("http://{server}/3000000")]].concat())
}

/// What the kernel says of a device of the gateway host, as long as it is the same one.
fn device(rig: &Rig, name: &str) -> Result<String> {
    let shown = rig.lab.gw.ip(&["-o", "link", "show", name])?;
    Ok(shown.split(' ').next().unwrap_or_default().to_owned())
}

/// Waits until checks have found out of a host that it is up, or not.
fn up(rig: &Rig, host: &str, up: bool) -> Result<()> {
    let wanted = if up { "up" } else { "down" };
    let state = || -> Result<String> {
        let shown: Value = serde_json::from_str(&rig.daemon.tell("--json proxy show inspect")?)?;
        let hosts = shown["items"][0]["hosts"].as_array().context("no list of hosts")?;
        let found = hosts.iter().find(|row| row["address"] == host).context("no such host")?;
        Ok(format!("{} ({})", found["state"].as_str().unwrap_or_default(), found["error"]))
    };
    wait_until(&format!("{host} to be {wanted}"), SOON, || state().is_ok_and(|is| is.starts_with(wanted)))
        .with_context(|| format!("it is {:?}; the log:\n{}", state(), rig.daemon.log()))
}
