//! Proxies: squid and haproxy as Debian has them, on hosts that the gateway sends clients through.

pub(crate) mod programs;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use gateway_lab::{Rig, ask_http, server::Server, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use programs::{Haproxy, Squid, installed};

/// Everything for `api` goes through a proxy, which leaves by a pool; `web` is trusted, and met by the EIP of `c1`.
fn config(proxy: &str) -> String {
    format!(
        r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:ff::10"]
[[eip]]
address = "198.51.100.11"
host = "10.0.1.2"
[[proxy]]
name = "inspect"
interval = "200ms"
{proxy}
[[table]]
name = "main"
routes = [
  {{ to = "203.0.113.0/24", via = "proxy inspect" }},
  {{ to = "2001:db8:a::/64", via = "proxy inspect" }},
  {{ to = "198.51.100.0/24", via = "eip" }},
]
[[table]]
name = "proxies"
bind = ["10.0.3.0/24", "10.0.2.0/24"]
routes = [
  {{ to = "0.0.0.0/0", via = "pool nat" }},
  {{ to = "::/0", via = "pool nat" }},
]
"#
    )
}

const SOON: Duration = Duration::from_secs(10);
const SERVER: &str = "203.0.113.10";
/// The pool, as `api` sees it.
const POOL: &str = "198.51.100.10";
const POOL6: &str = "2001:db8:ff::10";
const BOTH_SQUIDS: &str = "hosts = [\"10.0.3.2\", \"10.0.2.2\"]\ncheck = \"tcp:3129\"";

#[test]
fn checks_find_out_which_hosts_are_up_past_an_active_gateway() -> Result<()> {
    let proxy = "hosts = [\"10.0.3.2\"]\ncheck = \"tcp:3129\"";
    let Some(rig) = Rig::start("active", &config(proxy))? else { return Ok(()) };
    let host = |address: &str, state: &str| {
        let what = format!("{address} to be {state}");
        wait_until(&what, SOON, || hosts(&rig).is_ok_and(|all| all.contains(&format!("{address} {state}"))))
            .with_context(|| format!("it is {:?}; the log:\n{}", hosts(&rig), rig.daemon.log()))
    };
    host("10.0.3.2", "down")?;
    assert_eq!(rig.daemon.gwctl(&["status", "--brief"])?.code, Some(9), "no host of a proxy is up");
    assert_eq!(rig.daemon.count("gateway_proxy_up{proxy=\"inspect\",host=\"10.0.3.2\"}")?, 0);
    let listener = Server::http(&rig.lab.p1, "10.0.3.2:3129".parse()?)?;
    host("10.0.3.2", "up")?;
    assert_eq!(rig.daemon.gwctl(&["status", "--brief"])?.code, Some(0));
    assert_eq!(rig.daemon.count("gateway_proxy_up{proxy=\"inspect\",host=\"10.0.3.2\"}")?, 1);
    // A check comes from the gateway host itself.
    assert!(listener.seen().iter().all(|peer| peer.ip().to_string() == "10.0.3.1"), "{:?}", listener.seen());
    drop(listener);
    host("10.0.3.2", "down")?;
    rig.daemon.tell("proxy set inspect check icmp host 10.0.3.2,2001:db8:3::2,10.0.2.7")?;
    host("10.0.3.2", "up")?;
    host("2001:db8:3::2", "up")?;
    host("10.0.2.7", "down")?;
    rig.daemon.tell("proxy set inspect check none")?;
    host("10.0.2.7", "unchecked")?;
    let log = rig.daemon.log();
    assert!(log.contains("the proxy host is down: tcp port 3129: connection refused"), "{log}");
    Ok(())
}

#[test]
fn what_is_known_of_a_host_outlives_the_daemon() -> Result<()> {
    let proxy = "hosts = [\"10.0.3.2\"]\ncheck = \"icmp\"";
    let config = config(proxy).replace("200ms", "2s");
    let Some(mut rig) = Rig::start("active", &config)? else { return Ok(()) };
    up(&rig, "10.0.3.2", true)?;
    // Silence, which says nothing until it is repeated.
    rig.lab.p1.sysctl("net.ipv4.icmp_echo_ignore_all", "1")?;
    up(&rig, "10.0.3.2", false)?;
    rig.daemon.kill()?;
    rig.daemon.start_again(&[])?;
    let shown: Value = serde_json::from_str(&rig.daemon.tell("--json proxy show inspect")?)?;
    let host = &shown["items"][0]["hosts"][0];
    assert_eq!((&host["state"], &host["up"]), (&json!("unknown"), &json!(false)), "{host}");
    rig.lab.c1.run(&["curl", "-sS", "--max-time", "1", "http://203.0.113.10/"])?.expect_failure()?;
    assert!(rig.daemon.drops("proxy_down")? >= 1);
    rig.lab.p1.sysctl("net.ipv4.icmp_echo_ignore_all", "0")?;
    up(&rig, "10.0.3.2", true)
}

#[test]
fn squid_intercepts_what_the_gateway_sends_it_and_trusted_servers_are_met_directly() -> Result<()> {
    if !installed("squid") {
        return Ok(());
    }
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"tcp:3129\""))? else {
        return Ok(());
    };
    let api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let trusted = Server::http(&rig.lab.isp, "198.51.100.1:80".parse()?)?;
    // Fail closed: nobody is there yet, and nothing gets out.
    up(&rig, "10.0.3.2", false)?;
    let curl = ["curl", "-sS", "--max-time", "2", "http://203.0.113.10/"];
    rig.lab.c1.run(&curl)?.expect_failure()?;
    assert!(rig.daemon.drops("proxy_down")? >= 1);
    assert_eq!(api.seen(), []);

    let squid = Squid::start(&rig.lab, &rig.lab.p1)?;
    up(&rig, "10.0.3.2", true)?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    assert_eq!(squid.flows(1)?, ["10.0.1.2 203.0.113.10"]);
    let shown = rig.daemon.tell("session show from 10.0.1.2")?;
    assert!(shown.contains(" inspect 10.0.3.2 "), "{shown}");
    // A file that takes more than a few segments, both ways through the gateway twice.
    let file = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}"];
    let file = [&file[..], &["http://203.0.113.10/3000000"]].concat();
    assert_eq!(rig.lab.c1.ok(&file)?, "3000000");
    assert_eq!(ask_http(&rig.lab.c1, "198.51.100.1")?.ip().to_string(), "198.51.100.11");
    assert_eq!(squid.flows(2)?.len(), 2, "the trusted server is not met through the proxy");
    assert_eq!(trusted.seen().len(), 1);
    // Packets of the other family go to the same host, and leave by the same table.
    let _api6 = Server::http(&rig.lab.api, "[2001:db8:a::10]:80".parse()?)?;
    assert_eq!(ask_http(&rig.lab.c1, "[2001:db8:a::10]")?.ip().to_string(), POOL6);
    assert_eq!(squid.flows(3)?[2], "2001:db8:1::2 2001:db8:a::10");
    Ok(())
}

