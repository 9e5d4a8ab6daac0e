//! Keeps next hops resolved, so that the packet path never waits for ARP or ND.
//!
//! Three kinds of neighbors, all on interfaces of the gateway or behind its tunnels:
//!
//! * **Routers** of the host's routes and of `gateway` targets, hosts of proxies, and hosts that have EIPs, are handed to the kernel as managed neighbors
//!   (`NTF_EXT_MANAGED`, Linux 5.16): it resolves them at once and keeps them resolved, also while no daemon
//!   runs. Older kernels ignore the flag; there the daemon asks again every second.
//! * **Whatever the packet path found unresolved** is resolved once ([`Resolver::wanted`]).
//! * **Stale ones** are verified. The kernel does that when its own stack sends to them, but it does not see
//!   what XDP sends: a client that moved to another host would be sent to its old MAC address for ever.
//!
//! A request with `NTF_USE` or `NTF_EXT_MANAGED` makes a permanent entry a temporary one and takes away the
//! flags it does not repeat (`__neigh_update` in net/core/neighbour.c): entries of operators and of other
//! programs are left alone.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
};

use super::{
    Neighbor,
    neighbor::{State, Table},
    socket::Sockets,
};
use crate::{
    dataplane::{Host, tunnel},
    model::{Snapshot, Target},
};

/// How often [`Resolver::tick`] wants to be called.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// A neighbor that does not answer keeps the kernel busy for three seconds; asking again sooner is useless.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests of the packet path a second. Someone who scans a subnet behind the gateway makes it ask for
/// every address; the kernel's table (`gc_thresh3`, 1024 entries) must not fill up with those.
const ON_DEMAND: u32 = 100;
/// Stale neighbors that are verified a second.
const VERIFY: usize = 100;
/// Routers that are handed to the kernel.
const MAX_ROUTERS: usize = 512;

/// Asks the kernel to resolve neighbors.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// Ifindexes of the gateway's interfaces, and of the devices of its tunnels.
    interfaces: BTreeSet<u32>,
    /// Routers of the host's routes, all interfaces.
    of_routes: BTreeSet<Neighbor>,
    /// Routers of `gateway` targets.
    of_targets: BTreeSet<Neighbor>,
    /// Hosts of proxies.
    of_proxies: BTreeSet<Neighbor>,
    /// Hosts that have EIPs: they are spoken to first by the outside.
    of_eips: BTreeSet<Neighbor>,
    /// Those of them that the kernel was told to manage.
    managed: BTreeSet<Neighbor>,
    asked: HashMap<Neighbor, Instant>,
    this_second: u32,
    /// What was complained about, so that it is said once.
    refused: bool,
    crowded: bool,
}

impl Resolver {
    /// Takes in which interfaces are the gateway's and which routers its routes name.
    pub(super) fn configure(&mut self, snapshot: &Snapshot, host: &Host) {
        let tunnels = tunnel::devices(snapshot);
        self.interfaces = snapshot
            .interfaces
            .keys()
            .chain(tunnels.keys())
            .filter_map(|name| host.links.get(name))
            .map(|link| link.index)
            .collect();
        self.of_targets = snapshot
            .tables
            .values()
            .flat_map(|table| table.routes.targets())
            .filter_map(|target| match target {
                Target::Gateway { address, dev } => Some((*address, dev.as_deref())),
                Target::Direct
                | Target::Pool(_)
                | Target::Eip
                | Target::Proxy(_)
                | Target::Blackhole
                | Target::Prohibit
                | Target::Host => None,
            })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter_map(|(address, dev)| {
                let ifindex = match dev {
                    Some(name) => host.links.get(name)?.index,
                    None => on_link(host, address)?,
                };
                Some(Neighbor { ifindex, address })
            })
            .collect();
        let neighbor = |address| Some(Neighbor { ifindex: on_link(host, address)?, address });
        let proxies = snapshot.proxies.values().flat_map(|proxy| &proxy.hosts);
        self.of_proxies = proxies.filter_map(|host| neighbor(host.address)).collect();
        // Those in tunnels are at the other end, too, where the frames inside go to.
        for (name, device) in tunnels {
            let Some(ifindex) = host.links.get(&name).map(|link| link.index) else { continue };
            self.of_proxies.extend(device.hosts.into_iter().map(|address| Neighbor { ifindex, address }));
        }
        self.of_eips = snapshot.eips.values().filter_map(|eip| neighbor(eip.host)).collect();
    }

