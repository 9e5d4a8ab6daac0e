//! Tunnels to hosts of proxies: VXLAN (RFC 7348) and Geneve (RFC 8926), with an Ethernet frame inside of both.
//!
//! A host in a tunnel has a way as any other, [`crate::proxy::ProxyHost::next_hop`]: the Ethernet header and the MTU are
//! those of the frame inside, and the slot says which tunnel it goes into ([`slot_of`]). What goes around it is in
//! `TUNNELS`.

use crate::{
    family::{MappedAddress, NextHop},
    parse::{ETHERNET_LEN, IPV4_LEN, IPV6_LEN},
    pod,
};

/// UDP port of VXLAN (RFC 7348 5).
pub const VXLAN_PORT: u16 = 4_789;
/// UDP port of Geneve (RFC 8926 3.3).
pub const GENEVE_PORT: u16 = 6_081;

/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// Bytes of a VXLAN header, and of a Geneve header without options.
pub const HEADER_LEN: usize = 8;

/// First byte of a VXLAN header: the VNI is valid.
pub const VXLAN_VALID: u8 = 0x08;
/// Second byte of a Geneve header: a control packet.
pub const GENEVE_CONTROL: u8 = 0x80;
/// Second byte of a Geneve header: options that the receiver has to know.
pub const GENEVE_CRITICAL: u8 = 0x40;
/// What Geneve carries: Ethernet frames.
pub const TRANSPARENT_ETHERNET: u16 = 0x6558;

/// Kind of tunnel: VXLAN.
pub const VXLAN: u32 = 1;
/// Kind of tunnel: Geneve.
pub const GENEVE: u32 = 2;

/// TTL of the outer header.
pub const TTL: u8 = 64;

/// The first of the source ports that flows are spread over (RFC 7348 5, RFC 6335 6).
const FIRST_SOURCE_PORT: u16 = 49_152;

/// What marks a slot as a tunnel; the bits below are the number of the host, which is less than 4,096.
const TUNNEL: u16 = 0x8000;
const NUMBER: u16 = 0x0fff;

/// Map `TUNNELS`, indexed by the number of the proxy host: what goes around a frame to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// The gateway's own address.
    pub source: MappedAddress,
    /// The host's address, of the same family.
    pub destination: MappedAddress,
    /// The way to it.
    pub next_hop: NextHop,
    /// Header of the tunnel, as it stands on the wire.
    pub header: [u32; 2],
    /// UDP destination port; 0 where there is no tunnel.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Key of map `TUNNEL_HOSTS`: where frames of a proxy host come from that is behind a tunnel. The value is its element
/// of `PROXY_HOSTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Outer source address.
    pub host: MappedAddress,
    /// Network identifier, see [`identifier`].
    pub identifier: u32,
}

/// The slot of the tunnel to a host of a proxy.
#[inline(always)]
pub const fn slot_of(host: u16) -> u16 {
    TUNNEL | host & NUMBER
}

/// The host that a slot leads to, where it is that of a tunnel.
#[inline(always)]
pub const fn host_of(slot: u32) -> Option<u16> {
    if slot & !(NUMBER as u32) == TUNNEL as u32 { Some(slot as u16 & NUMBER) } else { None }
}

/// A network identifier of a kind of tunnel.
#[inline(always)]
pub const fn identifier(kind: u32, vni: u32) -> u32 {
    kind << 24 | vni & 0x00ff_ffff
}

/// The header of a tunnel.
pub const fn header(kind: u32, vni: u32) -> [u32; 2] {
    let first = if kind == VXLAN { (VXLAN_VALID as u32) << 24 } else { TRANSPARENT_ETHERNET as u32 };
    [first.to_be(), (vni << 8).to_be()]
}

/// How much less than the MTU of the link a packet inside may have, bytes.
#[inline(always)]
pub const fn overhead(is_v4: bool) -> u16 {
    let outer = if is_v4 { IPV4_LEN } else { IPV6_LEN };
    (outer + UDP_LEN + HEADER_LEN + ETHERNET_LEN) as u16
}

/// The source port of a flow with this hash, so that what is on the way, and the receiver, can tell flows apart.
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    FIRST_SOURCE_PORT | (hash ^ hash >> 16) as u16 & !FIRST_SOURCE_PORT
}

const _: () = assert!(crate::proxy::MAX_PROXY_HOSTS <= NUMBER as u32 + 1);
const _: () = assert!(size_of::<Tunnel>() == 60);
const _: () = assert!(size_of::<TunnelKey>() == 20);

pod!(Tunnel, TunnelKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_interfaces_are_no_tunnels_and_those_of_tunnels_name_their_hosts() {
        for slot in [0, 31, 32, 0x7fff, 0xffff, 0x1_8000] {
            assert_eq!(host_of(slot), None, "{slot:#x}");
        }
        for host in [0, 1, 4_095] {
            assert_eq!(host_of(slot_of(host).into()), Some(host));
        }
    }

    #[test]
    fn source_ports_are_ephemeral_ones() {
        for hash in [0, 1, 0xffff, 0xffff_0000, u32::MAX, 0x1234_5678] {
            assert!(source_port(hash) >= 49_152, "{hash:#x}");
        }
        assert_ne!(source_port(1), source_port(2));
    }

    #[test]
    fn headers_are_those_of_the_rfcs() {
        let bytes = |[first, second]: [u32; 2]| [first.to_ne_bytes(), second.to_ne_bytes()].concat();
        assert_eq!(bytes(header(VXLAN, 100)), [8, 0, 0, 0, 0, 0, 100, 0]);
        assert_eq!(bytes(header(GENEVE, 0x12_3456)), [0, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
        assert_eq!((overhead(true), overhead(false)), (50, 70));
    }
}