#[test]
fn a_squid_on_the_link_of_its_clients_answers_them_past_the_gateway() -> Result<()> {
    if !installed("squid") {
        return Ok(());
    }
    let config =
        config("hosts = [\"10.0.1.9\"]\ncheck = \"tcp:3129\"").replace("\"10.0.3.0/24\"", "\"10.0.1.9/32\"");
    let Some(rig) = Rig::start("active", &config)? else { return Ok(()) };
    // Both hosts get a device of their own on the link of c1.
    rig.lab.c1.ip(&["address", "flush", "dev", "eth0"])?;
    for (node, address) in [(&rig.lab.c1, "10.0.1.2/24"), (&rig.lab.p1, "10.0.1.9/24")] {
        let device = ["link", "add", "link", "eth0", "name", "shared", "netns", node.name()];
        rig.lab.c1.ip(&[&device[..], &["type", "macvlan", "mode", "bridge"]].concat())?;
        node.ip(&["address", "add", address, "dev", "shared"])?;
        node.ip(&["link", "set", "shared", "up"])?;
        node.ip(&["route", "replace", "0.0.0.0/0", "via", "10.0.1.1"])?;
    }
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let squid = Squid::start(&rig.lab, &rig.lab.p1)?;
    up(&rig, "10.0.1.9", true)?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    assert_eq!(squid.flows(1)?, ["10.0.1.2 203.0.113.10"]);
    let file = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}"];
    let file = [&file[..], &["http://203.0.113.10/3000000"]].concat();
    assert_eq!(rig.lab.c1.ok(&file)?, "3000000");
    // The gateway has seen nothing of what the client got.
    let shown: Value = serde_json::from_str(&rig.daemon.tell("--json session show from 10.0.1.2")?)?;
    let received = |row: &Value| row["received"]["packets"] == 0;
    let rows = shown["items"].as_array().context("no list of sessions")?;
    assert!(!rows.is_empty() && rows.iter().all(received), "{rows:?}");
    Ok(())
}