    /// Whether it is the host of a proxy, which the data plane has to know the MAC address of.
    pub(super) fn is_of_proxy(&self, neighbor: &Neighbor) -> bool {
        self.of_proxies.contains(neighbor)
    }

    /// Replaces the routers of the host's routes.
    pub(super) fn set_routers(&mut self, routers: BTreeSet<Neighbor>) {
        self.of_routes = routers;
    }

    /// Adds a router of a route that the host got; resolved at the next [`Resolver::tick`].
    pub(super) fn add_router(&mut self, router: Neighbor) {
        self.of_routes.insert(router);
    }

    /// The packet path has packets for a neighbor and no MAC address.
    pub(super) async fn wanted(
        &mut self,
        neighbor: Neighbor,
        table: &Table,
        sockets: &Sockets,
        now: Instant,
    ) {
        if !self.interfaces.contains(&neighbor.ifindex) || self.this_second >= ON_DEMAND {
            return;
        }
        if self.asked.get(&neighbor).is_some_and(|&at| now.duration_since(at) < PATIENCE) {
            return;
        }
        self.this_second += 1;
        self.asked.insert(neighbor, now);
        self.ask(neighbor, false, table, sockets).await;
    }

    /// Once a second: routers that the kernel does not manage yet or need not any more, and stale neighbors.
    pub(super) async fn tick(&mut self, table: &Table, sockets: &Sockets, now: Instant) {
        self.this_second = 0;
        self.asked.retain(|_, at| now.duration_since(*at) < PATIENCE);
        let routers = self.routers();
        if routers.len() == MAX_ROUTERS && !self.crowded {
            tracing::warn!(
                "there are more than {MAX_ROUTERS} routers, hosts of proxies and hosts with EIPs: the others are \
                 resolved on demand"
            );
            self.crowded = true;
        }
        for router in &self.managed - &routers {
            self.release(router, table, sockets).await;
        }
        for router in routers {
            // Also those that an earlier daemon has handed to the kernel.
            self.managed.insert(router);
            if !is_managed(&router, table) {
                self.ask(router, true, table, sockets).await;
            }
        }
        let stale: Vec<Neighbor> = table
            .stale()
            .map(|(neighbor, _)| *neighbor)
            .filter(|neighbor| self.interfaces.contains(&neighbor.ifindex))
            .take(VERIFY)
            .collect();
        for neighbor in stale {
            self.ask(neighbor, false, table, sockets).await;
        }
    }

    /// Tells the kernel to treat all routers like any other neighbor again.
    pub(super) async fn release_all(&mut self, table: &Table, sockets: &Sockets) {
        while let Some(&router) = self.managed.first() {
            self.release(router, table, sockets).await;
        }
    }

    /// Routers to be kept resolved.
    fn routers(&self) -> BTreeSet<Neighbor> {
        self.of_targets
            .iter()
            .chain(&self.of_routes)
            .chain(&self.of_proxies)
            // Last: without routers nobody gets out.
            .chain(&self.of_eips)
            .filter(|router| self.interfaces.contains(&router.ifindex))
            .take(MAX_ROUTERS)
            .copied()
            .collect()
    }

    async fn ask(&mut self, neighbor: Neighbor, manage: bool, table: &Table, sockets: &Sockets) {
        let known = table.get(&neighbor);
        if known.is_some_and(|entry| entry.fixed) {
            return;
        }
        let manage = manage || known.is_some_and(|entry| entry.managed);
        match sockets.create(request(neighbor, manage)).await {
            Ok(()) => self.refused = false,
            Err(error) => self.failed(neighbor, &error),
        }
    }

    async fn release(&mut self, router: Neighbor, table: &Table, sockets: &Sockets) {
        self.managed.remove(&router);
        if !is_managed(&router, table) {
            return;
        }
        // Without the flag, the entry is one that is used now and forgotten when it is not.
        if let Err(error) = sockets.create(request(router, false)).await {
            self.failed(router, &error);
        }
    }

