//! Route-controlled egress from end to end: a client and a proxy host, each with an EIP of its own, and routes that say
//! who reaches what, and which way. Every step is a few commands on a gateway that runs.
//!
//! ```text
//! c1, the client, 10.0.1.2, EIP .11 ── gw ── api, which is trusted
//! p1, the proxy,  10.0.3.2, EIP .12 ──┘  └── web, the rest of the internet
//! ```
//! The proxy is a squid for web traffic, and a router for the rest, which it sends on as it is.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use gateway_lab::{Node, Rig, UdpClient, ask_http, ask_udp, server::Server};
use serde_json::Value;

use super::proxy::programs::{Squid, installed};

const EIPS: &str = r#"
[[eip]]
address = "198.51.100.11"
host = "10.0.1.2"
[[eip]]
address = "198.51.100.12"
host = "10.0.3.2"
[[eip]]
address = "2001:db8:ff::11"
host = "2001:db8:1::2"
[[eip]]
address = "2001:db8:ff::12"
host = "2001:db8:3::2"
"#;

/// Its own address and its EIP, of either family.
const CLIENT: [(&str, &str); 2] = [("10.0.1.2", "198.51.100.11"), ("[2001:db8:1::2]", "[2001:db8:ff::11]")];
const PROXY: [(&str, &str); 2] = [("10.0.3.2", "198.51.100.12"), ("[2001:db8:3::2]", "[2001:db8:ff::12]")];
const API: [&str; 2] = ["203.0.113.10", "[2001:db8:a::10]"];
const WEB: [&str; 2] = ["192.0.2.10", "[2001:db8:b::10]"];

#[test]
fn a_client_is_let_out_step_by_step_and_its_replies_led_back_through_the_proxy() -> Result<()> {
    if !installed("squid") {
        return Ok(());
    }
    let Some(rig) = Rig::start("inactive", EIPS)? else { return Ok(()) };
    let walk = Walk::begin(&rig)?;
    let _squid = Squid::start(&rig.lab, &rig.lab.p1)?;
    walk.inactive()?;
    walk.closed()?;
    walk.trusted_only()?;
    walk.through_the_proxy()?;
    walk.and_back()?;
    rig.daemon.tell("deactivate")?;
    walk.inactive()
}

/// The network with servers that listen and a proxy host that counts.
struct Walk<'a> {
    rig: &'a Rig,
    _servers: Vec<Server>,
}

impl<'a> Walk<'a> {
    fn begin(rig: &'a Rig) -> Result<Self> {
        let mut servers = Vec::new();
        for (node, addresses) in [(&rig.lab.api, API), (&rig.lab.web, WEB)] {
            for address in addresses {
                servers.push(Server::udp(node, format!("{address}:53").parse()?)?);
                servers.push(Server::http(node, format!("{address}:80").parse()?)?);
                servers.push(Server::http(node, format!("{address}:8080").parse()?)?);
            }
        }
        routes_and_counts(rig)?;
        Ok(Self { rig, _servers: servers })
    }

    /// 1. The gateway watches, and the host forwards as it did before.
    fn inactive(&self) -> Result<()> {
        let lab = &self.rig.lab;
        for (node, own) in [(&lab.c1, CLIENT), (&lab.p1, PROXY)] {
            for (family, (own, _)) in own.into_iter().enumerate() {
                for server in [API[family], WEB[family]] {
                    assert_eq!(asked(node, own, server)?, own, "{server}");
                    assert_eq!(fetched(node, &format!("{server}:8080"))?, own, "{server}");
                }
            }
        }
        Ok(())
    }

    /// 2. Nothing leaves without a route.
    fn closed(&self) -> Result<()> {
        let Rig { lab, daemon } = self.rig;
        daemon.tell("activate")?;
        let before = daemon.drops("no_route")?;
        in_vain(&lab.c1, CLIENT, [API, WEB])?;
        in_vain(&lab.p1, PROXY, [API, WEB])?;
        assert_eq!(daemon.drops("no_route")? - before, 8, "one datagram of each family for each server");
        Ok(())
    }

