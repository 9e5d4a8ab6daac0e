//! What the sender of a dropped packet is told.

use std::net::IpAddr;

use gateway_common::{DropReason, parse::ETHERTYPE_IPV4};

use super::wire::{self, Fragment, Kind};
use crate::{
    network::Device,
    packet::{RST, SYN, icmp_error, reset},
};

/// The answer to a frame that came in through `ingress` and is dropped for `reason`, if there is one: nothing
/// is said of ICMP errors, later fragments and resets (RFC 1122 3.2.2, RFC 4443 2.4), nor of packets with
/// options. `mtu` is what a packet is too large for; `is_outside` tells whether packets
/// from there for an address are answers from outside, or for an EIP.
pub(super) fn answer(
    frame: &[u8],
    ingress: &Device,
    reason: DropReason,
    mtu: u16,
    is_outside: impl FnOnce(IpAddr) -> bool,
) -> Option<Vec<u8>> {
    let link = wire::link(frame)?;
    let ip = match link.ethertype {
        ETHERTYPE_IPV4 => wire::ipv4(frame, link.network).ok()?,
        _ => wire::ipv6(frame, link.network).ok()?,
    };
    let header = if ip.is_v4() { 20 } else { 40 };
    let silent = match ip.kind {
        Kind::Tcp(segment) => segment.flags & RST != 0,
        Kind::OtherIcmp { .. } => true,
        Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => false,
    };
    // Clients are told of connections that have no session any more.
    let orphan = reason == DropReason::NoSession
        && ip.fragment == Fragment::Whole
        && matches!(ip.kind, Kind::Tcp(segment) if segment.flags & SYN == 0)
        && !is_outside(ip.destination);
    let prohibited = reason == DropReason::Prohibited;
    if !orphan && !prohibited && !matches!(reason, DropReason::TtlExceeded | DropReason::MtuExceeded) {
        return None;
    }
    if silent || ip.options || ip.fragment == Fragment::Later {
        return None;
    }
    if orphan || prohibited && matches!(ip.kind, Kind::Tcp(_)) {
        let plain = ip.transport == ip.network + header;
        return plain.then(|| reset(frame, ip.network, ingress.mac()).frame());
    }
    if ip.length() < header + 8 {
        return None;
    }
    let device = (ingress.mac(), ingress.address(ip.is_v4()));
    Some(icmp_error(frame, ip.network, device, reason, mtu).frame())
}
