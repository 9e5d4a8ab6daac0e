//! The daemon may come and go; the gateway stays.

mod attach;
mod revision;
mod scale;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{
    Finished, Gatewayd, Lab, Process, Rig, UdpClient, ask_http, ask_udp, runnable, server::Server, wait_until,
};
use serde_json::Value;

const ONE_POOL: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10"]
per_destination = { rate = 0, concurrent = 0 }
[[table]]
name = "main"
routes = [{ to = "203.0.113.0/24", via = "pool nat" }]
"#;

const DNS: &str = "203.0.113.10:53";
/// Length of a traffic run that spans a death and a return.
const RUN: &str = "--time=6";

#[test]
fn kill_and_return_lose_no_packet() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let streams = Streams::start(&rig)?;
    pause();
    rig.daemon.kill()?;
    pause();
    rig.daemon.start_again(&[])?;
    pause();
    streams.expect_nothing_lost()
}

#[test]
fn stop_and_return_lose_no_packet() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let streams = Streams::start(&rig)?;
    pause();
    assert!(rig.daemon.stop()?.success(), "{}", rig.daemon.log());
    pause();
    rig.daemon.start_again(&[])?;
    pause();
    streams.expect_nothing_lost()
}

#[test]
fn without_the_daemon_new_connections_open() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    rig.daemon.kill()?;
    for client in [&rig.lab.c1, &rig.lab.c2] {
        assert_eq!(ask_http(client, "203.0.113.10")?.ip().to_string(), "198.51.100.10");
    }
    // And what has no route stays in.
    rig.lab.c1.run(&["ping", "-c", "1", "-W", "1", "192.0.2.10"])?.expect_failure()?;
    Ok(())
}

#[test]
fn sessions_and_counters_are_there_after_a_restart() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let seen = client.ask(DNS)?;
    client.ask(DNS)?;
    rig.lab.c1.run(&["ping", "-c", "2", "-i", "0.1", "-W", "1", "192.0.2.10"])?.expect_failure()?;
    let drops = rig.daemon.drops("no_route")?;
    rig.daemon.kill()?;
    rig.daemon.start_again(&[])?;
    assert_eq!(rig.daemon.drops("no_route")?, drops, "counters go on");
    let sessions = json(&rig, "session show proto udp")?;
    assert_eq!(sessions["items"][0]["sent"]["packets"], 2, "{sessions}");
    assert_eq!(client.ask(DNS)?, seen, "the session goes on");
    let sessions = json(&rig, "session show proto udp")?;
    assert_eq!(sessions["items"][0]["sent"]["packets"], 3, "{sessions}");
    Ok(())
}

#[test]
fn flows_stay_on_their_proxy_hosts_when_the_daemon_dies() -> Result<()> {
    let more = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10"]
[[proxy]]
name = "hosts"
hosts = ["10.0.3.2", "10.0.2.2"]
[[table]]
name = "main"
routes = [{ to = "0.0.0.0/0", via = "proxy hosts" }]
[[table]]
name = "beyond"
bind = ["10.0.3.2/32", "10.0.2.2/32"]
routes = [{ to = "0.0.0.0/0", via = "pool nat" }]
"#;
    let Some(mut rig) = Rig::start("active", more)? else { return Ok(()) };
    for host in [&rig.lab.p1, &rig.lab.c2] {
        host.sysctl("net.ipv4.ip_forward", "1")?;
        host.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
    }
    let servers =
        ["203.0.113.10", "203.0.113.20", "192.0.2.10", "192.0.2.20"].map(|address| format!("{address}:53"));
    let nodes = [&rig.lab.api, &rig.lab.api, &rig.lab.web, &rig.lab.web];
    let _servers: Vec<Server> = nodes
        .into_iter()
        .zip(&servers)
        .map(|(node, address)| Server::udp(node, address.parse()?))
        .collect::<Result<_>>()?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    servers.iter().try_for_each(|server| client.ask(server).map(drop))?;
    // Changed at run time, and not by the file: one host gets no new flows.
    rig.daemon.tell("proxy drain hosts host 10.0.2.2")?;
    let flows = |rig: &Rig| -> Result<Vec<Value>> {
        let hosts = json(rig, "proxy show hosts")?;
        let items = hosts["items"][0]["hosts"].as_array().context("no hosts")?.clone();
        Ok(items.iter().map(|host| host["flows"].clone()).collect())
    };
    let before = flows(&rig)?;
    rig.daemon.kill()?;
    servers.iter().try_for_each(|server| client.ask(server).map(drop))?;
    rig.daemon.start_again(&[])?;
    servers.iter().try_for_each(|server| client.ask(server).map(drop))?;
    assert_eq!(flows(&rig)?, before);
    assert_eq!(json(&rig, "session count")?["items"][0]["count"], 8, "no flow has gone elsewhere");
    Ok(())
}

