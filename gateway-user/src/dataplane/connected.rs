//! System routes: the connected subnets of inside interfaces are reachable without a route of the operator's.
//!
//! In every egress table there is one for each of these subnets, as in the host's own routing table. It is a route
//! among others: of those that cover a destination the longest prefix decides, and where the operator has a route to
//! the same prefix, that one counts. A system route leads to the inside only, whatever the host's routes say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::Host;
use crate::model::{Role, Snapshot, prefix::is_ipv6};

/// Where system routes lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connected {
    /// The subnets, and the interface that each is on.
    pub subnets: BTreeMap<IpNet, String>,
    /// What lies in them and is no matter of system routes: addresses of pools and EIPs, and subnets of other devices.
    pub holes: BTreeSet<IpNet>,
}

impl Connected {
    /// No system routes.
    pub const fn new() -> Self {
        Self { subnets: BTreeMap::new(), holes: BTreeSet::new() }
    }

    /// The system routes of this state on this host.
    pub fn of(host: &Host, state: &Snapshot) -> Self {
        let (mut subnets, mut holes) = (BTreeMap::new(), BTreeSet::new());
        for (name, link) in host.links.iter().filter(|(_, link)| link.up) {
            let role = state.interfaces.get(name).map(|interface| interface.role);
            for subnet in link.addresses.iter().map(IpNet::trunc).filter(is_subnet) {
                if matches!(role, Some(Role::Inside | Role::Both)) {
                    subnets.insert(subnet, name.clone());
                } else {
                    holes.insert(subnet);
                }
            }
        }
        let pools = state.pools.values().flat_map(|pool| &pool.addresses);
        holes.extend(pools.chain(state.eips.keys()).map(|address| IpNet::from(*address)));
        holes.retain(|hole| subnets.keys().any(|subnet| subnet.contains(hole)));
        Self { subnets, holes }
    }

    /// The system route that covers an address.
    pub fn covering(&self, address: IpAddr) -> Option<IpNet> {
        let hidden =
            |subnet: &IpNet| self.holes.iter().any(|hole| subnet.contains(hole) && hole.contains(&address));
        let covering = self.subnets.keys().filter(|subnet| subnet.contains(&address) && !hidden(subnet));
        covering.max_by_key(|subnet| subnet.prefix_len()).copied()
    }

    /// Subnets whose hosts reach nothing but each other, because no route serves them; in words.
    pub fn unserved(&self, state: &Snapshot) -> Vec<String> {
        let mut unserved = Vec::new();
        for (subnet, interface) in &self.subnets {
            let has_route = |table: &crate::model::Table| table.routes.count(is_ipv6(subnet)) > 0;
            let bound = state.table_of(subnet.network(), Some(interface)).map(|(table, _)| table);
            let Some(table) = bound.or_else(|| state.main()) else { continue };
            let in_part = state.tables.values().any(|table| {
                table.bindings.iter().any(|binding| subnet.contains(&binding.source)) && has_route(table)
            });
            if !has_route(table) && !in_part {
                let family = if is_ipv6(subnet) { "IPv6" } else { "IPv4" };
                unserved.push(format!(
                    "no route serves inside subnet {subnet} on {interface}: table `{}` has no {family} route",
                    table.name
                ));
            }
        }
        unserved
    }
}

/// Whether more hosts than one can be there, which others than its neighbours may speak to.
fn is_subnet(subnet: &IpNet) -> bool {
    let local = match subnet {
        IpNet::V4(net) => net.network().is_loopback() || net.network().is_link_local(),
        IpNet::V6(net) => net.network().is_loopback() || net.network().is_unicast_link_local(),
    };
    !local && subnet.prefix_len() < subnet.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        dataplane::Link,
        model::{AttachMode, Interface, Pool, PortRange, words::parse_route_line},
    };

    fn connected(devices: &[(&str, Option<Role>, &[&str])]) -> (Host, Snapshot) {
        let (mut host, mut state) = (Host::default(), Snapshot::default());
        for (name, role, addresses) in devices {
            let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
            let link = Link { index: 1, mac: [0; 6], mtu: 1500, up: true, veth: false, addresses };
            host.links.insert((*name).to_owned(), link);
            if let Some(role) = role {
                let (name, mode) = ((*name).to_owned(), AttachMode::default());
                state.interfaces.insert(name.clone(), Interface { name, role: *role, mode });
            }
        }
        (host, state)
    }

    fn prefixes(connected: &Connected) -> Vec<String> {
        connected.subnets.keys().map(ToString::to_string).collect()
    }

    fn covering(connected: &Connected, address: &str) -> Option<String> {
        connected.covering(address.parse().expect("an address")).map(|subnet| subnet.to_string())
    }

    #[test]
    fn subnets_of_inside_interfaces_are_connected() {
        let (host, state) = connected(&[
            ("lo", None, &["127.0.0.1/8", "::1/128"]),
            ("eth1", Some(Role::Inside), &["10.0.1.1/24", "fe80::1/64", "2001:db8:1::1/64", "10.0.9.1/32"]),
            ("eth2", Some(Role::Both), &["10.0.2.1/25"]),
            ("eth0", Some(Role::Outside), &["192.0.2.1/24"]),
        ]);
        let connected = Connected::of(&host, &state);
        assert_eq!(prefixes(&connected), ["10.0.1.0/24", "10.0.2.0/25", "2001:db8:1::/64"]);
        assert_eq!(covering(&connected, "10.0.1.77").as_deref(), Some("10.0.1.0/24"));
        assert_eq!(covering(&connected, "192.0.2.7"), None);
        let mut down = host;
        down.links.get_mut("eth1").expect("a link").up = false;
        assert_eq!(prefixes(&Connected::of(&down, &state)), ["10.0.2.0/25"]);
    }

    #[test]
    fn addresses_of_the_gateway_and_other_subnets_are_left_out() {
        let (host, mut state) = connected(&[
            ("eth1", Some(Role::Inside), &["10.0.0.1/16", "10.0.5.1/28"]),
            ("eth0", Some(Role::Outside), &["10.0.5.129/25", "10.0.5.2/27", "10.9.0.1/24"]),
        ]);
        let pool = Pool::new("nat", vec!["10.0.1.10".parse().expect("an address")], PortRange::POOL);
        state.pools.insert("nat".to_owned(), pool);
        let connected = Connected::of(&host, &state);
        assert_eq!(covering(&connected, "10.0.1.9").as_deref(), Some("10.0.0.0/16"));
        assert_eq!(covering(&connected, "10.0.1.10"), None);
        assert_eq!(covering(&connected, "10.0.5.200"), None);
        assert_eq!(covering(&connected, "10.0.5.17"), None);
        // Longer than the hole around it.
        assert_eq!(covering(&connected, "10.0.5.3").as_deref(), Some("10.0.5.0/28"));
        assert_eq!(connected.holes.len(), 3);
    }

    #[test]
    fn subnets_that_no_route_serves_are_named() {
        let (host, mut state) =
            connected(&[("eth1", Some(Role::Inside), &["10.0.1.1/24", "2001:db8:1::1/64"])]);
        let route = parse_route_line("203.0.113.0/24 via direct").expect("a route");
        Arc::make_mut(state.tables.get_mut("main").expect("main")).routes.extend(route);
        let unserved = Connected::of(&host, &state).unserved(&state);
        assert_eq!(
            unserved,
            ["no route serves inside subnet 2001:db8:1::/64 on eth1: table `main` has no IPv6 route"]
        );
    }
}
