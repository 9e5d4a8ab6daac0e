//! The parser: Ethernet, VLAN tags, IPv4 with options, IPv6 with extension headers, TCP, UDP, ICMP.
//!
//! One parser for the kernel program, `explain` and the tests. It reads through [`Bytes`], never writes, and
//! answers with offsets and copies of the few fields that decisions need. It makes the header checks of
//! RFC 1812 5.2.2, because a redirected packet never meets the host's own.

use crate::{DropReason, checksum, family::Family};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of an IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an IEEE 802.1ad tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// ICMP.
pub const PROTO_ICMP: u8 = 1;
/// TCP.
pub const PROTO_TCP: u8 = 6;
/// UDP.
pub const PROTO_UDP: u8 = 17;
/// `ICMPv6`.
pub const PROTO_ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;
/// VLAN tags that are looked through.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers that are looked through.
const MAX_EXTENSIONS: usize = 6;

/// A type that can be read off the wire: every bit pattern is valid.
///
/// # Safety
/// The type is `#[repr(C)]` or an integer, has no padding, and accepts every bit pattern.
pub unsafe trait Wire: Copy {}
// SAFETY: integers and arrays of them accept every bit pattern.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Wire for [u16; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Wire for [u32; N] {}

/// A frame that can be read at any offset.
pub trait Bytes {
    /// The `T` at `offset`, in memory order, or `None` when the frame ends before it does.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;
    /// Length of the frame in bytes.
    fn len(&self) -> usize;
    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Bytes for [u8] {
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the range is in bounds and `T` accepts every bit pattern.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// What the Ethernet layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// EtherType behind the tags, host byte order.
    pub ethertype: u16,
    /// Offset of what follows the Ethernet header and its tags.
    pub network: usize,
    /// Whether a tag names a VLAN. Priority tags (VID 0) do not.
    pub vlan: bool,
    /// Whether the destination MAC is a group address (broadcast or multicast).
    pub group: bool,
}

/// Reads the Ethernet header and up to two tags.
#[inline(always)]
pub fn link(frame: &(impl Bytes + ?Sized)) -> Option<Link> {
    let group = frame.read::<u8>(0)? & 1 == 1;
    let mut ethertype = u16::from_be(frame.read::<u16>(12)?);
    let mut network = ETHERNET_LEN;
    let mut vlan = false;
    for _ in 0..MAX_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let tag: [u8; 4] = frame.read(network)?;
        vlan |= u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff != 0;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        network += 4;
    }
    Some(Link { ethertype, network, vlan, group })
}

/// Where a packet stands among the fragments of its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// A later fragment, without one.
    Later,
}

/// What decisions need to know of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// Source address, network byte order.
    pub source: F::Address,
    /// Destination address, network byte order.
    pub destination: F::Address,
    /// Offset of the IP header.
    pub network: usize,
    /// Offset of the transport header.
    pub transport: usize,
    /// Length of the IP packet, header included.
    pub length: u16,
    /// Transport protocol, behind IPv6 extension headers.
    pub proto: u8,
    /// TTL or hop limit as it arrived.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Fragment position.
    pub fragment: Fragment,
    /// Whether the header carries IPv4 options.
    pub options: bool,
    /// The transport layer.
    pub flow: Flow,
}

/// The transport layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// TCP.
    Tcp {
        /// Source and destination port, network byte order.
        ports: [u8; 4],
        /// Flags, as on the wire.
        flags: u8,
    },
    /// UDP: source and destination port, network byte order.
    Udp {
        /// Source and destination port, network byte order.
        ports: [u8; 4],
    },
    /// An ICMP echo request or reply.
    Echo {
        /// Identifier, network byte order.
        id: [u8; 2],
        /// Whether it is the request.
        request: bool,
    },
    /// Any other ICMP message, with its type.
    Icmp(u8),
    /// A protocol without a translation, or a fragment without a transport header.
    Other,
}

impl<F: Family> Packet<F> {
    /// Source and destination port, network byte order; an ICMP query has its identifier as the port of the
    /// asking side. `None` where a packet shows no ports.
    #[inline(always)]
    pub fn ports(&self) -> Option<([u8; 2], [u8; 2])> {
        match self.flow {
            Flow::Tcp { ports, .. } | Flow::Udp { ports } => {
                Some(([ports[0], ports[1]], [ports[2], ports[3]]))
            }
            Flow::Echo { id, request: true } => Some((id, [0; 2])),
            Flow::Echo { id, request: false } => Some(([0; 2], id)),
            Flow::Icmp(_) | Flow::Other => None,
        }
    }

