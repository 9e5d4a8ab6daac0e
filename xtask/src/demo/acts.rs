//! The story, act by act.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_lab::{Finished, Node, Process};
use serde_json::Value;

use super::{
    Demo, bounds,
    reading::route_rows,
    stage::{self, act, human, proof},
    walk,
};

/// The address of the server `api`.
pub(super) const API: &str = "203.0.113.10";
/// The address of the server `web`.
pub(super) const WEB: &str = "192.0.2.10";

/// Plays every act.
pub(crate) fn play(demo: &mut Demo) -> Result<()> {
    let begin = Instant::now();
    picture(demo);
    walk::inactive(demo)?;
    let before = demo.series()?;
    walk::closed(demo)?;
    walk::trusted(demo)?;
    walk::through_the_proxy(demo)?;
    walk::and_back(demo)?;
    walk::back_again(demo)?;
    one_address(demo)?;
    two_addresses(demo)?;
    bounds::limited(demo)?;
    refused(demo)?;
    bounds::proxy_dies(demo)?;
    other_ways_out(demo)?;
    accounts(demo)?;
    metrics(demo, &before)?;
    daemon_dies(demo)?;
    println!();
    proof(&format!("Every promise was kept, in {} seconds.", begin.elapsed().as_secs()));
    Ok(())
}

fn picture(demo: &Demo) {
    act(
        0,
        "The network",
        "Eight network namespaces on this machine, joined by veth pairs; nothing leaves it.",
    );
    stage::output(
        "c1 10.0.1.2 ── eth_in1 ┐                                        ┌── api 203.0.113.10\n\
         c2 10.0.2.2 ── eth_in2 ┤ gw ├ eth_out  198.51.100.2 ───── isp ──┤\n\
         p1 10.0.3.2 ── eth_in3 ┘    └ eth_line 10.9.0.2 ──────── line ──┴── web 192.0.2.10",
    );
    stage::output(&format!(
        "Namespaces: {}-c1, -c2, -p1, -gw, -isp, -line, -api, -web",
        demo.lab.sandbox.name()
    ));
}

fn one_address(demo: &Demo) -> Result<()> {
    act(
        6,
        "One route, one pool address",
        "Source NAT in XDP. 198.51.100.10 is on no host: the gateway itself answers ARP for it.",
    );
    demo.gwctl("pool add nat address 198.51.100.10")?;
    demo.gwctl("route add 203.0.113.0/24 via pool nat comment api")?;
    ping(&demo.lab.c1, API)?;
    for client in [&demo.lab.c1, &demo.lab.c2] {
        let seen = curl_seen(demo, client, "api", API)?;
        ensure!(seen == "198.51.100.10", "the server should have seen 198.51.100.10 and saw {seen}");
    }
    proof("api saw 198.51.100.10 for both clients; no private address left the gateway.");

    let file = on(
        &demo.lab.c1,
        &format!("curl -sS --max-time 20 -o /dev/null -w %{{size_download}} http://{API}/50000000"),
    )?;
    let size = file.ok()?;
    ensure!(size == "50000000", "a file of 50000000 bytes arrived as {size} bytes");
    proof("A file of 50 MB came down whole.");

    let line = format!("iperf3 --client {API} --time {} --json", demo.seconds());
    let run = start(&demo.lab.c1, &line)?;
    let report =
        watch(demo, run, |demo, tick| if tick == 4 { demo.session_rows().map(Some) } else { Ok(None) })?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports no rate")?;
    ensure!(rate > 0.0, "iperf3 moved nothing");
    proof(&format!("iperf3 through the gateway: {}bit/s, translated in both directions.", human(rate)));
    Ok(())
}