#[test]
fn while_no_host_is_up_packets_go_where_the_proxy_says() -> Result<()> {
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"tcp:3129\""))? else {
        return Ok(());
    };
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    up(&rig, "10.0.3.2", false)?;
    rig.daemon.tell("proxy set inspect fail pool nat")?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    rig.daemon.tell("proxy set inspect fail closed")?;
    rig.lab.c1.run(&["curl", "-sS", "--max-time", "1", "http://203.0.113.10/"])?.expect_failure()?;
    assert!(rig.daemon.drops("proxy_down")? >= 1);
    Ok(())
}

#[test]
fn haproxy_meets_servers_as_the_client_and_sees_their_answers() -> Result<()> {
    if !installed("haproxy") {
        return Ok(());
    }
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"tcp:3130\""))? else {
        return Ok(());
    };
    let haproxy = Haproxy::start(&rig.lab, &rig.lab.p1)?;
    let _api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    up(&rig, "10.0.3.2", true)?;
    assert_eq!(ask_http(&rig.lab.c1, SERVER)?.ip().to_string(), POOL);
    assert_eq!(haproxy.flows(1)?, ["10.0.1.2 203.0.113.10"]);
    // The second half is the client's by its address and the proxy's by its way.
    let translated = sessions(&rig, "pool nat")?;
    assert_eq!(translated, ["10.0.1.2"]);
    let file = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}"];
    let file = [&file[..], &["http://203.0.113.10/3000000"]].concat();
    assert_eq!(rig.lab.c1.ok(&file)?, "3000000");
    Ok(())
}

#[test]
fn a_squid_that_dies_takes_its_own_flows_along_and_no_others() -> Result<()> {
    let Some(pair) = pair()? else { return Ok(()) };
    let Pair { rig, first, second, clients, .. } = &pair;
    fetch_all(rig, clients)?;
    let (of_first, of_second) = (first.clients()?, second.clients()?);
    assert_eq!(of_first.len() + of_second.len(), clients.len(), "each has one of the two");
    assert!(of_first.len() >= 8 && of_second.len() >= 8, "{of_first:?} {of_second:?}");

    // Downloads of three seconds through the one that lives, while the other is killed.
    let downloads: Vec<_> = of_second
        .iter()
        .take(4)
        .map(|client| rig.lab.c1.spawn_piped(&words(&fetch(client, "3000000", "20"))))
        .collect::<Result<_>>()?;
    thread::sleep(Duration::from_millis(500));
    first.signal(Signal::SIGKILL)?;
    up(rig, "10.0.3.2", false)?;
    fetch_all(rig, &of_first)?;
    assert_eq!(second.clients()?.len(), clients.len(), "all are where the living one is");
    for download in downloads {
        assert_eq!(download.finish(Duration::from_secs(20))?.ok()?, "3000000");
    }
    Ok(())
}

#[test]
fn a_drained_squid_gets_no_new_flows_and_later_those_that_it_had() -> Result<()> {
    let Some(pair) = pair()? else { return Ok(()) };
    let Pair { rig, first, second, clients, .. } = &pair;
    fetch_all(rig, clients)?;
    let of_first = first.clients()?;
    let download = rig.lab.c1.spawn_piped(&words(&fetch(
        of_first.first().context("no client of the first")?,
        "3000000",
        "20",
    )))?;
    thread::sleep(Duration::from_millis(500));
    rig.daemon.tell("proxy drain inspect host 10.0.3.2")?;
    assert!(rig.daemon.count("gateway_proxy_flows{proxy=\"inspect\",host=\"10.0.3.2\"}")? >= 1);
    fetch_all(rig, clients)?;
    assert_eq!(second.clients()?.len(), clients.len());
    assert_eq!(download.finish(Duration::from_secs(20))?.ok()?, "3000000", "what it had went on");
    // The log has a request once it is over.
    assert_eq!(first.flows(of_first.len() + 1)?.len(), of_first.len() + 1, "nobody new has come to it");
    rig.daemon.tell("proxy undrain inspect host 10.0.3.2")?;
    fetch_all(rig, clients)?;
    assert_eq!(first.flows(2 * of_first.len() + 1)?.len(), 2 * of_first.len() + 1);
    assert_eq!(first.clients()?, of_first);
    Ok(())
}

