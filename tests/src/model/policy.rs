//! Which route decides: by going through all of them.

use std::net::IpAddr;

use gateway_common::{
    DropReason,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
};
use gateway_user::model::{MAIN_TABLE, Proto, RouteKey, Snapshot, Target};
use ipnet::IpNet;

/// The route that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) table: String,
    pub(super) key: RouteKey,
    pub(super) target: Target,
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
pub(super) fn route(state: &Snapshot, question: Question<'_>) -> Result<Found, DropReason> {
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
    let decides = routes.min_by_key(|(key, _)| {
        let ports = key.selector.dport.map(|ports| u32::from(ports.high) - u32::from(ports.low));
        // A longer prefix first; then a range of ports, a smaller one first; then a protocol.
        let prefix = 128 - key.prefix.prefix_len();
        (prefix, ports.unwrap_or(u32::MAX), key.selector.proto.is_none())
    });
    let (key, route) = decides.ok_or(DropReason::NoRoute)?;
    if key.selector.dport.is_some() && question.port.is_none() {
        return Err(DropReason::FragmentUnmatched);
    }
    Ok(Found { table: table.to_owned(), key: *key, target: route.target.clone() })
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
