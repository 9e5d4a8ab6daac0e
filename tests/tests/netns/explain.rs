//! `explain --live`: the walk, the programs and a real packet say the same.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use gateway_lab::{Rig, UdpClient, server::Server};
use serde_json::Value;

const POLICY: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:ff::10"]
[[limit]]
name = "few"
from = "10.0.2.0/24"
concurrent = 1000
[[table]]
name = "main"
routes = [
  { to = "203.0.113.0/24", via = "pool nat" },
  { to = "203.0.113.20/32", via = "blackhole" },
  { to = "2001:db8:a::/64", via = "pool nat" },
  { to = "2001:db8:a::20/128", via = "blackhole" },
]
"#;

/// Who asks whom, and what becomes of it: the pool's address, or the reason of the drop.
const CASES: [(&str, &str, Result<&str, &str>); 6] = [
    ("10.0.1.2:5000", "203.0.113.10:53", Ok("198.51.100.10")),
    ("[2001:db8:1::2]:5000", "[2001:db8:a::10]:53", Ok("2001:db8:ff::10")),
    ("10.0.1.2:5000", "203.0.113.20:53", Err("blackhole")),
    ("[2001:db8:1::2]:5000", "[2001:db8:a::20]:53", Err("blackhole")),
    ("10.0.1.2:5000", "192.0.2.10:53", Err("no_route")),
    ("[2001:db8:1::2]:5000", "[2001:db8:b::10]:53", Err("no_route")),
];

fn explain(rig: &Rig, from: &str, to: &str) -> Result<Value> {
    let words = ["--json", "explain", to, "from", from, "proto", "udp", "iif", "eth_in1", "--live"];
    let said: Value = serde_json::from_str(&rig.daemon.ok(&words)?)?;
    said["items"].get(0).cloned().context("nothing is explained")
}

fn next_hop(row: &Value) -> Option<&str> {
    let step = row["steps"].as_array()?.iter().find(|step| step["stage"] == "next hop")?;
    step["found"].as_str()
}

#[test]
fn walk_programs_and_packet_agree_in_both_families() -> Result<()> {
    let Some(rig) = Rig::start("active", POLICY)? else { return Ok(()) };
    let _servers = ["203.0.113.10:53", "[2001:db8:a::10]:53"]
        .map(|address| Server::udp(&rig.lab.api, address.parse().expect("an address")));
    // Which makes the gateway look for its next hops.
    UdpClient::new(&rig.lab.c1, "10.0.1.2:4000")?.ask("203.0.113.10:53")?;
    UdpClient::new(&rig.lab.c1, "[2001:db8:1::2]:4000")?.ask("[2001:db8:a::10]:53")?;
    let mac = rig.lab.isp.mac("eth_gw")?;
    for (from, to, becomes) in CASES {
        let before = rig.daemon.count("gateway_sessions{proto=\"udp\"}")?;
        let row = explain(&rig, from, to)?;
        assert_eq!(row["agrees"], true, "{row:#}");
        assert_eq!(row["verdict"], row["live"]["verdict"], "{row:#}");
        assert_eq!(rig.daemon.count("gateway_sessions{proto=\"udp\"}")?, before, "a trial leaves nothing");
        let client = UdpClient::new(&rig.lab.c1, from)?;
        match becomes {
            Ok(address) => {
                assert_eq!(row["verdict"], "snat", "{row:#}");
                let seen: SocketAddr = client.ask(to)?;
                assert_eq!(seen.ip().to_string(), address);
                let router = if from.starts_with('[') { "2001:db8:ff::1" } else { "198.51.100.1" };
                assert_eq!(next_hop(&row), Some(format!("{router} on eth_out, {mac}").as_str()), "{row:#}");
                // The next packet is of a session, and both know it.
                let row = explain(&rig, from, to)?;
                assert_eq!((&row["agrees"], &row["verdict"]), (&true.into(), &"snat".into()), "{row:#}");
                let known = row["steps"].as_array().context("no steps")?.iter().any(|step| {
                    step["stage"] == "session"
                        && step["found"].as_str().is_some_and(|found| found.starts_with("there is one"))
                });
                assert!(known, "{row:#}");
            }
            Err(reason) => {
                assert_eq!((&row["reason"], &row["live"]["reason"]), (&reason.into(), &reason.into()));
                let dropped = rig.daemon.drops(reason)?;
                client.ask_in_vain(to)?;
                assert!(rig.daemon.drops(reason)? > dropped, "{to}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_next_hop_that_has_not_answered_is_told_as_such() -> Result<()> {
    let Some(rig) = Rig::start("active", POLICY)? else { return Ok(()) };
    for (from, to) in [("10.0.1.2:5000", "10.0.2.99:53"), ("[2001:db8:1::2]:5000", "[2001:db8:2::99]:53")] {
        let row = explain(&rig, from, to)?;
        let host = to.trim_end_matches(":53").trim_matches(['[', ']']);
        assert_eq!(next_hop(&row), Some(format!("{host} on eth_in2, not resolved yet").as_str()), "{row:#}");
        assert_eq!(row["verdict"], "direct", "{row:#}");
        assert_eq!(row["live"]["reason"], "neighbor_unresolved", "{row:#}");
    }
    Ok(())
}