    /// 3. One destination is trusted: the client meets it by its EIP, and nobody meets anything else.
    fn trusted_only(&self) -> Result<()> {
        let Rig { lab, daemon } = self.rig;
        daemon.tell("route add 203.0.113.0/24 via eip")?;
        daemon.tell("route add 2001:db8:a::/64 via eip")?;
        self.meets_api_by_its_eip()?;
        in_vain(&lab.c1, CLIENT, [WEB, WEB])?;
        // The proxy host is bound to no other table yet.
        assert_eq!(asked(&lab.p1, PROXY[0].0, API[0])?, PROXY[0].1);
        in_vain(&lab.p1, PROXY, [WEB, WEB])?;
        assert_eq!(self.seen_on_the_way()?, Seen::default());
        Ok(())
    }

    /// 4. All else goes through the proxy, which leaves by EIPs: its own for what it asks itself, the client's for what
    ///    it sends on. Replies to that go straight to the client.
    fn through_the_proxy(&self) -> Result<()> {
        let Rig { lab, daemon } = self.rig;
        for line in [
            "proxy add inspect host 10.0.3.2",
            "table add proxies",
            "table bind proxies from 10.0.3.2/32",
            "route add 0.0.0.0/0 via eip table proxies",
            "route add ::/0 via eip table proxies",
            "route add 0.0.0.0/0 via proxy inspect",
            "route add ::/0 via proxy inspect",
        ] {
            daemon.tell(line)?;
        }
        self.meets_web_by_the_proxy()?;
        let seen = self.seen_on_the_way()?;
        ensure!(seen.requests > 0 && seen.replies == 0, "the proxy should see one direction: {seen:?}");
        self.meets_api_by_its_eip()?;
        assert_eq!(self.seen_on_the_way()?, Seen::default(), "what is trusted goes past the proxy");
        for (family, (own, eip)) in PROXY.into_iter().enumerate() {
            assert_eq!(asked(&lab.p1, own, WEB[family])?, eip);
        }
        assert!(packets(self.rig, "main", "0.0.0.0/0")? > 0);
        assert!(packets(self.rig, "proxies", "::/0")? > 0);
        assert_eq!(daemon.drops("spoofed_source")?, 0);
        Ok(())
    }

    /// 5. A border table leads what comes back for the client through the proxy.
    fn and_back(&self) -> Result<()> {
        let daemon = &self.rig.daemon;
        daemon.tell("table add return kind border")?;
        daemon.tell("route add 10.0.1.0/24 via gateway 10.0.3.2 table return")?;
        daemon.tell("route add 2001:db8:1::/64 via gateway 2001:db8:3::2 table return")?;
        self.meets_web_by_the_proxy()?;
        let seen = self.seen_on_the_way()?;
        ensure!(seen.requests > 0 && seen.replies > 0, "the proxy should see both directions: {seen:?}");
        self.meets_api_by_its_eip()?;
        let seen = self.seen_on_the_way()?;
        ensure!(
            seen.requests == 0 && seen.replies > 0,
            "all replies, and trusted requests go past: {seen:?}"
        );
        for prefix in ["10.0.1.0/24", "2001:db8:1::/64"] {
            assert!(packets(self.rig, "return", prefix)? > 0, "{prefix}");
        }
        assert_eq!(daemon.drops("spoofed_source")?, 0);
        Ok(())
    }

    fn meets_api_by_its_eip(&self) -> Result<()> {
        for (family, (own, eip)) in CLIENT.into_iter().enumerate() {
            assert_eq!(asked(&self.rig.lab.c1, own, API[family])?, eip);
            assert_eq!(fetched(&self.rig.lab.c1, API[family])?, eip);
        }
        Ok(())
    }

