//! Next hops in the host's routes.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Context as _;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia},
};

use super::{Neighbor, socket::Sockets};

/// `RT_TABLE_LOCAL`: the host's own addresses. Their events come as address events.
const TABLE_LOCAL: u8 = 255;

/// Next hops of all routes of both families, each once.
pub(super) async fn read(sockets: &Sockets) -> anyhow::Result<BTreeSet<Neighbor>> {
    let mut all = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        // A full table has a million routes and a handful of next hops.
        let found = sockets
            .dump(RouteNetlinkMessage::GetRoute(request), BTreeSet::new, |found, message| {
                if let RouteNetlinkMessage::NewRoute(message) = message {
                    next_hops(&message, |hop| {
                        found.insert(hop);
                    });
                }
            })
            .await
            .context("cannot read the routes of the host")?;
        all.extend(found);
    }
    Ok(all)
}

/// Whether a change of this route may send packets elsewhere.
pub(super) fn matters(message: &RouteMessage) -> bool {
    let RouteHeader { table, kind, flags, .. } = message.header;
    table != TABLE_LOCAL && kind != RouteType::Multicast && !flags.contains(RouteFlags::Cloned)
}

/// Calls `each` with the routers that the route sends packets to.
pub(super) fn next_hops(message: &RouteMessage, mut each: impl FnMut(Neighbor)) {
    if !matters(message) || message.header.kind != RouteType::Unicast {
        return;
    }
    if let Some(hop) = next_hop(&message.attributes, None) {
        each(hop);
    }
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(paths) = attribute {
            for path in paths {
                if let Some(hop) = next_hop(&path.attributes, Some(path.interface_index)) {
                    each(hop);
                }
            }
        }
    }
}

fn next_hop(attributes: &[RouteAttribute], mut ifindex: Option<u32>) -> Option<Neighbor> {
    let mut router: Option<IpAddr> = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => router = Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => router = Some((*address).into()),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    Some(Neighbor { ifindex: ifindex?, address: router? })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn unicast(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes = attributes;
        message
    }

    fn collect(message: &RouteMessage) -> Vec<Neighbor> {
        let mut hops = Vec::new();
        next_hops(message, |hop| hops.push(hop));
        hops
    }

    fn router(ifindex: u32, last: u8) -> Neighbor {
        Neighbor { ifindex, address: IpAddr::from([10, 0, 0, last]) }
    }

    fn gateway(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, last].into()))
    }

    #[test]
    fn a_default_route_names_its_router() {
        assert_eq!(collect(&unicast(vec![RouteAttribute::Oif(2), gateway(1)])), [router(2, 1)]);
    }

    #[test]
    fn every_path_of_a_multipath_route_is_a_next_hop() {
        let path = |ifindex, last| {
            let mut path = RouteNextHop::default();
            path.interface_index = ifindex;
            path.attributes = vec![gateway(last)];
            path
        };
        let route = unicast(vec![RouteAttribute::MultiPath(vec![path(2, 1), path(3, 2)])]);
        assert_eq!(collect(&route), [router(2, 1), router(3, 2)]);
    }

    #[test]
    fn an_ipv4_route_may_go_through_an_ipv6_router() {
        let address = "fe80::1".parse().expect("an address");
        let route = unicast(vec![RouteAttribute::Oif(2), RouteAttribute::Via(RouteVia::Inet6(address))]);
        assert_eq!(collect(&route), [Neighbor { ifindex: 2, address: address.into() }]);
    }

    #[test]
    fn connected_and_local_routes_have_no_next_hop() {
        assert!(collect(&unicast(vec![RouteAttribute::Oif(2)])).is_empty());
        let mut local = unicast(vec![RouteAttribute::Oif(2), gateway(1)]);
        local.header.table = TABLE_LOCAL;
        assert!(!matters(&local) && collect(&local).is_empty());
    }
}