    fn failed(&mut self, neighbor: Neighbor, error: &io::Error) {
        let Neighbor { ifindex, address } = neighbor;
        if error.raw_os_error() == Some(Errno::EPERM as i32) {
            if !self.refused {
                tracing::warn!("cannot ask the kernel to resolve next hops: CAP_NET_ADMIN is missing");
            }
            self.refused = true;
        } else {
            // The device is down or gone, or the table is full; the packet path asks again.
            tracing::debug!(%address, ifindex, %error, "cannot resolve a next hop");
        }
    }
}

/// Whether the kernel keeps the router resolved by itself because a daemon of the gateway asked for it.
fn is_managed(router: &Neighbor, table: &Table) -> bool {
    let entry = table.get(router);
    entry.is_some_and(|entry| entry.managed && !entry.fixed && !matches!(entry.state, State::Gone { .. }))
}

/// The device whose subnet holds `address`, the longest prefix first.
fn on_link(host: &Host, address: IpAddr) -> Option<u32> {
    host.link_of(address).map(|(_, link)| link.index)
}

/// `ip neigh replace ADDRESS dev IFINDEX use` (or `managed`).
fn request(neighbor: Neighbor, manage: bool) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = neighbor.ifindex;
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    let (family, destination) = match neighbor.address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    if manage {
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    }
    RouteNetlinkMessage::NewNeighbour(message)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;
    use crate::{
        dataplane::Link,
        model::{AttachMode, Eip, Interface, Role},
    };

    fn host(links: &[(&str, u32, &str)]) -> Host {
        let link = |index, address: &str| Link {
            index,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            veth: false,
            addresses: vec![address.parse().expect("an address")],
        };
        let links = links.iter().map(|&(name, index, address)| (name.to_owned(), link(index, address)));
        Host { links: links.collect::<BTreeMap<_, _>>() }
    }

    #[test]
    fn hosts_with_eips_do_not_crowd_out_routers() {
        let name = "eth1".to_owned();
        let mut state = Snapshot::default();
        let interface = Interface { name: name.clone(), role: Role::Inside, mode: AttachMode::Auto };
        state.interfaces.insert(name, interface);
        for number in 0..2 * MAX_ROUTERS as u32 {
            let (address, host) = (0xc633_0000 + number, 0x0a00_0002 + number);
            let (address, host) = (Ipv4Addr::from(address).into(), Ipv4Addr::from(host).into());
            state.eips.insert(address, Eip { address, host });
        }
        let mut resolver = Resolver::default();
        resolver.configure(&state, &host(&[("eth1", 7, "10.0.0.1/16")]));
        let router = Neighbor { ifindex: 7, address: Ipv4Addr::new(10, 0, 255, 254).into() };
        resolver.add_router(router);
        let kept = resolver.routers();
        assert!(kept.contains(&router));
        assert_eq!(kept.len(), MAX_ROUTERS);
    }

    #[test]
    fn a_router_is_on_the_link_with_the_longest_prefix() {
        let host =
            host(&[("eth0", 2, "10.0.0.1/8"), ("eth1", 3, "10.0.1.1/24"), ("eth2", 4, "2001:db8::1/64")]);
        let link = |address: &str| on_link(&host, address.parse().expect("an address"));
        assert_eq!(link("10.0.1.9"), Some(3));
        assert_eq!(link("10.0.2.9"), Some(2));
        assert_eq!(link("2001:db8::9"), Some(4));
        assert_eq!(link("192.0.2.1"), None);
        assert_eq!(link("10.0.0.1"), None, "the host is not its own neighbor");
    }

    #[test]
    fn only_routers_on_interfaces_of_the_gateway_are_kept_resolved() {
        let host = host(&[("eth0", 2, "10.0.0.1/24"), ("docker0", 9, "172.17.0.1/16")]);
        let router =
            |ifindex, address: &str| Neighbor { ifindex, address: address.parse().expect("an address") };
        let eth0 = Interface { name: "eth0".to_owned(), role: Role::Outside, mode: AttachMode::Auto };
        let snapshot =
            Snapshot { interfaces: BTreeMap::from([("eth0".to_owned(), eth0)]), ..Snapshot::default() };
        let mut resolver = Resolver::default();
        resolver.set_routers(BTreeSet::from([router(2, "10.0.0.254"), router(9, "172.17.0.254")]));
        assert!(resolver.routers().is_empty(), "no interface is the gateway's yet");
        resolver.configure(&snapshot, &host);
        assert_eq!(resolver.routers(), BTreeSet::from([router(2, "10.0.0.254")]));
    }
}
