//! Limits of a pool, and a proxy that dies.

use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_lab::wait_until;
use serde_json::Value;

use super::{
    Demo,
    acts::{WEB, curl_seen, on},
    stage::{self, act, proof},
};

pub(super) fn limited(demo: &Demo) -> Result<()> {
    act(
        8,
        "Limits: one address refuses past its rate, eight do not",
        "Each pool address opens so many flows a second to each destination, 900 unless told otherwise and 20 here. \
         A client whose address is at its limit gets the next one of the pool.",
    );
    stage::output(
        "c1 ═ 60 flows at once ═> gw ═ .31 ═══════════> api        20 leave, the others are refused\n\
         c1 ═ 60 flows at once ═> gw ═ .31 … .38 ═════> api        all leave",
    );
    demo.gwctl("pool add small address 198.51.100.31 rate 20 burst 20")?;
    demo.gwctl("route add 203.0.113.20/32 via pool small")?;
    let refused = sixty(demo)?;
    ensure!((30..=40).contains(&refused), "one address should refuse 40 of 60 flows and refused {refused}");
    demo.gwctl("stats drops")?;
    demo.gwctl("pool set small address 198.51.100.31,198.51.100.32/30,198.51.100.36/31,198.51.100.38")?;
    let with_eight = sixty(demo)?;
    ensure!(with_eight == 0, "eight addresses refused {with_eight} of 60 flows");
    demo.gwctl("stats pools")?;
    demo.gwctl("route del 203.0.113.20/32")?;
    proof(&format!("One address refused {refused} of 60 flows, and counted them; eight refused none."));
    Ok(())
}

/// Sixty datagrams from sixty ports; how many were refused.
fn sixty(demo: &Demo) -> Result<u64> {
    let before = demo.daemon.drops("destination_rate")?;
    let line = "for n in {1..60}; do echo hello > /dev/udp/203.0.113.20/9; done";
    stage::command("c1", line);
    demo.lab.c1.ok(&["bash", "-c", line])?;
    Ok(demo.daemon.drops("destination_rate")? - before)
}

pub(super) fn proxy_dies(demo: &Demo) -> Result<()> {
    act(
        10,
        "A proxy that is down",
        "Checks find out which hosts of a proxy are up. Without any, `fail` decides: nothing leaves, unless it says so.",
    );
    stage::output(
        "c1 ═══> gw ─ ✗  p1 ✝                            proxy_down\n\
         c1 ═══> gw ═══════════════════> web             fail pool wide",
    );
    demo.gwctl("proxy add squid host 10.0.3.2 check tcp:3129 interval 200ms")?;
    demo.gwctl(&format!("route add {WEB}/32 via proxy squid"))?;
    wait_until("the proxy host to be found down", Duration::from_secs(5), || {
        let shown = demo.daemon.tell("--json proxy show squid").unwrap_or_default();
        let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
        shown["items"][0]["hosts"][0]["state"] == "down"
    })?;
    demo.gwctl("proxy show")?;
    on(&demo.lab.c1, &format!("curl -sS --max-time 1 http://{WEB}/"))?.expect_failure()?;
    let dropped = demo.daemon.drops("proxy_down")?;
    ensure!(dropped >= 1, "no drop was counted as proxy_down");
    demo.gwctl("proxy set squid fail pool wide")?;
    let seen = curl_seen(demo, &demo.lab.c1, "web", WEB)?;
    ensure!(
        seen.starts_with("198.51.100.1"),
        "web should have seen an address of the pool wide and saw {seen}"
    );
    demo.gwctl(&format!("route del {WEB}/32"))?;
    demo.gwctl("proxy del squid")?;
    proof(&format!("{dropped} packets were dropped as proxy_down; then web saw {seen}, of the pool wide."));
    Ok(())
}