fn two_addresses(demo: &Demo) -> Result<()> {
    act(
        7,
        "Another destination, a pool of two addresses",
        "A client keeps the address it was given (RFC 4787, paired pooling); the clients share the pool.",
    );
    demo.gwctl("pool add wide address 198.51.100.11,198.51.100.12")?;
    demo.gwctl("route add 192.0.2.0/24 via pool wide")?;
    let clients = 16..32u8;
    stage::command(
        "c1",
        &format!(
            "for n in {{{}..{}}}; do curl --interface 10.0.1.$n http://{WEB}/; done    # three times",
            clients.start,
            clients.end - 1
        ),
    );
    let mut given: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for client in clients.clone() {
        let address = format!("10.0.1.{client}");
        demo.lab.c1.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let curl = ["curl", "-sS", "--max-time", "5", "--interface", &address, &format!("http://{WEB}/")];
            demo.lab.c1.ok(&curl)?;
            seen.extend(demo.seen_by("web")?.pop());
        }
        ensure!(seen.len() == 1, "the client {address} was seen as {seen:?}: it should keep one address");
        given.entry(seen.pop_first().unwrap_or_default()).or_default().push(client);
    }
    let mut rows = vec![["web SAW", "CLIENTS 10.0.1.x", "COUNT"].map(str::to_owned).to_vec()];
    for (address, clients) in &given {
        let of_the_pool = ["198.51.100.11", "198.51.100.12"].contains(&address.as_str());
        ensure!(of_the_pool, "web saw {address}, which is not of the pool wide");
        let list: Vec<_> = clients.iter().map(u8::to_string).collect();
        rows.push(vec![address.clone(), list.join(" "), clients.len().to_string()]);
    }
    stage::print_table(&stage::table(&rows, 2));
    // That all of them meet at one address by chance: once in thirty thousand times.
    ensure!(given.len() == 2, "only one address of the pool is used");
    let seen = curl_seen(demo, &demo.lab.c1, "api", API)?;
    ensure!(seen == "198.51.100.10", "api should still see 198.51.100.10 and saw {seen}");
    demo.gwctl("stats pools")?;
    proof("web sees the pool wide, each client at one address of it; api still sees the pool nat.");
    Ok(())
}

fn refused(demo: &Demo) -> Result<()> {
    act(
        9,
        "Saying no: blackhole is silent, prohibit answers",
        "The longest prefix wins, so one host of an allowed network can be shut off.",
    );
    demo.gwctl("route add 192.0.2.20/32 via blackhole")?;
    demo.gwctl("route add 203.0.113.20/32 via prohibit")?;
    let silent = Instant::now();
    on(&demo.lab.c1, "curl -sS --max-time 2 http://192.0.2.20/")?.expect_failure()?;
    let silent = silent.elapsed();
    let told = Instant::now();
    let said = on(&demo.lab.c1, "curl -sS --max-time 2 http://203.0.113.20/")?.expect_failure()?;
    let told = told.elapsed();
    stage::message(&said.stderr);
    ensure!(told < silent / 2, "prohibit took {told:?} to tell the client, blackhole {silent:?}");
    on(&demo.lab.c1, "ping -c 1 -W 1 203.0.113.20")?.expect_failure()?;
    for reason in ["blackhole", "prohibited"] {
        ensure!(demo.daemon.drops(reason)? >= 1, "no drop was counted as {reason}");
    }
    demo.gwctl("stats drops")?;
    proof(&format!(
        "blackhole: curl waited {} ms in vain; prohibit: refused after {} ms.",
        silent.as_millis(),
        told.as_millis()
    ));
    Ok(())
}

fn other_ways_out(demo: &Demo) -> Result<()> {
    act(
        11,
        "Other ways out: a leased line, and IPv6",
        "A route can name the router: packets for web take the leased line, with their own source address. \
         IPv6 is routed by the same tables.",
    );
    let carried = || -> Result<f64> {
        let text = demo.lab.line.ok(&["cat", "/proc/net/dev"])?;
        let line = text.lines().find(|line| line.trim_start().starts_with("eth_gw:")).context("no eth_gw")?;
        line.split_whitespace().nth(2).and_then(|packets| packets.parse().ok()).context("no packet count")
    };
    demo.gwctl(&format!("route add {WEB}/32 via gateway 10.9.0.1 dev eth_line"))?;
    let before = carried()?;
    let seen = curl_seen(demo, &demo.lab.c1, "web", WEB)?;
    let through = carried()? - before;
    ensure!(seen == "10.0.1.2", "web should have seen 10.0.1.2 over the leased line and saw {seen}");
    ensure!(through >= 4.0, "the leased line carried {through} packets of a connection");
    proof(&format!("web saw 10.0.1.2, and the router of the leased line counted {through} packets."));

    on(&demo.lab.c1, "ping -6 -c 1 -W 1 2001:db8:a::10")?.expect_failure()?;
    demo.gwctl("route add 2001:db8:a::/64 via direct")?;
    on(&demo.lab.c1, "ping -6 -c 2 -i 0.2 -W 1 2001:db8:a::10")?.ok()?;
    proof("IPv6 was closed until its route came, and passes with it.");
    Ok(())
}