#[test]
fn counters_of_routes_go_on_after_a_restart() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    let client = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    rig.daemon.tell("route add 192.0.2.0/24 via blackhole")?;
    rig.daemon.tell("route add 203.0.113.10/32 via pool nat")?;
    client.ask(DNS)?;
    rig.daemon.tell("route del 203.0.113.10/32")?;
    client.ask(DNS)?;
    rig.lab.c1.run(&["ping", "-c", "2", "-i", "0.1", "-W", "1", "192.0.2.10"])?.expect_failure()?;
    let routes = |rig: &Rig| -> Result<Vec<(String, u64)>> {
        let packets =
            |item: &Value| (item["prefix"].to_string(), item["packets"].as_u64().unwrap_or(u64::MAX));
        Ok(own_routes(rig)?.iter().map(packets).collect())
    };
    let sum = "gateway_table_packets_total{table=\"main\",target=\"pool\"}";
    let (before, before_sum) = (routes(&rig)?, rig.daemon.count(sum)?);
    assert!(before.iter().all(|(_, packets)| *packets > 0), "{before:?}");
    assert!(before_sum > before[1].1, "the deleted route has counted: {before_sum}, {before:?}");
    for _ in 0..2 {
        rig.daemon.kill()?;
        client.ask(DNS)?;
        rig.daemon.start_again(&[])?;
    }
    let after = routes(&rig)?;
    assert_eq!(after[0], before[0]);
    // Two questions and two answers while no daemon ran.
    assert_eq!(after[1].1, before[1].1 + 4, "{before:?} {after:?}");
    assert_eq!(rig.daemon.count(sum)?, before_sum + 4);
    Ok(())
}

#[test]
fn a_route_that_is_new_after_a_restart_counts_from_zero() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?.ask(DNS)?;
    let sum = "gateway_table_packets_total{table=\"main\",target=\"pool\"}";
    let before = rig.daemon.count(sum)?;
    rig.daemon.kill()?;
    let config = fs::read_to_string(rig.daemon.config_path())?;
    fs::write(rig.daemon.config_path(), config.replace("203.0.113.0/24", "203.0.113.0/25"))?;
    rig.daemon.start_again(&[])?;
    let shown = own_routes(&rig)?;
    assert_eq!(shown[0]["prefix"], "203.0.113.0/25");
    assert_eq!(shown[0]["packets"], 0, "{shown:?}");
    assert_eq!(rig.daemon.count(sum)?, before, "the sum keeps what the route before has counted");
    Ok(())
}

#[test]
fn changes_at_run_time_are_there_after_a_restart() -> Result<()> {
    let Some(mut rig) = Rig::start("inactive", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    rig.daemon.tell("pool add other address 198.51.100.11")?;
    rig.daemon.tell("route replace 203.0.113.0/24 via pool other")?;
    rig.daemon.tell("route add 192.0.2.0/24 via blackhole")?;
    rig.daemon.tell("activate")?;
    let before = rig.daemon.tell("export")?;
    for end in ["kill", "stop"] {
        if end == "kill" {
            rig.daemon.kill()?;
        } else {
            rig.daemon.stop()?;
        }
        rig.daemon.start_again(&[])?;
        assert_eq!(rig.daemon.tell("export")?, before, "after {end}");
        assert_eq!(
            ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(),
            "198.51.100.11",
            "after {end}"
        );
    }
    let status = json(&rig, "status")?;
    assert_eq!(status["items"][0]["config"]["differs"], true, "{status}");
    Ok(())
}

#[test]
fn changes_made_while_the_daemon_was_away_are_taken_up() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?;
    rig.daemon.kill()?;
    let config = fs::read_to_string(rig.daemon.config_path())?;
    fs::write(rig.daemon.config_path(), config.replace("via = \"pool nat\"", "via = \"direct\""))?;
    rig.daemon.start_again(&[])?;
    assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5001", DNS)?.to_string(), "10.0.1.2:5001");
    Ok(())
}

