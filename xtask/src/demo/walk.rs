//! Route-controlled egress: a client is let out step by step, first to whom it may meet directly, then to everybody else
//! through a proxy host, and its replies are led back the same way.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Demo,
    acts::{API, WEB, curl_seen, on, ping},
    stage::{self, act, proof},
};

/// The EIPs of the client and of the proxy host.
const EIPS: [&str; 2] = ["198.51.100.21", "198.51.100.22"];

/// Packets of the client that the proxy host has sent on.
#[derive(Clone, Copy, Debug)]
struct Seen {
    requests: u64,
    replies: u64,
}

pub(super) fn inactive(demo: &mut Demo) -> Result<()> {
    act(
        1,
        "Inactive: everything as before",
        "gatewayd attaches its XDP programs and only watches. Packets go the way the host's own stack sends \
         them: the server sees the client's own address.",
    );
    stage::output(
        "c1 10.0.1.2 ════════ gw ════════> api, web      seen as 10.0.1.2\n\
         p1 10.0.3.2 ════════ gw ════════> api, web      seen as 10.0.3.2",
    );
    stage::command("gw", "gatewayd --config gateway.toml");
    demo.daemon.start_again(&[])?;
    demo.gwctl("interface show")?;
    ping(&demo.lab.c1, API)?;
    for (node, own) in [(&demo.lab.c1, "10.0.1.2"), (&demo.lab.p1, "10.0.3.2")] {
        let seen = curl_seen(demo, node, "api", API)?;
        ensure!(seen == own, "the server should have seen {own} and saw {seen}");
    }
    proof("The server saw their own addresses: an inactive gateway changes nothing.");
    Ok(())
}

pub(super) fn closed(demo: &Demo) -> Result<()> {
    act(
        2,
        "Active, and no route: closed",
        "From here on nothing leaves without a route. What is dropped is counted, by reason.",
    );
    stage::output(
        "c1 ════════ gw ─ ✗      api, web                no_route\n\
         p1 ════════ gw ─ ✗      api, web                no_route",
    );
    let before = demo.daemon.drops("no_route")?;
    demo.gwctl("activate")?;
    let said = on(&demo.lab.c1, &format!("ping -c 3 -i 0.2 -W 1 {API}"))?;
    stage::output(said.stdout.trim_end().lines().last().unwrap_or_default());
    ensure!(!said.success(), "a ping went through an active gateway without a route");
    on(&demo.lab.p1, &format!("ping -c 1 -W 1 {WEB}"))?.expect_failure()?;
    demo.gwctl("stats drops")?;
    let dropped = demo.daemon.drops("no_route")? - before;
    ensure!(dropped >= 4, "4 echo requests were sent and no_route counts {dropped}");
    proof(&format!("Nothing came back, and no_route counts {dropped} packets more."));
    Ok(())
}

pub(super) fn trusted(demo: &Demo) -> Result<()> {
    act(
        3,
        "One trusted destination, by the client's own EIP",
        "An EIP is an outside address of one inside host, translated 1:1 and without a session.",
    );
    stage::output(&format!(
        "c1 <═══════ gw <═══════> api                    seen as {}, its EIP\n\
         c1 ════════ gw ─ ✗       web                    no_route",
        EIPS[0]
    ));
    demo.gwctl(&format!("eip add {} host 10.0.1.2", EIPS[0]))?;
    demo.gwctl(&format!("eip add {} host 10.0.3.2", EIPS[1]))?;
    demo.gwctl("route add 203.0.113.0/24 via eip")?;
    sees(demo, "api", API, EIPS[0])?;
    on(&demo.lab.c1, &format!("curl -sS --max-time 1 http://{WEB}/"))?.expect_failure()?;
    proof(&format!("api saw {}; web is still out of reach.", EIPS[0]));
    Ok(())
}