fn accounts(demo: &Demo) -> Result<()> {
    act(
        12,
        "What went where",
        "Every packet is counted by interface, by route, and by reason if it was dropped.",
    );
    demo.gwctl("route show --counters")?;
    demo.gwctl("status")?;
    let api = demo.route("203.0.113.0/24")?;
    ensure!(api.packets > 0.0, "the route to api counted nothing");
    Ok(())
}

fn metrics(demo: &Demo, before: &BTreeMap<String, f64>) -> Result<()> {
    act(
        13,
        "The metrics that moved",
        "From Prometheus's page, before act 2 and now; counters of packets and connections only.",
    );
    let now = demo.series()?;
    let families = [
        "gateway_packets_total",
        "gateway_drops_total",
        "gateway_table_packets_total",
        "gateway_session_events_total",
        "gateway_pool_connection_attempts_total",
        "gateway_pool_connections_established_total",
    ];
    let mut rows = vec![["SERIES", "BEFORE", "NOW"].map(str::to_owned).to_vec()];
    for (name, value) in now.iter().filter(|(name, _)| families.iter().any(|family| name.starts_with(family)))
    {
        let earlier = before.get(name).copied().unwrap_or_default();
        if *value > earlier {
            rows.push(vec![name.clone(), human(earlier), human(*value)]);
        }
    }
    stage::print_table(&stage::table(&rows, 1));
    ensure!(rows.len() > 4, "hardly any metric moved");
    Ok(())
}

fn daemon_dies(demo: &mut Demo) -> Result<()> {
    act(
        14,
        "kill -9 under load",
        "Programs, maps and links are pinned in the kernel. The daemon is killed while a TCP and a UDP stream \
         run, and started again; neither stream may notice.",
    );
    let seconds = demo.seconds().max(6);
    let unread = Demo::unread(&demo.lab.api)?;
    let udp = format!("iperf3 --client {API} --udp --bitrate 20M --length 1000 --time {seconds} --json");
    let udp = start(&demo.lab.c1, &udp)?;
    let tcp = format!("iperf3 --client {WEB} --bitrate 100M --time {seconds} --json");
    let tcp = start(&demo.lab.c2, &tcp)?;
    let pause = Duration::from_millis(seconds * 1000 / 4);
    thread::sleep(pause);
    let before = demo.sessions()?;
    stage::command("gw", "kill -9 $(pidof gatewayd)");
    demo.daemon.kill()?;
    let status = demo.daemon.gwctl(&["status"])?;
    ensure!(status.code == Some(3), "gwctl should find no daemon (exit code 3): {status:?}");
    stage::message(&status.stderr);
    let seen = curl_seen(demo, &demo.lab.c1, "api", API)?;
    ensure!(seen == "198.51.100.10", "without the daemon, api saw {seen}");
    proof("No daemon: new connections still open, through the pool address.");
    thread::sleep(pause);
    stage::command("gw", "gatewayd --config gateway.toml");
    demo.daemon.start_again(&[])?;
    let after = demo.sessions()?;
    ensure!(after >= before, "there were {before} sessions before the daemon died and there are {after} now");

    let udp = report(udp.finish(Duration::from_secs(30))?)?;
    let tcp = report(tcp.finish(Duration::from_secs(30))?)?;
    let sum = &udp["end"]["sum"];
    let (lost, sent) = (sum["lost_packets"].as_f64(), sum["packets"].as_f64());
    let (lost, sent) = lost.zip(sent).context("iperf3 reports no UDP packets")?;
    // What arrived while iperf3 had no processor to read it on is not lost on the way.
    let unread = Demo::unread(&demo.lab.api)? - unread;
    ensure!(lost <= unread, "{} of {sent} UDP packets were lost", lost - unread);
    let intervals = tcp["intervals"].as_array().context("iperf3 reports no intervals")?;
    let stalled = intervals.iter().filter(|interval| interval["sum"]["bytes"].as_f64() == Some(0.0)).count();
    ensure!(stalled == 0, "the TCP stream stood still in {stalled} of {} seconds", intervals.len());
    proof(&format!(
        "The new daemon found all {before} sessions, and {} that opened without it.",
        after - before
    ));
    proof(&format!(
        "UDP: 0 of {} packets lost. TCP: {} seconds, none without data.",
        human(sent),
        intervals.len()
    ));
    Ok(())
}