#[test]
fn eips_work_without_the_daemon_and_follow_the_file_when_it_returns() -> Result<()> {
    let eip = r#"
[[eip]]
address = "198.51.100.10"
host = "10.0.1.2"
[[table]]
name = "main"
routes = [{ to = "203.0.113.0/24", via = "eip" }]
"#;
    let Some(mut rig) = Rig::start("active", eip)? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    let one = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let other = UdpClient::new(&rig.lab.c2, "10.0.2.2:5000")?;
    assert_eq!(one.ask(DNS)?.to_string(), "198.51.100.10:5000");
    rig.daemon.kill()?;
    assert_eq!(one.ask(DNS)?.to_string(), "198.51.100.10:5000");
    rig.lab.api.ok(&["ping", "-c", "1", "-W", "2", "198.51.100.10"])?;
    let path = rig.daemon.config_path();
    let config = fs::read_to_string(&path)?;
    fs::write(&path, config.replace("host = \"10.0.1.2\"", "host = \"10.0.2.2\""))?;
    rig.daemon.start_again(&[])?;
    one.ask_in_vain(DNS)?;
    assert_eq!(other.ask(DNS)?.to_string(), "198.51.100.10:5000");
    Ok(())
}

#[test]
fn pins_of_another_capacity_are_refused_with_a_remedy() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    rig.daemon.kill()?;
    let config = fs::read_to_string(rig.daemon.config_path())?;
    fs::write(rig.daemon.config_path(), config.replace("sessions = 16384", "sessions = 8192"))?;
    // The daemon may answer for a moment before it gives up.
    let _ = rig.daemon.start_again(&[]);
    wait_until("the daemon to give up", Duration::from_secs(5), || {
        let log = rig.daemon.log();
        log.contains(
            "made with capacity 16384 and the configuration says 8192\nhint: restore `capacity.sessions`, or",
        )
    })?;
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_paths_refuses() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let line = rig.daemon.command_line(&[])?;
    let second =
        rig.lab.gw.run_for(Duration::from_secs(10), &line.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("error: "), "{}", second.stderr);
    assert!(rig.daemon.is_running());
    rig.daemon.tell("status --brief")?;
    let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?;
    Ok(())
}

