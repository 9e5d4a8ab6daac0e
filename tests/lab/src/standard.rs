//! The network that the tests and the demo share.

use anyhow::Result;

use crate::{node::Node, sandbox::Sandbox};

/// Clients behind a gateway, a provider, a leased line, and two servers far away:
///
/// ```text
///  c1 10.0.1.2 ── eth_in1 ┐                                       ┌── api 203.0.113.10, .20
///  c2 10.0.2.2 ── eth_in2 ┤ gw ├ eth_out  198.51.100.2/24 ── isp ─┤
///  p1 10.0.3.2 ── eth_in3 ┘    └ eth_line 10.9.0.2/24 ────── line ┴── web 192.0.2.10, .20
/// ```
///
/// The gateway is the `.1` and the `::1` of every client subnet; its default route points to the provider
/// (198.51.100.1), which sends everything for 10.0.0.0/16 back to it. 198.51.100.10 and .11 are free
/// addresses of the link to the provider: nothing answers for them unless the gateway does. Whatever `web`
/// sends to a client's own address comes back through the leased line (10.9.0.1). IPv6 follows the same
/// plan within `2001:db8::/32`.
pub struct Lab {
    /// A client, 10.0.1.2 and `2001:db8:1::2`.
    pub c1: Node,
    /// A client of another subnet, 10.0.2.2 and `2001:db8:2::2`.
    pub c2: Node,
    /// A host for a proxy, 10.0.3.2 and `2001:db8:3::2`.
    pub p1: Node,
    /// The gateway: `eth_in1`, `eth_in2`, `eth_in3` inside, `eth_out`, `eth_line` outside. It forwards.
    pub gw: Node,
    /// The provider's router: `eth_gw`, `eth_api`, `eth_web`.
    pub isp: Node,
    /// The router at the far end of the leased line: `eth_gw`, `eth_web`.
    pub line: Node,
    /// A server, 203.0.113.10, 203.0.113.20 and `2001:db8:a::10`.
    pub api: Node,
    /// Another server, 192.0.2.10, 192.0.2.20 and `2001:db8:b::10`.
    pub web: Node,
    /// What holds it together; dropped last, and everything with it.
    pub sandbox: Sandbox,
}

impl Lab {
    /// The network, under a name that no other process uses.
    pub fn standard() -> Result<Self> {
        Self::standard_in(Sandbox::new()?)
    }

    /// The network, in an empty sandbox.
    pub fn standard_in(sandbox: Sandbox) -> Result<Self> {
        let node = |name| sandbox.node(name);
        let lab = Self {
            c1: node("c1")?,
            c2: node("c2")?,
            p1: node("p1")?,
            gw: node("gw")?,
            isp: node("isp")?,
            line: node("line")?,
            api: node("api")?,
            web: node("web")?,
            sandbox,
        };
        lab.connect()?;
        lab.address()?;
        lab.route()?;
        Ok(lab)
    }

    fn connect(&self) -> Result<()> {
        for router in [&self.gw, &self.isp, &self.line] {
            router.sysctl("net.ipv4.ip_forward", "1")?;
            router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
        let link = |one, other| self.sandbox.link(one, other);
        link((&self.c1, "eth0"), (&self.gw, "eth_in1"))?;
        link((&self.c2, "eth0"), (&self.gw, "eth_in2"))?;
        link((&self.p1, "eth0"), (&self.gw, "eth_in3"))?;
        link((&self.gw, "eth_out"), (&self.isp, "eth_gw"))?;
        link((&self.gw, "eth_line"), (&self.line, "eth_gw"))?;
        link((&self.isp, "eth_api"), (&self.api, "eth0"))?;
        link((&self.isp, "eth_web"), (&self.web, "eth0"))?;
        link((&self.line, "eth_web"), (&self.web, "eth1"))
    }

    fn address(&self) -> Result<()> {
        let plan: &[(&Node, &str, &[&str])] = &[
            (&self.c1, "eth0", &["10.0.1.2/24", "2001:db8:1::2/64"]),
            (&self.c2, "eth0", &["10.0.2.2/24", "2001:db8:2::2/64"]),
            (&self.p1, "eth0", &["10.0.3.2/24", "2001:db8:3::2/64"]),
            (&self.gw, "eth_in1", &["10.0.1.1/24", "2001:db8:1::1/64"]),
            (&self.gw, "eth_in2", &["10.0.2.1/24", "2001:db8:2::1/64"]),
            (&self.gw, "eth_in3", &["10.0.3.1/24", "2001:db8:3::1/64"]),
            (&self.gw, "eth_out", &["198.51.100.2/24", "2001:db8:ff::2/64"]),
            (&self.gw, "eth_line", &["10.9.0.2/24", "2001:db8:fe::2/64"]),
            (&self.isp, "eth_gw", &["198.51.100.1/24", "2001:db8:ff::1/64"]),
            (&self.isp, "eth_api", &["203.0.113.1/24", "2001:db8:a::1/64"]),
            (&self.isp, "eth_web", &["192.0.2.1/24", "2001:db8:b::1/64"]),
            (&self.line, "eth_gw", &["10.9.0.1/24", "2001:db8:fe::1/64"]),
            (&self.line, "eth_web", &["10.9.1.1/24", "2001:db8:b1::1/64"]),
            (&self.api, "eth0", &["203.0.113.10/24", "203.0.113.20/24", "2001:db8:a::10/64"]),
            (&self.web, "eth0", &["192.0.2.10/24", "192.0.2.20/24", "2001:db8:b::10/64"]),
            (&self.web, "eth1", &["10.9.1.2/24", "2001:db8:b1::2/64"]),
        ];
        for (node, device, addresses) in plan {
            for address in *addresses {
                node.ip(&["address", "add", address, "dev", device])?;
            }
        }
        Ok(())
    }

    fn route(&self) -> Result<()> {
        let plan: &[(&Node, &str, &str)] = &[
            (&self.c1, "0.0.0.0/0", "10.0.1.1"),
            (&self.c1, "::/0", "2001:db8:1::1"),
            (&self.c2, "0.0.0.0/0", "10.0.2.1"),
            (&self.c2, "::/0", "2001:db8:2::1"),
            (&self.p1, "0.0.0.0/0", "10.0.3.1"),
            (&self.p1, "::/0", "2001:db8:3::1"),
            (&self.gw, "0.0.0.0/0", "198.51.100.1"),
            (&self.gw, "::/0", "2001:db8:ff::1"),
            (&self.isp, "10.0.0.0/16", "198.51.100.2"),
            (&self.isp, "2001:db8::/46", "2001:db8:ff::2"),
            (&self.line, "10.0.0.0/16", "10.9.0.2"),
            (&self.line, "2001:db8::/46", "2001:db8:fe::2"),
            (&self.line, "192.0.2.0/24", "10.9.1.2"),
            (&self.line, "2001:db8:b::/64", "2001:db8:b1::2"),
            (&self.api, "0.0.0.0/0", "203.0.113.1"),
            (&self.api, "::/0", "2001:db8:a::1"),
            (&self.web, "0.0.0.0/0", "192.0.2.1"),
            (&self.web, "::/0", "2001:db8:b::1"),
            (&self.web, "10.0.0.0/16", "10.9.1.1"),
            (&self.web, "2001:db8::/46", "2001:db8:b1::1"),
        ];
        for (node, prefix, router) in plan {
            node.ip(&["route", "add", prefix, "via", router])?;
        }
        Ok(())
    }
}