    /// The server's port for route selectors, host byte order: the destination port of a packet from the
    /// inside, the source port of an answer. `None` for protocols without ports.
    #[inline(always)]
    pub fn server_port(&self, from_inside: bool) -> Option<u16> {
        match self.flow {
            Flow::Tcp { ports, .. } | Flow::Udp { ports } => {
                let [s0, s1, d0, d1] = ports;
                Some(u16::from_be_bytes(if from_inside { [d0, d1] } else { [s0, s1] }))
            }
            Flow::Echo { .. } | Flow::Icmp(_) | Flow::Other => None,
        }
    }
}

/// Reads an IPv4 header at `network` and what follows.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::Malformed`] or [`DropReason::BadChecksum`].
#[inline(always)]
pub fn ipv4(frame: &(impl Bytes + ?Sized), network: usize) -> Result<Packet<crate::family::V4>, DropReason> {
    let words: [u32; 5] = frame.read(network).ok_or(DropReason::Truncated)?;
    let [w0, w1, w2, w3, w4] = words;
    let [version_ihl, tos, l0, l1] = w0.to_ne_bytes();
    let header = usize::from(version_ihl & 0x0f) * 4;
    let length = u16::from_be_bytes([l0, l1]);
    if version_ihl >> 4 != 4 || header < IPV4_LEN || usize::from(length) < header {
        return Err(DropReason::Malformed);
    }
    if usize::from(length) + network > frame.len() {
        return Err(DropReason::Truncated);
    }
    // One's complement addition does not care for byte order: a sum of native words is zero or it is not.
    let mut sum = u64::from(w0) + u64::from(w1) + u64::from(w2) + u64::from(w3) + u64::from(w4);
    let options = header > IPV4_LEN;
    if options {
        for word in 0..10usize {
            if IPV4_LEN + word * 4 >= header {
                break;
            }
            let value: u32 = frame.read(network + IPV4_LEN + word * 4).ok_or(DropReason::Truncated)?;
            sum += u64::from(value);
        }
    }
    let sum = (sum & 0xffff) as u32 + ((sum >> 16) & 0xffff) as u32 + (sum >> 32) as u32;
    if checksum::fold(sum) != 0xffff {
        return Err(DropReason::BadChecksum);
    }
    let [_, _, f0, f1] = w1.to_ne_bytes();
    let fragment_field = u16::from_be_bytes([f0, f1]);
    let fragment = match (fragment_field & 0x1fff, fragment_field & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let [ttl, proto, _, _] = w2.to_ne_bytes();
    let transport = network + header;
    let flow = transport_layer::<crate::family::V4>(
        frame,
        transport,
        network + usize::from(length),
        proto,
        fragment,
    )?;
    Ok(Packet {
        source: w3.to_ne_bytes(),
        destination: w4.to_ne_bytes(),
        network,
        transport,
        length,
        proto,
        ttl,
        tos,
        fragment,
        options,
        flow,
    })
}

/// Reads an IPv6 header at `network`, its extension headers and what follows.
///
/// # Errors
/// [`DropReason::Truncated`] or [`DropReason::Malformed`].
#[inline(always)]
pub fn ipv6(frame: &(impl Bytes + ?Sized), network: usize) -> Result<Packet<crate::family::V6>, DropReason> {
    let words: [u32; 2] = frame.read(network).ok_or(DropReason::Truncated)?;
    let source: [u32; 4] = frame.read(network + 8).ok_or(DropReason::Truncated)?;
    let destination: [u32; 4] = frame.read(network + 24).ok_or(DropReason::Truncated)?;
    let [version, class, _, _] = words[0].to_ne_bytes();
    let [l0, l1, mut proto, ttl] = words[1].to_ne_bytes();
    let payload = usize::from(u16::from_be_bytes([l0, l1]));
    if version >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let end = network + IPV6_LEN + payload;
    if end > frame.len() {
        return Err(DropReason::Truncated);
    }
    let mut transport = network + IPV6_LEN;
    let mut fragment = Fragment::Whole;
    for _ in 0..MAX_EXTENSIONS {
        match proto {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [next, length]: [u8; 2] = frame.read(transport).ok_or(DropReason::Truncated)?;
                proto = next;
                transport += 8 + usize::from(length) * 8;
            }
            FRAGMENT => {
                let header: [u8; 4] = frame.read(transport).ok_or(DropReason::Truncated)?;
                let field = u16::from_be_bytes([header[2], header[3]]);
                proto = header[0];
                transport += 8;
                if field & 0xfff8 != 0 {
                    // What follows is the middle of the datagram, not a header.
                    fragment = Fragment::Later;
                    break;
                }
                if field & 1 != 0 {
                    fragment = Fragment::First;
                }
            }
            _ => break,
        }
    }
    if transport > end {
        return Err(DropReason::Malformed);
    }
    let flow = transport_layer::<crate::family::V6>(frame, transport, end, proto, fragment)?;
    Ok(Packet {
        source: address_v6(source),
        destination: address_v6(destination),
        network,
        transport,
        length: (IPV6_LEN + payload) as u16,
        proto,
        ttl,
        tos: (version << 4) | (class >> 4),
        fragment,
        options: false,
        flow,
    })
}