    /// Datagrams, echo requests, fragments and connections that the proxy sends on show the client's EIP; squid asks
    /// in its own name.
    fn meets_web_by_the_proxy(&self) -> Result<()> {
        let client = &self.rig.lab.c1;
        for (family, (own, eip)) in CLIENT.into_iter().enumerate() {
            let server = WEB[family];
            assert_eq!(asked(client, own, server)?, eip);
            assert_eq!(fetched(client, &format!("{server}:8080"))?, eip);
            assert_eq!(fetched(client, server)?, PROXY[family].1);
            let file = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"];
            let url = format!("http://{server}:8080/2000000");
            assert_eq!(client.ok(&[&file[..], &[&url]].concat())?, "2000000");
            let server = server.trim_matches(['[', ']']);
            for size in ["56", "4000"] {
                client.ok(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", size, server])?;
            }
        }
        Ok(())
    }

    /// What the proxy host has sent on since this was asked last.
    fn seen_on_the_way(&self) -> Result<Seen> {
        seen(&self.rig.lab.p1)
    }
}

/// Packets of the client's subnet that a host has sent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) replies: u64,
}

/// Makes `p1` a router that counts what it sends on.
pub(super) fn routes_and_counts(rig: &Rig) -> Result<()> {
    let host = &rig.lab.p1;
    host.sysctl("net.ipv4.ip_forward", "1")?;
    host.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    for device in ["all", "eth0"] {
        host.sysctl(&format!("net.ipv4.conf.{device}.send_redirects"), "0")?;
    }
    let path = rig.lab.sandbox.dir().join("seen.nft");
    fs::write(
        &path,
        "table inet seen {\n counter requests { }\n counter replies { }\n chain forward {\n  \
         type filter hook forward priority 0\n  \
         ip saddr 10.0.1.0/24 counter name requests\n  ip6 saddr 2001:db8:1::/64 counter name requests\n  \
         ip daddr 10.0.1.0/24 counter name replies\n  ip6 daddr 2001:db8:1::/64 counter name replies\n }\n}\n",
    )?;
    host.ok(&["nft", "-f", &path.display().to_string()]).map(drop)
}

/// What `node` has sent on since this was asked last.
pub(super) fn seen(node: &Node) -> Result<Seen> {
    let counters: Value =
        serde_json::from_str(&node.ok(&["nft", "-j", "reset", "counters", "table", "inet", "seen"])?)?;
    let list = counters["nftables"].as_array().context("no list of counters")?;
    let packets = |name: &str| {
        let found = list.iter().find(|item| item["counter"]["name"] == name);
        found.and_then(|item| item["counter"]["packets"].as_u64()).context("no such counter")
    };
    Ok(Seen { requests: packets("requests")?, replies: packets("replies")? })
}

/// Asks each of the servers once, of each family, and must not get through.
fn in_vain(node: &Node, own: [(&str, &str); 2], servers: [[&str; 2]; 2]) -> Result<()> {
    for (family, (own, _)) in own.into_iter().enumerate() {
        let client = UdpClient::new(node, &format!("{own}:0"))?;
        for server in servers {
            client.ask_in_vain(&format!("{}:53", server[family]))?;
        }
    }
    Ok(())
}

/// The address that a server sees of a datagram.
fn asked(node: &Node, own: &str, server: &str) -> Result<String> {
    address(&ask_udp(node, &format!("{own}:0"), &format!("{server}:53"))?.to_string())
}

/// The address that a web server sees of a connection.
fn fetched(node: &Node, server: &str) -> Result<String> {
    address(&ask_http(node, server)?.to_string())
}

/// An address without the port.
fn address(seen: &str) -> Result<String> {
    let (address, _) = seen.rsplit_once(':').context("no port")?;
    Ok(address.to_owned())
}

/// What a route has counted.
fn packets(rig: &Rig, table: &str, prefix: &str) -> Result<u64> {
    let line = format!("--json route show {prefix} table {table} --counters");
    let shown: Value = serde_json::from_str(&rig.daemon.tell(&line)?)?;
    shown["items"][0]["packets"].as_u64().with_context(|| format!("no counter: {shown}"))
}