pub(super) fn through_the_proxy(demo: &Demo) -> Result<()> {
    act(
        4,
        "All else through a proxy host",
        "p1 inspects and forwards. It gets packets as they are, and what it sends goes by a table of its own. Nobody \
         has said that it wants the replies.",
    );
    stage::output(&format!(
        "c1 ═══> gw ═══> p1 ═══> gw ═══> web             seen as {}: p1 sends on what c1 sent\n\
         c1 <═══ gw <═══════════════════ web             past p1\n\
         c1 <═══ gw <══════════════════> api             trusted: past p1",
        EIPS[0]
    ));
    forwards_and_counts(demo)?;
    for line in [
        "proxy add inspect host 10.0.3.2",
        "table add proxies",
        "table bind proxies from 10.0.3.2/32",
        "route add default via eip table proxies",
        "route add default via proxy inspect",
    ] {
        demo.gwctl(line)?;
    }
    sees(demo, "web", WEB, EIPS[0])?;
    let seen = on_the_way(demo)?;
    ensure!(seen.requests > 0 && seen.replies == 0, "p1 should have seen requests only: {seen:?}");
    sees(demo, "api", API, EIPS[0])?;
    let trusted = on_the_way(demo)?;
    ensure!(trusted.requests == 0, "p1 should not see what is trusted: {trusted:?}");
    demo.gwctl("session show from 10.0.1.2")?;
    proof(&format!("p1 forwarded {} packets to web, no reply, and nothing of api.", seen.requests));
    Ok(())
}

pub(super) fn and_back(demo: &Demo) -> Result<()> {
    act(
        5,
        "A border table: replies come back through the proxy",
        "It is asked about what comes from outside, after the translation back, with the client's address.",
    );
    stage::output(
        "c1 ═══> gw ═══> p1 ═══> gw ═══> web\n\
         c1 <═══ gw <═══ p1 <═══ gw <═══ web             both directions",
    );
    demo.gwctl("table add return kind border")?;
    demo.gwctl("route add 10.0.1.0/24 via gateway 10.0.3.2 table return")?;
    sees(demo, "web", WEB, EIPS[0])?;
    let seen = on_the_way(demo)?;
    ensure!(seen.requests > 0 && seen.replies > 0, "p1 should have seen both directions: {seen:?}");
    demo.gwctl("route show table return --counters")?;
    let spoofed = demo.daemon.drops("spoofed_source")?;
    ensure!(spoofed == 0, "{spoofed} packets of p1 were taken for spoofed");
    proof(&format!("p1 forwarded {} packets to web and {} back.", seen.requests, seen.replies));
    Ok(())
}

/// And back to the first step with one command; then all of it goes, for what comes next.
pub(super) fn back_again(demo: &Demo) -> Result<()> {
    demo.gwctl("deactivate")?;
    sees(demo, "web", WEB, "10.0.1.2")?;
    proof("One command, and everything is as it was before.");
    for line in [
        "route flush table main",
        "route flush table return",
        "table del return",
        "proxy del inspect",
        "activate",
    ] {
        demo.gwctl(line)?;
    }
    Ok(())
}

/// Lets the client fetch a page from a server, which must see this address.
fn sees(demo: &Demo, name: &str, server: &str, address: &str) -> Result<()> {
    let seen = curl_seen(demo, &demo.lab.c1, name, server)?;
    ensure!(seen == address, "{name} should have seen {address} and saw {seen}");
    Ok(())
}

/// Makes `p1` a router that counts what it sends on of `c1`.
fn forwards_and_counts(demo: &Demo) -> Result<()> {
    let host = &demo.lab.p1;
    for setting in
        ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0"]
    {
        let (key, value) = setting.split_once('=').context("a setting and its value")?;
        host.sysctl(key, value)?;
    }
    stage::command("p1", "sysctl -w net.ipv4.ip_forward=1");
    let path = demo.lab.sandbox.dir().join("seen.nft");
    fs::write(
        &path,
        "table inet seen {\n counter requests { }\n counter replies { }\n chain forward {\n  \
         type filter hook forward priority 0\n  \
         ip saddr 10.0.1.2 counter name requests\n  ip daddr 10.0.1.2 counter name replies\n }\n}\n",
    )?;
    host.ok(&["nft", "-f", &path.display().to_string()]).map(drop)
}

/// What `p1` has sent on since this was asked last.
fn on_the_way(demo: &Demo) -> Result<Seen> {
    let said = on(&demo.lab.p1, "nft -j reset counters table inet seen")?.ok()?;
    let counters: Value = serde_json::from_str(&said)?;
    let list = counters["nftables"].as_array().context("nft lists no counters")?;
    let packets = |name: &str| {
        let found = list.iter().find(|item| item["counter"]["name"] == name);
        found.and_then(|item| item["counter"]["packets"].as_u64()).context("no such counter")
    };
    let seen = Seen { requests: packets("requests")?, replies: packets("replies")? };
    stage::output(&format!("packets of c1: {}, packets for c1: {}", seen.requests, seen.replies));
    Ok(seen)
}
