//! The parser: Ethernet, VLAN tags, IPv4 with options, IPv6 with extension headers, TCP, UDP, ICMP.
//!
//! One parser for the kernel program, `explain` and the tests. It reads through [`Bytes`], never writes, and
//! answers with offsets and copies of the few fields that decisions need. It makes the header checks of
//! RFC 1812 5.2.2, because a redirected packet never meets the host's own.

use crate::{DropReason, V4, V6, checksum, family::Family};

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

/// DCCP.
pub const PROTO_DCCP: u8 = 33;
/// UDP-Lite.
pub const PROTO_UDP_LITE: u8 = 136;

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
/// [`Packet::server_port`] of a packet without ports.
pub const NO_PORT: u32 = u32::MAX;

/// Offset of the identification in an IPv4 header.
const IDENTIFICATION_V4: usize = 4;

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

/// Which datagram a fragment is of, and what of it. All zero where a packet is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Identification of the datagram, host byte order; 16 bits in IPv4.
    pub identification: u32,
    /// Offset of the identification in the frame.
    pub at: u16,
    /// Where the fragment's data begins in that of the datagram, bytes.
    pub offset: u16,
}

/// What decisions need to know of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// Source address, network byte order.
    pub source: F::Address,
    /// Destination address, network byte order.
    pub destination: F::Address,
    /// Offset of the IP header.
    pub network: u16,
    /// Offset of the transport header.
    pub transport: u16,
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
    /// The datagram that a fragment is of.
    pub part: Part,
    /// Whether the header carries IPv4 options.
    pub options: bool,
    /// The transport layer.
    pub transport_layer: Transport,
}

/// What translation knows of a transport layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP echo reply.
    EchoReply,
    /// Any other ICMP message.
    Icmp,
    /// A protocol without a translation, or a fragment without a transport header.
    Other,
}

/// The transport layer of a packet. Every field has a value in every case: a BPF register may not be passed on
/// unwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Which it is.
    pub flow: Flow,
    /// TCP: flags as on the wire. ICMP: type. Else 0.
    pub detail: u8,
    /// Source port, network byte order; the identifier of an echo request. Else 0.
    pub source_port: [u8; 2],
    /// Destination port, network byte order; the identifier of an echo reply. Else 0.
    pub destination_port: [u8; 2],
}

impl Transport {
    const OTHER: Self = Self { flow: Flow::Other, detail: 0, source_port: [0; 2], destination_port: [0; 2] };
}

impl<F: Family> Packet<F> {
    /// Whether the packet can belong to a session: it shows ports or a query identifier.
    #[inline(always)]
    pub fn is_trackable(&self) -> bool {
        matches!(self.transport_layer.flow, Flow::Tcp | Flow::Udp | Flow::EchoRequest | Flow::EchoReply)
    }

    /// Length of the data of a fragment: what its offsets count.
    #[inline(always)]
    pub fn part_length(&self) -> u16 {
        // Behind the IPv4 header, and behind the fragment header of IPv6, which ends with the identification.
        let data = if F::IS_V4 { self.transport } else { self.part.at.wrapping_add(4) };
        self.network.wrapping_add(self.length).wrapping_sub(data)
    }