#[test]
fn a_client_learns_at_once_that_its_proxy_host_is_gone() -> Result<()> {
    if !installed("haproxy") {
        return Ok(());
    }
    let Some(rig) = Rig::start("active", &config("hosts = [\"10.0.3.2\"]\ncheck = \"tcp:3130\""))? else {
        return Ok(());
    };
    let _haproxy = Haproxy::start(&rig.lab, &rig.lab.p1)?;
    let listener = rig.lab.api.enter(|| TcpListener::bind("203.0.113.10:80"))??;
    up(&rig, "10.0.3.2", true)?;
    let mut stream = rig.lab.c1.enter(|| TcpStream::connect("203.0.113.10:80"))??;
    stream.write_all(b"hello")?;
    let (mut far, _) = listener.accept()?;
    far.read_exact(&mut [0; 5])?;
    let begin = Instant::now();
    // As if somebody had pulled the plug: nobody says goodbye.
    rig.lab.p1.ip(&["link", "set", "eth0", "down"])?;
    let error = loop {
        thread::sleep(Duration::from_millis(50));
        if let Err(error) = stream.write_all(b"are you there") {
            break error;
        }
        assert!(begin.elapsed() < SOON, "the client still writes: {:?}", hosts(&rig));
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    Ok(())
}

/// Two squids, and a client host with many addresses, so that both get flows.
struct Pair {
    rig: Rig,
    /// On 10.0.3.2.
    first: Squid,
    /// On 10.0.2.2.
    second: Squid,
    clients: BTreeSet<String>,
    _api: Server,
}

fn pair() -> Result<Option<Pair>> {
    if !installed("squid") {
        return Ok(None);
    }
    let Some(rig) = Rig::start("active", &config(BOTH_SQUIDS))? else { return Ok(None) };
    let clients: BTreeSet<String> = (20..60).map(|last| format!("10.0.1.{last}")).collect();
    for client in &clients {
        rig.lab.c1.ip(&["address", "add", &format!("{client}/24"), "dev", "eth0"])?;
    }
    let api = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let first = Squid::start(&rig.lab, &rig.lab.p1)?;
    let second = Squid::start(&rig.lab, &rig.lab.c2)?;
    up(&rig, "10.0.3.2", true)?;
    up(&rig, "10.0.2.2", true)?;
    Ok(Some(Pair { rig, first, second, clients, _api: api }))
}

/// The command line with which a client fetches so many bytes, a megabyte a second.
fn fetch(client: &str, size: &str, limit: &str) -> String {
    format!(
        "curl -sS --fail --max-time {limit} --interface {client} --limit-rate 1M -o /dev/null -w %{{size_download}} \
         http://203.0.113.10/{size}"
    )
}

/// Has each of the clients fetch something small.
fn fetch_all(rig: &Rig, clients: &BTreeSet<String>) -> Result<()> {
    for client in clients {
        let fetched = rig.lab.c1.run(&words(&fetch(client, "", "5")))?;
        fetched.ok().with_context(|| format!("{client} does not get through"))?;
    }
    Ok(())
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Waits until checks have found out of a host that it is up, or not.
fn up(rig: &Rig, host: &str, up: bool) -> Result<()> {
    let wanted = format!("{host} {}", if up { "up" } else { "down" });
    wait_until(&wanted, SOON, || hosts(rig).is_ok_and(|all| all.contains(&wanted)))
}

/// Hosts of the proxy, and what checks say of them.
fn hosts(rig: &Rig) -> Result<Vec<String>> {
    let shown: Value = serde_json::from_str(&rig.daemon.tell("--json proxy show inspect")?)?;
    let hosts = shown["items"][0]["hosts"].as_array().context("no list of hosts")?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(hosts.iter().map(|host| format!("{} {}", word(&host["address"]), word(&host["state"]))).collect())
}

/// Sources of the sessions that match.
fn sessions(rig: &Rig, selectors: &str) -> Result<Vec<String>> {
    let shown: Value = serde_json::from_str(&rig.daemon.tell(&format!("--json session show {selectors}"))?)?;
    let rows = shown["items"].as_array().context("no list of sessions")?;
    Ok(rows.iter().filter_map(|row| row["source"]["address"].as_str().map(str::to_owned)).collect())
}