/// Pings and shows the summary.
pub(super) fn ping(client: &Node, server: &str) -> Result<()> {
    let said = on(client, &format!("ping -c 3 -i 0.2 -W 1 {server}"))?.ok()?;
    stage::output(last_lines(&said, 2).trim_start());
    ensure!(said.contains(" 0% packet loss"), "echo replies were lost");
    Ok(())
}

/// Asks a server for the address it sees, and checks its answer against its log.
pub(super) fn curl_seen(demo: &Demo, client: &Node, name: &str, server: &str) -> Result<String> {
    let said = on(client, &format!("curl -sS --max-time 5 http://{server}/"))?.ok()?;
    stage::output(&said);
    let told = said.trim().rsplit_once(':').map(|(address, _)| address.to_owned());
    let told = told.with_context(|| format!("{name} answered {said}"))?;
    let logged = demo.seen_by(name)?.pop().with_context(|| format!("{name} has logged nothing"))?;
    ensure!(told == logged, "{name} told the client {told} and logged {logged}");
    Ok(told)
}

/// Runs a program on a host, to its end, and shows the command.
pub(super) fn on(node: &Node, line: &str) -> Result<Finished> {
    show(node, line);
    node.run(&line.split_whitespace().collect::<Vec<_>>())
}

/// Starts a program whose output is read at its end, and shows the command.
fn start(node: &Node, line: &str) -> Result<Process> {
    show(node, line);
    node.spawn_piped(&line.split_whitespace().collect::<Vec<_>>())
}

fn show(node: &Node, line: &str) {
    stage::command(node.name().rsplit('-').next().unwrap_or_default(), line);
}

/// Shows the routes while a run of iperf3 lasts, and what `aside` has to say at some tick of half a second.
fn watch(
    demo: &Demo,
    mut run: Process,
    mut aside: impl FnMut(&Demo, usize) -> Result<Option<Vec<Vec<String>>>>,
) -> Result<Value> {
    let mut live = stage::Live::new();
    let mut before = demo.routes()?;
    let mut said = None;
    let tick = Duration::from_millis(500);
    let mut rows = route_rows(&before, &before, 1.0);
    for number in 0.. {
        thread::sleep(tick);
        if !run.is_running() {
            break;
        }
        let now = demo.routes()?;
        rows = route_rows(&before, &now, tick.as_secs_f64());
        live.draw(&stage::table(&rows, 2));
        before = now;
        if let Some(rows) = aside(demo, number)? {
            said = Some(rows);
        }
    }
    live.finish(&stage::table(&rows, 2));
    if let Some(rows) = said {
        stage::command("gw", "gwctl session show sort bytes limit 3    # while it ran");
        stage::print_table(&stage::table(&rows, 4));
    }
    report(run.finish(Duration::from_secs(10))?)
}

/// The JSON report of iperf3.
fn report(finished: Finished) -> Result<Value> {
    let report: Value = serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    finished.ok()?;
    Ok(report)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