#[test]
fn two_daemons_on_their_own_paths_work_side_by_side() -> Result<()> {
    let (Some(one), Some(other)) = (Rig::start("active", ONE_POOL)?, Rig::start("active", ONE_POOL)?) else {
        return Ok(());
    };
    for rig in [&one, &other] {
        let _server = Server::udp(&rig.lab.api, DNS.parse()?)?;
        assert_eq!(ask_udp(&rig.lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
        assert_eq!(json(rig, "session count")?["items"][0]["count"], 1);
    }
    Ok(())
}

#[test]
fn detach_on_exit_leaves_nothing() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    let mut daemon = Gatewayd::new(&lab.sandbox, &lab.gw, &Gatewayd::standard_config("active", ONE_POOL))?;
    daemon.start_again(&["--detach-on-exit"])?;
    assert!(lab.gw.ip(&["link", "show", "dev", "eth_in1"])?.contains("prog/xdp"));
    assert!(daemon.pin_dir().exists());
    assert!(daemon.stop()?.success(), "{}", daemon.log());
    assert!(!lab.gw.ip(&["link", "show"])?.contains("xdp"), "{}", lab.gw.ip(&["link", "show"])?);
    assert!(!daemon.pin_dir().exists(), "{} is left", daemon.pin_dir().display());
    assert!(!daemon.socket().exists());
    // The host's stack forwards again.
    lab.c1.ok(&["ping", "-c", "1", "-W", "2", "203.0.113.10"])?;
    Ok(())
}

#[test]
fn a_device_that_comes_back_is_attached_again() -> Result<()> {
    let Some(rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    let lab = &rig.lab;
    lab.gw.ip(&["link", "del", "eth_in1"])?;
    lab.sandbox.link((&lab.c1, "eth0"), (&lab.gw, "eth_in1"))?;
    lab.gw.ip(&["address", "add", "10.0.1.1/24", "dev", "eth_in1"])?;
    lab.c1.ip(&["address", "add", "10.0.1.2/24", "dev", "eth0"])?;
    lab.c1.ip(&["route", "add", "default", "via", "10.0.1.1"])?;
    let _server = Server::udp(&lab.api, DNS.parse()?)?;
    wait_until("the device to be attached again", Duration::from_secs(5), || {
        lab.gw.ip(&["link", "show", "dev", "eth_in1"]).is_ok_and(|shown| shown.contains("xdp"))
    })?;
    assert_eq!(ask_udp(&lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
    Ok(())
}

#[test]
fn the_capabilities_of_the_unit_are_enough() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    let daemon = Gatewayd::new(&lab.sandbox, &lab.gw, &Gatewayd::standard_config("active", ONE_POOL))?;
    let mut line =
        vec!["setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all", "--no-new-privs"];
    let words = daemon.command_line(&[])?;
    line.extend(words.iter().map(String::as_str));
    let log = lab.sandbox.dir().join("capabilities.log");
    let _process = lab.gw.spawn_logged(&line, &log)?;
    let up = wait_until("gatewayd to answer", Duration::from_secs(10), || {
        daemon.gwctl(&["status", "--brief"]).is_ok_and(|said| said.code != Some(3))
    });
    up.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    let _server = Server::udp(&lab.api, DNS.parse()?)?;
    assert_eq!(ask_udp(&lab.c1, "10.0.1.2:5000", DNS)?.ip().to_string(), "198.51.100.10");
    daemon.tell("route add 192.0.2.0/24 via blackhole")?;
    Ok(())
}

/// A TCP and a UDP stream through the gateway.
struct Streams {
    tcp: Process,
    udp: Process,
    _servers: [Process; 2],
}

impl Streams {
    fn start(rig: &Rig) -> Result<Self> {
        let api = &rig.lab.api;
        let servers = [
            api.spawn(&["iperf3", "--server", "--port=5201"])?,
            api.spawn(&["iperf3", "--server", "--port=5202"])?,
        ];
        wait_until("iperf3 to listen", Duration::from_secs(5), || {
            let sockets = api.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
            sockets.is_ok_and(|text| text.contains(":5201 ") && text.contains(":5202 "))
        })?;
        let client = ["iperf3", "--client", "203.0.113.10", RUN, "--json"];
        let tcp = [&client[..], &["--port=5201", "--bitrate=50M"]].concat();
        let udp = [&client[..], &["--port=5202", "--udp", "--bitrate=10M", "--length=1000"]].concat();
        Ok(Self { tcp: rig.lab.c1.spawn_piped(&tcp)?, udp: rig.lab.c2.spawn_piped(&udp)?, _servers: servers })
    }

    fn expect_nothing_lost(self) -> Result<()> {
        let udp = report(&self.udp.finish(Duration::from_secs(20))?)?;
        let sum = &udp["end"]["sum"];
        assert!(sum["packets"].as_u64().context("no packets")? > 5000, "{sum}");
        assert_eq!(sum["lost_packets"], 0, "{sum}");
        let tcp = report(&self.tcp.finish(Duration::from_secs(20))?)?;
        for interval in tcp["intervals"].as_array().context("no intervals")? {
            assert!(
                interval["sum"]["bytes"].as_u64() > Some(1_000_000),
                "the stream stood still: {interval}"
            );
        }
        Ok(())
    }
}

fn report(finished: &Finished) -> Result<Value> {
    serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))
}

fn json(rig: &Rig, line: &str) -> Result<Value> {
    let words: Vec<_> = ["--json"].into_iter().chain(line.split(' ')).collect();
    Ok(serde_json::from_str(&rig.daemon.ok(&words)?)?)
}

/// The routes of the operator with their counters.
fn own_routes(rig: &Rig) -> Result<Vec<Value>> {
    let shown = json(rig, "route show --counters")?;
    let items = shown["items"].as_array().context("no items")?.iter();
    Ok(items.filter(|item| item["system"] != true).cloned().collect())
}

/// Lets the streams run for a while.
fn pause() {
    std::thread::sleep(Duration::from_millis(1500));
}