/// An IPv6 address from words in memory order.
#[inline(always)]
pub fn address_v6(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes and every bit pattern is valid.
    unsafe { core::mem::transmute(words) }
}

/// Reads the transport header. `end` is where the IP packet ends, which may be before the frame does.
#[inline(always)]
fn transport_layer<F: Family>(
    frame: &(impl Bytes + ?Sized),
    at: usize,
    end: usize,
    proto: u8,
    fragment: Fragment,
) -> Result<Flow, DropReason> {
    if matches!(fragment, Fragment::Later) {
        return Ok(Flow::Other);
    }
    if proto == PROTO_TCP {
        if at + 20 > end {
            return Err(DropReason::Truncated);
        }
        let ports: u32 = frame.read(at).ok_or(DropReason::Truncated)?;
        let flags: u8 = frame.read(at + 13).ok_or(DropReason::Truncated)?;
        return Ok(Flow::Tcp { ports: ports.to_ne_bytes(), flags });
    }
    if proto == PROTO_UDP {
        if at + 8 > end {
            return Err(DropReason::Truncated);
        }
        let ports: u32 = frame.read(at).ok_or(DropReason::Truncated)?;
        return Ok(Flow::Udp { ports: ports.to_ne_bytes() });
    }
    if proto == F::ICMP {
        if at + 8 > end {
            return Err(DropReason::Truncated);
        }
        let words: [u32; 2] = frame.read(at).ok_or(DropReason::Truncated)?;
        let [kind, code, _, _] = words[0].to_ne_bytes();
        let [i0, i1, _, _] = words[1].to_ne_bytes();
        let request = kind == F::ECHO_REQUEST;
        if code == 0 && (request || kind == F::ECHO_REPLY) {
            return Ok(Flow::Echo { id: [i0, i1], request });
        }
        return Ok(Flow::Icmp(kind));
    }
    Ok(Flow::Other)
}

/// Whether `address` may not be the source of a forwarded IPv4 packet (RFC 1812 5.3.7, RFC 6890).
#[inline(always)]
pub fn is_martian_source_v4(address: [u8; 4]) -> bool {
    // 0/8 "this network", 127/8 loopback, 224/4 multicast and 240/4 reserved with broadcast.
    matches!(address[0], 0 | 127 | 224..)
}

/// Whether an IPv4 packet to `address` is never forwarded.
#[inline(always)]
pub fn is_martian_destination_v4(address: [u8; 4]) -> bool {
    matches!(address[0], 0 | 127 | 240..) && address != [255; 4]
}

/// Whether `address` may not be the source of a forwarded IPv6 packet: `::`, `::1` and multicast (RFC 4291).
#[inline(always)]
pub fn is_martian_source_v6(address: &[u8; 16]) -> bool {
    address[0] == 0xff || is_unspecified_or_loopback_v6(address)
}

/// Whether `address` is `::` or `::1`.
#[inline(always)]
pub fn is_unspecified_or_loopback_v6(address: &[u8; 16]) -> bool {
    let high = u64::from_ne_bytes([
        address[0], address[1], address[2], address[3], address[4], address[5], address[6], address[7],
    ]);
    let low = u64::from_be_bytes([
        address[8],
        address[9],
        address[10],
        address[11],
        address[12],
        address[13],
        address[14],
        address[15],
    ]);
    high == 0 && low <= 1
}

/// Whether `address` is `fe80::/10`, which no router forwards (RFC 4291 2.5.6).
#[inline(always)]
pub fn is_link_local_v6(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Whether `address` is an IPv4 address in IPv6 form (RFC 4291 2.5.5.2).
#[inline(always)]
pub fn is_v4_mapped(address: &[u8; 16]) -> bool {
    let high = u64::from_ne_bytes([
        address[0], address[1], address[2], address[3], address[4], address[5], address[6], address[7],
    ]);
    high == 0 && address[8] == 0 && address[9] == 0 && address[10] == 0xff && address[11] == 0xff
}
