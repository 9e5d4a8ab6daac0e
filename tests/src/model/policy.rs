//! Which route decides: by going through all of them.

use std::net::IpAddr;

use gateway_common::{
    DropReason,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
};
use gateway_user::model::{MAIN_TABLE, Proto, RouteKey, Selector, Snapshot, Target};
use ipnet::IpNet;

use super::{nat::Side, way::faces};
use crate::network::Network;

/// The route that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) table: String,
    pub(super) key: RouteKey,
    pub(super) target: Target,
    /// Whether it is there because of a connected subnet of the inside.
    pub(super) system: bool,
}

/// A flow as routes see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// Inside device of the client.
    pub(super) device: &'a str,
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    pub(super) proto: u8,
    /// The server's port, if the packet shows one.
    pub(super) port: Option<u16>,
}

/// The route for a flow. A later fragment has none where a port decides that it does not show.
pub(super) fn route(
    state: &Snapshot,
    network: &Network,
    question: Question<'_>,
) -> Result<Found, DropReason> {
    let bindings = state
        .tables
        .values()
        .flat_map(|table| table.bindings.iter().map(move |binding| (binding, table.name.as_str())));
    let of_client = bindings.filter(|(binding, _)| {
        let device = binding.iif.as_deref();
        covers(binding.source, question.client) && device.is_none_or(|device| device == question.device)
    });
    let best = of_client.max_by_key(|(binding, _)| (binding.iif.is_some(), binding.source.prefix_len()));
    let table = best.map_or(MAIN_TABLE, |(_, table)| table);
    let routes = state.tables[table].routes.iter().filter(|(key, _)| matches(key, question));
    let routes = routes.map(|(key, route)| (*key, route.target.clone(), false));
    let system = connected(state, network, question.server)
        .map(|prefix| (RouteKey { prefix, selector: Selector::default() }, Target::Direct, true));
    let decides = routes.chain(system).min_by_key(|(key, _, system)| {
        let ports = key.selector.dport.map(|ports| u32::from(ports.high) - u32::from(ports.low));
        // A longer prefix first; then a range of ports, a smaller one first; then a protocol.
        let prefix = 128 - key.prefix.prefix_len();
        (prefix, ports.unwrap_or(u32::MAX), key.selector.proto.is_none(), *system)
    });
    let (key, target, system) = decides.ok_or(DropReason::NoRoute)?;
    if key.selector.dport.is_some() && question.port.is_none() {
        return Err(DropReason::FragmentUnmatched);
    }
    Ok(Found { table: table.to_owned(), key, target, system })
}

/// The longest connected subnet of the inside around `address`. Addresses of the gateway are none of its hosts, nor is
/// what a longer subnet of another device covers.
fn connected(state: &Snapshot, network: &Network, address: IpAddr) -> Option<IpNet> {
    let pools = state.pools.values().flat_map(|pool| &pool.addresses);
    if pools.chain(state.eips.keys()).any(|own| *own == address) {
        return None;
    }
    let subnets = network.devices().iter().flat_map(|device| {
        device.addresses.iter().map(move |own| (own.trunc(), faces(device, Side::Inside)))
    });
    let around = subnets
        .filter(|(subnet, _)| subnet.prefix_len() < subnet.max_prefix_len() && covers(*subnet, address));
    around
        .max_by_key(|(subnet, inside)| (subnet.prefix_len(), !inside))
        .filter(|(_, inside)| *inside)
        .map(|(subnet, _)| subnet)
}

fn matches(key: &RouteKey, question: Question<'_>) -> bool {
    let proto = match key.selector.proto {
        None => true,
        Some(Proto::Tcp) => question.proto == PROTO_TCP,
        Some(Proto::Udp) => question.proto == PROTO_UDP,
        Some(Proto::Icmp) if question.server.is_ipv4() => question.proto == PROTO_ICMP,
        Some(Proto::Icmp) => question.proto == PROTO_ICMPV6,
    };
    let port = match (key.selector.dport, question.port) {
        (None, _) => true,
        (Some(_), None) => matches!(question.proto, PROTO_TCP | PROTO_UDP),
        (Some(ports), Some(port)) => ports.low <= port && port <= ports.high,
    };
    proto && port && covers(key.prefix, question.server)
}

fn covers(prefix: IpNet, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let differing = bits(prefix.addr()) ^ bits(address);
    prefix.addr().is_ipv4() == address.is_ipv4()
        && differing.leading_zeros() >= u32::from(prefix.prefix_len())
}