    /// The server's port for route selectors, host byte order: the destination port of a packet from the
    /// inside, the source port of an answer. [`NO_PORT`] for protocols without ports.
    #[inline(always)]
    pub fn server_port(&self, from_inside: bool) -> u32 {
        match self.transport_layer.flow {
            Flow::Tcp | Flow::Udp => u32::from(u16::from_be_bytes(if from_inside {
                self.transport_layer.destination_port
            } else {
                self.transport_layer.source_port
            })),
            Flow::EchoRequest | Flow::EchoReply | Flow::Icmp | Flow::Other => NO_PORT,
        }
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub fn network(&self) -> usize {
        usize::from(self.network)
    }

    /// Offset of the transport header.
    #[inline(always)]
    pub fn transport(&self) -> usize {
        usize::from(self.transport)
    }
}

/// Reads an IPv4 header at `network` and what follows.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::Malformed`] or [`DropReason::BadChecksum`].
#[inline(always)]
pub fn ipv4(frame: &(impl Bytes + ?Sized), network: usize) -> Result<Packet<V4>, DropReason> {
    let words: [u32; 5] = frame.read(network).ok_or(DropReason::Truncated)?;
    let [version_ihl, ..] = words[0].to_ne_bytes();
    let header = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header < IPV4_LEN {
        return Err(DropReason::Malformed);
    }
    let [_, _, f0, f1] = words[1].to_ne_bytes();
    let fragment = match fragment_field([f0, f1]) {
        0 => Fragment::Whole,
        MORE_FRAGMENTS => Fragment::First,
        _ => Fragment::Later,
    };
    ipv4_of_length(frame, network, words, header, fragment)
}

/// [`ipv4`] for the common case, where all offsets are constants: a header without options behind an Ethernet
/// header without tags, and no fragment. `None` for all else.
///
/// # Errors
/// As [`ipv4`].
#[inline(always)]
pub fn ipv4_plain(frame: &(impl Bytes + ?Sized)) -> Result<Option<Packet<V4>>, DropReason> {
    let words: [u32; 5] = frame.read(ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    let [_, _, f0, f1] = words[1].to_ne_bytes();
    if words[0].to_ne_bytes()[0] != 0x45 || fragment_field([f0, f1]) != 0 {
        return Ok(None);
    }
    ipv4_of_length(frame, ETHERNET_LEN, words, IPV4_LEN, Fragment::Whole).map(Some)
}

/// "More fragments" in the IPv4 header.
const MORE_FRAGMENTS: u16 = 0x2000;

/// What an IPv4 header says of fragments: [`MORE_FRAGMENTS`], and the offset in units of 8 bytes.
#[inline(always)]
const fn fragment_field(bytes: [u8; 2]) -> u16 {
    u16::from_be_bytes(bytes) & 0x3fff
}

#[inline(always)]
fn ipv4_of_length(
    frame: &(impl Bytes + ?Sized),
    network: usize,
    words: [u32; 5],
    header: usize,
    fragment: Fragment,
) -> Result<Packet<V4>, DropReason> {
    let [w0, w1, w2, w3, w4] = words;
    let [_, tos, l0, l1] = w0.to_ne_bytes();
    let length = u16::from_be_bytes([l0, l1]);
    if usize::from(length) < header {
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
    let part = if matches!(fragment, Fragment::Whole) {
        Part::default()
    } else {
        let [i0, i1, f0, f1] = w1.to_ne_bytes();
        Part {
            identification: u32::from(u16::from_be_bytes([i0, i1])),
            at: (network + IDENTIFICATION_V4) as u16,
            offset: fragment_field([f0, f1]) << 3,
        }
    };
    let [ttl, proto, _, _] = w2.to_ne_bytes();
    let transport = network + header;
    let end = network + usize::from(length);
    let transport_layer = transport_layer::<V4>(frame, transport, end, proto, fragment)?;
    Ok(Packet {
        source: w3,
        destination: w4,
        network: network as u16,
        transport: transport as u16,
        length,
        proto,
        ttl,
        tos,
        fragment,
        part,
        options,
        transport_layer,
    })
}

/// Reads an IPv6 header at `network`, its extension headers and what follows.
///
/// # Errors
/// [`DropReason::Truncated`] or [`DropReason::Malformed`].
#[inline(always)]
pub fn ipv6(frame: &(impl Bytes + ?Sized), network: usize) -> Result<Packet<V6>, DropReason> {
    let words: [u32; 10] = frame.read(network).ok_or(DropReason::Truncated)?;
    let [_, _, next, _] = words[1].to_ne_bytes();
    let end = ipv6_end(frame, network, &words)?;
    let Chain { transport, proto, fragment, part } = ipv6_chain(frame, network + IPV6_LEN, end, next)?;
    ipv6_packet(frame, network, &words, &Body { transport, end, proto, fragment, part })
}

/// What the chain of IPv6 headers leads to.
pub(crate) struct Chain {
    /// Offset of the transport header.
    pub(crate) transport: usize,
    /// Transport protocol.
    pub(crate) proto: u8,
    /// Fragment position.
    pub(crate) fragment: Fragment,
    /// The datagram that a fragment is of.
    pub(crate) part: Part,
}

/// Walks the extension headers from `transport` on, the first of which is a `proto`.
#[inline(always)]
pub(crate) fn ipv6_chain(
    frame: &(impl Bytes + ?Sized),
    mut transport: usize,
    end: usize,
    mut proto: u8,
) -> Result<Chain, DropReason> {
    let mut fragment = Fragment::Whole;
    let mut part = Part::default();
    for _ in 0..MAX_EXTENSIONS {
        match proto {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [next, length]: [u8; 2] = frame.read(transport).ok_or(DropReason::Malformed)?;
                proto = next;
                transport += 8 + usize::from(length) * 8;
            }
            FRAGMENT => {
                // A fragment of a fragment has no identification of its own.
                if !matches!(fragment, Fragment::Whole) {
                    return Err(DropReason::Malformed);
                }
                let header: [u32; 2] = frame.read(transport).ok_or(DropReason::Malformed)?;
                let [next, _, f0, f1] = header[0].to_ne_bytes();
                let field = u16::from_be_bytes([f0, f1]);
                proto = next;
                // An atomic fragment, of offset 0 and with none behind it, is whole (RFC 6946).
                if field & 0xfff9 != 0 {
                    part = Part {
                        identification: u32::from_be(header[1]),
                        at: (transport + 4) as u16,
                        offset: field & 0xfff8,
                    };
                    fragment = Fragment::First;
                }
                transport += 8;
                if field & 0xfff8 != 0 {
                    // What follows is the middle of the datagram, not a header.
                    fragment = Fragment::Later;
                    break;
                }
            }
            _ => break,
        }
        if transport > end {
            return Err(DropReason::Malformed);
        }
    }
    // A longer chain would hide the ports that routes select by.
    let hidden = !matches!(fragment, Fragment::Later)
        && matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS);
    if hidden || transport > end {
        return Err(DropReason::Malformed);
    }
    Ok(Chain { transport, proto, fragment, part })
}

/// [`ipv6`] for the common case, where all offsets are constants: no extension headers, no tags. `None` for
/// all else.
///
/// # Errors
/// As [`ipv6`].
#[inline(always)]
pub fn ipv6_plain(frame: &(impl Bytes + ?Sized)) -> Result<Option<Packet<V6>>, DropReason> {
    let words: [u32; 10] = frame.read(ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    let [_, _, proto, _] = words[1].to_ne_bytes();
    if !matches!(proto, PROTO_TCP | PROTO_UDP | PROTO_ICMPV6) {
        return Ok(None);
    }
    let end = ipv6_end(frame, ETHERNET_LEN, &words)?;
    let transport = ETHERNET_LEN + IPV6_LEN;
    let (fragment, part) = (Fragment::Whole, Part::default());
    ipv6_packet(frame, ETHERNET_LEN, &words, &Body { transport, end, proto, fragment, part }).map(Some)
}

/// What follows the IPv6 header.
struct Body {
    transport: usize,
    end: usize,
    proto: u8,
    fragment: Fragment,
    part: Part,
}

/// Checks version and length; the offset at which the packet ends.
#[inline(always)]
fn ipv6_end(frame: &(impl Bytes + ?Sized), network: usize, words: &[u32; 10]) -> Result<usize, DropReason> {
    let [version, ..] = words[0].to_ne_bytes();
    let [l0, l1, ..] = words[1].to_ne_bytes();
    if version >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let end = network + IPV6_LEN + usize::from(u16::from_be_bytes([l0, l1]));
    if end > frame.len() {
        return Err(DropReason::Truncated);
    }
    Ok(end)
}

#[inline(always)]
fn ipv6_packet(
    frame: &(impl Bytes + ?Sized),
    network: usize,
    words: &[u32; 10],
    body: &Body,
) -> Result<Packet<V6>, DropReason> {
    let Body { transport, end, proto, fragment, part } = *body;
    let [version, class, ..] = words[0].to_ne_bytes();
    let [.., ttl] = words[1].to_ne_bytes();
    Ok(Packet {
        source: [words[2], words[3], words[4], words[5]],
        destination: [words[6], words[7], words[8], words[9]],
        network: network as u16,
        transport: transport as u16,
        length: (end - network) as u16,
        proto,
        ttl,
        tos: (version << 4) | (class >> 4),
        fragment,
        part,
        options: false,
        transport_layer: transport_layer::<V6>(frame, transport, end, proto, fragment)?,
    })
}

/// Reads the transport header. `end` is where the IP packet ends, which may be before the frame does.
#[inline(always)]
fn transport_layer<F: Family>(
    frame: &(impl Bytes + ?Sized),
    at: usize,
    end: usize,
    proto: u8,
    fragment: Fragment,
) -> Result<Transport, DropReason> {
    if matches!(fragment, Fragment::Later) {
        return Ok(Transport::OTHER);
    }
    let (flow, length) = match proto {
        PROTO_TCP => (Flow::Tcp, 20),
        PROTO_UDP => (Flow::Udp, 8),
        _ if proto == F::ICMP => (Flow::Icmp, 8),
        _ => return Ok(Transport::OTHER),
    };
    let is_first = matches!(fragment, Fragment::First);
    if at + length > end {
        // Who cuts a header in two wants to hide what is in it (RFC 1858 3, RFC 7112).
        return Err(if is_first { DropReason::Malformed } else { DropReason::Truncated });
    }
    let first: u32 = frame.read(at).ok_or(DropReason::Truncated)?;
    let [b0, b1, b2, b3] = first.to_ne_bytes();
    match flow {
        Flow::Tcp => {
            if is_first {
                let offset: u8 = frame.read(at + 12).ok_or(DropReason::Truncated)?;
                if at + usize::from(offset >> 4) * 4 > end {
                    return Err(DropReason::Malformed);
                }
            }
            let detail = frame.read(at + 13).ok_or(DropReason::Truncated)?;
            Ok(Transport { flow, detail, source_port: [b0, b1], destination_port: [b2, b3] })
        }
        Flow::Udp => Ok(Transport { flow, detail: 0, source_port: [b0, b1], destination_port: [b2, b3] }),
        Flow::EchoRequest | Flow::EchoReply | Flow::Icmp | Flow::Other => {
            let id: u16 = frame.read(at + 4).ok_or(DropReason::Truncated)?;
            let id = id.to_ne_bytes();
            let (kind, code) = (b0, b1);
            let transport = Transport { flow, detail: kind, source_port: [0; 2], destination_port: [0; 2] };
            Ok(if code != 0 {
                transport
            } else if kind == F::ECHO_REQUEST {
                Transport { flow: Flow::EchoRequest, source_port: id, ..transport }
            } else if kind == F::ECHO_REPLY {
                Transport { flow: Flow::EchoReply, destination_port: id, ..transport }
            } else {
                transport
            })
        }
    }
}

/// Offset, from the transport header on, of the checksum that a change of an address changes; `None` for protocols
/// whose headers know nothing of addresses, as GRE, ESP and SCTP.
#[inline(always)]
pub fn address_checksum<F: Family>(proto: u8) -> Option<usize> {
    match proto {
        PROTO_TCP => Some(16),
        PROTO_UDP | PROTO_DCCP | PROTO_UDP_LITE => Some(6),
        // Only that of IPv6 has a pseudo header (RFC 4443 2.3).
        PROTO_ICMPV6 if !F::IS_V4 => Some(2),
        _ => None,
    }
}

/// Whether `address` may not be the source of a forwarded IPv4 packet (RFC 1812 5.3.7, RFC 6890).
#[inline(always)]
pub fn is_martian_source_v4(address: u32) -> bool {
    // 0/8 "this network", 127/8 loopback, 224/4 multicast and 240/4 reserved with broadcast.
    matches!(address.to_ne_bytes()[0], 0 | 127 | 224..)
}

/// Whether an IPv4 packet to `address` is never forwarded.
#[inline(always)]
pub fn is_martian_destination_v4(address: u32) -> bool {
    matches!(address.to_ne_bytes()[0], 0 | 127 | 240..)
}

/// Whether `address` is an IPv4 group, or all hosts on the link.
#[inline(always)]
pub fn is_group_v4(address: u32) -> bool {
    address.to_ne_bytes()[0] & 0xf0 == 0xe0 || address == u32::MAX
}

/// Whether `address` may not be the source of a forwarded IPv6 packet: `::`, `::1`, groups and addresses of
/// one link only (RFC 4291).
#[inline(always)]
pub fn is_martian_source_v6(address: &[u32; 4]) -> bool {
    is_link_scope_v6(address) || is_unspecified_or_loopback_v6(address)
}

/// Whether `address` is `::` or `::1`.
#[inline(always)]
pub fn is_unspecified_or_loopback_v6(address: &[u32; 4]) -> bool {
    (address[0] | address[1] | address[2]) == 0 && u32::from_be(address[3]) <= 1
}

/// Whether `address` is a group or `fe80::/10`, which no router forwards (RFC 4291 2.5.6).
#[inline(always)]
pub fn is_link_scope_v6(address: &[u32; 4]) -> bool {
    let [first, second, ..] = address[0].to_ne_bytes();
    first == 0xff || (first == 0xfe && second & 0xc0 == 0x80)
}
