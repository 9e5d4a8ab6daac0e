//! Connections of iperf3 and curl while their route changes as fast as the API answers.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_lab::{Node, Rig, ask_http, server::Server, wait_until};
use serde_json::Value;

use super::{
    flip::{Api, Counts, NAT, OTHER, OWN, READY},
    walk::{routes_and_counts, seen},
};

const SERVER: &str = "203.0.113.10";
/// How long the route changes.
const TIME: Duration = Duration::from_secs(3);

/// What the route changes between, and what follows from it.
struct Case {
    targets: &'static [&'static str],
    /// Sources that the server's side may see.
    sources: &'static [[u8; 4]],
    /// Why packets may be dropped. Without any, no connection breaks.
    reasons: &'static [&'static str],
}

const CASES: [Case; 3] = [
    Case { targets: &["pool nat", "pool other", "proxy router"], sources: &[NAT, OTHER], reasons: &[] },
    Case {
        targets: &["pool nat", "proxy router", "blackhole"],
        sources: &[NAT, OTHER],
        reasons: &["blackhole", "no_session"],
    },
    Case {
        targets: &["pool nat", "direct", "proxy router", "prohibit"],
        sources: &[NAT, OTHER, OWN],
        reasons: &["prohibited", "no_session", "no_route"],
    },
];

#[test]
fn connections_live_through_changes_of_their_route_and_never_leave_by_another_way() -> Result<()> {
    let Some(rig) = Rig::start("active", READY)? else { return Ok(()) };
    routes_and_counts(&rig)?;
    let _http = Server::http(&rig.lab.api, format!("{SERVER}:80").parse()?)?;
    let _iperf = rig.lab.api.spawn(&["iperf3", "--server"])?;
    wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let sockets = rig.lab.api.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
        sockets.is_ok_and(|text| text.contains(":5201 "))
    })?;
    let mut api = Api::connect(&rig)?;
    for case in &CASES {
        flip(&rig, &mut api, case).with_context(|| format!("{:?}", case.targets))?;
    }
    Ok(())
}

/// Flips the route while the client streams and fetches.
fn flip(rig: &Rig, api: &mut Api, case: &Case) -> Result<()> {
    let Case { targets, sources, reasons } = case;
    api.replace(targets[0])?;
    watch(rig, sources)?;
    seen(&rig.lab.p1)?;
    let before = Counts::read(rig)?;
    let done = AtomicBool::new(false);
    let (flips, fetches, stream) = thread::scope(|scope| -> Result<_> {
        let stream = scope
            .spawn(|| rig.lab.c1.run(&["iperf3", "--client", SERVER, "--time=3", "--bitrate=20M", "--json"]));
        let asking = scope.spawn(|| fetch(&rig.lab.c1, &done));
        // The stream begins on the first of them.
        thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        let mut flips = 0;
        let flipped =
            targets.iter().cycle().skip(1).take_while(|_| begin.elapsed() < TIME).try_for_each(|target| {
                flips += 1;
                api.replace(target)
            });
        done.store(true, Ordering::Relaxed);
        flipped?;
        let fetches = asking.join().expect("the thread that fetches")?;
        Ok((flips, fetches, stream.join().expect("the thread that streams")?))
    })?;
    // Whatever is in force last is in force for all that begins.
    api.replace("pool nat")?;
    let source = ask_http(&rig.lab.c1, SERVER).context("afterwards")?.ip();
    ensure!(source.to_string() == "198.51.100.10", "afterwards it came from {source}");
    let (known, strange) = watched(&rig.lab.isp)?;
    let counted = Counts::read(rig)?.since(&before);
    println!("{targets:?}: {flips} flips, {fetches:?}, {known} packets on their way out, {counted:?}");
    ensure!(seen(&rig.lab.p1)?.requests > 0, "nothing went through the proxy");
    ensure!(known > 50, "only {known} packets have left");
    ensure!(strange == 0, "{strange} packets have left that no route gives");
    let foreign = counted.drops.keys().find(|reason| !reasons.contains(&reason.as_str()));
    ensure!(foreign.is_none(), "dropped for another reason: {counted:?}");
    ensure!(fetches.succeeded > 0, "nothing was fetched: {fetches:?}");
    if reasons.is_empty() {
        ensure!(fetches.failed == 0, "a connection broke: {fetches:?}");
        let report: Value = serde_json::from_str(&stream.ok().context("the stream broke")?)?;
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().context("no bytes")?;
        ensure!(bytes > 5_000_000, "the stream took {bytes} bytes along");
    }
    Ok(())
}

/// What became of connections.
#[derive(Debug, Default)]
struct Fetches {
    succeeded: u32,
    failed: u32,
}

/// Fetches a file again and again, each time on a connection of its own.
fn fetch(client: &Node, done: &AtomicBool) -> Result<Fetches> {
    let mut fetches = Fetches::default();
    while !done.load(Ordering::Relaxed) {
        let url = format!("http://{SERVER}/100000");
        let said = client.run(&[
            "curl",
            "-sS",
            "--max-time",
            "2",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &url,
        ])?;
        match said.ok() {
            Ok(size) => {
                ensure!(size == "100000", "{size} bytes of a file of 100000");
                fetches.succeeded += 1;
            }
            Err(_) => fetches.failed += 1,
        }
    }
    Ok(fetches)
}

/// Counts what the provider gets from the gateway, anew: to the server from one of `sources`, and all else. Exactly, however much
/// there is.
fn watch(rig: &Rig, sources: &[[u8; 4]]) -> Result<()> {
    let sources: Vec<String> =
        sources.iter().map(|source| source.map(|byte| byte.to_string()).join(".")).collect();
    let rules = format!(
        "table ip watch {{ }}\ndelete table ip watch\ntable ip watch {{\n counter known {{ }}\n counter strange {{ }}\n \
         chain in {{\n  type filter hook prerouting priority -300\n  \
         iifname eth_gw ip protocol tcp ip saddr {{ {} }} ip daddr {SERVER} counter name known return\n  \
         iifname eth_gw ip protocol tcp counter name strange\n }}\n}}\n",
        sources.join(", ")
    );
    let path = rig.lab.sandbox.dir().join("watch.nft");
    fs::write(&path, rules)?;
    rig.lab.isp.ok(&["nft", "-f", &path.display().to_string()]).map(drop)
}

/// What [`watch`] has counted: known, and strange.
fn watched(node: &Node) -> Result<(u64, u64)> {
    let listed: Value =
        serde_json::from_str(&node.ok(&["nft", "--json", "list", "counters", "table", "ip", "watch"])?)?;
    let of = |name: &str| {
        let mut counters = listed["nftables"].as_array().into_iter().flatten().map(|item| &item["counter"]);
        let counter = counters.find(|counter| counter["name"] == name);
        counter.and_then(|counter| counter["packets"].as_u64()).with_context(|| format!("no counter {name}"))
    };
    Ok((of("known")?, of("strange")?))
}
