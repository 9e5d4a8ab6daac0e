//! Frames as the reference sees them: headers read one after the other, and forwarded frames with every
//! checksum computed anew.

use std::net::IpAddr;

use gateway_common::{
    DropReason,
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
    tcp::Segment,
};

use super::nat::Place;
use crate::packet::{ACK, Mac, SYN, checksum_of, transport_checksum};

/// What the Ethernet header and its tags say.
pub(super) struct Link {
    pub(super) ethertype: u16,
    /// Offset of what follows.
    pub(super) network: usize,
    /// Whether a tag names a VLAN.
    pub(super) vlan: bool,
    /// The station, or group of stations, that the frame is for.
    pub(super) receiver: Mac,
}

/// Where a packet stands among the fragments of its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    Whole,
    First,
    Later,
}

/// Which datagram a fragment is of, and what of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    pub(super) identification: u32,
    /// Offset of the identification in the frame.
    at: usize,
    /// Where its data begins in that of the datagram, bytes.
    pub(super) offset: usize,
    /// Offset of its data in the frame.
    data: usize,
}

/// What the first fragment of a datagram has shown, for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) proto: u8,
    pub(super) ports: (u16, u16),
}

/// What a packet carries, as far as translation cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp(Segment),
    Udp,
    EchoRequest,
    EchoReply,
    OtherIcmp { kind: u8 },
    Other,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    pub(super) proto: u8,
    pub(super) fragment: Fragment,
    pub(super) part: Part,
    /// What is known of a later fragment.
    pub(super) shown: Option<Shown>,
    pub(super) kind: Kind,
    /// Source and destination port; an identifier is the port of the asking side, and the other one is 0.
    pub(super) ports: (u16, u16),
    /// Whether an IPv4 header has options.
    pub(super) options: bool,
    /// Offset of the IP header in the frame.
    pub(super) network: usize,
    /// Offset of the transport header.
    pub(super) transport: usize,
    /// Offset of the end of the IP packet.
    pub(super) end: usize,
}

/// What translation changes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rewrite {
    Nothing,
    Source(IpAddr, u16),
    Destination(IpAddr, u16),
}

/// Reads the Ethernet header and up to two tags.
pub(super) fn link(frame: &[u8]) -> Option<Link> {
    let mut link = Link {
        ethertype: u16_at(frame, 12)?,
        network: 14,
        vlan: false,
        receiver: frame[..6].try_into().ok()?,
    };
    for _ in 0..2 {
        if !matches!(link.ethertype, 0x8100 | 0x88a8) {
            break;
        }
        link.vlan |= u16_at(frame, link.network)? & 0xfff != 0;
        link.ethertype = u16_at(frame, link.network + 2)?;
        link.network += 4;
    }
    Some(link)
}

/// Reads an IPv4 packet.
pub(super) fn ipv4(frame: &[u8], network: usize) -> Result<Ip, DropReason> {
    let packet = &frame[network..];
    let &[version_and_length, _, l0, l1, i0, i1, f0, f1, ttl, proto, ..] = packet else {
        return Err(DropReason::Truncated);
    };
    if packet.len() < 20 {
        return Err(DropReason::Truncated);
    }
    let header = usize::from(version_and_length & 15) * 4;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    if version_and_length >> 4 != 4 || header < 20 || length < header {
        return Err(DropReason::Malformed);
    }
    if length > packet.len() {
        return Err(DropReason::Truncated);
    }
    if checksum_of(&packet[..header]) != 0 {
        return Err(DropReason::BadChecksum);
    }
    let field = u16::from_be_bytes([f0, f1]);
    let fragment = match field & 0x3fff {
        0 => Fragment::Whole,
        0x2000 => Fragment::First,
        _ => Fragment::Later,
    };
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("4 bytes"));
    let part = Part {
        identification: u16::from_be_bytes([i0, i1]).into(),
        at: network + 4,
        offset: usize::from(field & 0x1fff) * 8,
        data: network + header,
    };
    let ip = Ip {
        source: address(12),
        destination: address(16),
        ttl,
        proto,
        fragment,
        part,
        shown: None,
        kind: Kind::Other,
        ports: (0, 0),
        options: header > 20,
        network,
        transport: network + header,
        end: network + length,
    };
    ip.with_transport(frame)
}

/// Reads an IPv6 packet and up to six extension headers.
pub(super) fn ipv6(frame: &[u8], network: usize) -> Result<Ip, DropReason> {
    let packet = &frame[network..];
    if packet.len() < 40 {
        return Err(DropReason::Truncated);
    }
    if packet[0] >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    if length > packet.len() {
        return Err(DropReason::Truncated);
    }
    let packet = &packet[..length];
    let (mut proto, mut at, mut fragment) = (packet[6], 40, Fragment::Whole);
    let mut part = Part::default();
    for _ in 0..6 {
        if !matches!(proto, 0 | 43 | 44 | 60) || fragment == Fragment::Later {
            break;
        }
        let Some(&[next, size, f0, f1]) = packet.get(at..at + 4) else { return Err(DropReason::Malformed) };
        let size = if proto == 44 { 8 } else { 8 + usize::from(size) * 8 };
        // A fragment is not cut up again.
        if at + size > length || (proto == 44 && fragment != Fragment::Whole) {
            return Err(DropReason::Malformed);
        }
        if proto == 44 {
            let field = u16::from_be_bytes([f0, f1]);
            let word = packet[at + 4..at + 8].try_into().expect("4 bytes");
            part = Part {
                identification: u32::from_be_bytes(word),
                at: network + at + 4,
                offset: usize::from(field & 0xfff8),
                data: network + at + 8,
            };
            if field >> 3 != 0 {
                fragment = Fragment::Later;
            } else if field & 1 != 0 {
                fragment = Fragment::First;
            }
        }
        (proto, at) = (next, at + size);
    }
    // Ports behind more headers would not be seen.
    if matches!(proto, 0 | 43 | 44 | 60) && fragment != Fragment::Later {
        return Err(DropReason::Malformed);
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes"));
    let ip = Ip {
        source: address(8),
        destination: address(24),
        ttl: packet[7],
        proto,
        fragment,
        part,
        shown: None,
        kind: Kind::Other,
        ports: (0, 0),
        options: false,
        network,
        transport: network + at,
        end: network + length,
    };
    ip.with_transport(frame)
}

/// The frame as it goes on: without tags, between other MAC addresses, one hop older, and translated. A fragment
/// that is translated gets another identification.
pub(super) fn forward(
    frame: &[u8],
    ip: &Ip,
    (rewrite, identification): (Rewrite, Option<u32>),
    source_mac: Mac,
    destination_mac: Mac,
) -> Vec<u8> {
    let ethertype = if ip.is_v4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let ethernet = [&destination_mac[..], &source_mac, &ethertype.to_be_bytes()].concat();
    let mut packet = frame[ip.network..].to_vec();
    let transport = ip.transport - ip.network;
    packet[if ip.is_v4() { 8 } else { 7 }] -= 1;

    let (mut source, mut destination) = (ip.source, ip.destination);
    if let Some(identification) = identification {
        let at = ip.part.at - ip.network;
        match (ip.is_v4(), identification.to_be_bytes()) {
            (true, [_, _, low @ ..]) => packet[at..at + 2].copy_from_slice(&low),
            (false, all) => packet[at..at + 4].copy_from_slice(&all),
        }
    }
    if ip.fragment == Fragment::Later {
        match rewrite {
            Rewrite::Nothing => {}
            Rewrite::Source(address, _) => source = address,
            Rewrite::Destination(address, _) => destination = address,
        }
    } else if !matches!(rewrite, Rewrite::Nothing) {
        let checksum_at = transport
            + match ip.kind {
                Kind::Tcp { .. } => 16,
                Kind::Udp => 6,
                Kind::EchoRequest | Kind::EchoReply | Kind::OtherIcmp { .. } | Kind::Other => 2,
            };
        let error = ip.checksum_error(&packet, transport, checksum_at);
        let at = match (rewrite, ip.kind) {
            (_, Kind::EchoRequest | Kind::EchoReply) => transport + 4,
            (Rewrite::Destination(..), _) => transport + 2,
            _ => transport,
        };
        match rewrite {
            Rewrite::Nothing => {}
            Rewrite::Source(address, port) => {
                source = address;
                packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
            }
            Rewrite::Destination(address, port) => {
                destination = address;
                packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
            }
        }
        if let Some(error) = error {
            let right = ip.right_checksum(&packet, transport, checksum_at, source, destination);
            let checksum = ones_complement_sum(right, error);
            let checksum = if ip.kind == Kind::Udp && checksum == 0 { 0xffff } else { checksum };
            packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    write_address(&mut packet, if ip.is_v4() { 12 } else { 8 }, source);
    write_address(&mut packet, if ip.is_v4() { 16 } else { 24 }, destination);
    if ip.is_v4() {
        packet[10..12].fill(0);
        let checksum = checksum_of(&packet[..transport]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    [ethernet, packet].concat()
}

/// A packet that an ICMP error quotes; offsets are those in the frame.
#[derive(Clone, Debug)]
pub(super) struct Quoted {
    pub(super) source: Place,
    pub(super) destination: Place,
    pub(super) proto: u8,
    network: usize,
    transport: usize,
    /// Where its transport checksum is, if the quote has all of it.
    checksum: Option<usize>,
}

impl Quoted {
    /// The same, as its sender addressed it.
    pub(super) fn to(&self, address: IpAddr) -> Self {
        Self { destination: (address, self.destination.1), ..self.clone() }
    }
}

/// The packet that the error `ip` quotes, if it shows ports.
pub(super) fn quoted(frame: &[u8], ip: &Ip) -> Option<Quoted> {
    let network = ip.transport + 8;
    let quote = frame.get(network..ip.end)?;
    let (header, proto) = if ip.is_v4() {
        let header = usize::from(quote.first()? & 15) * 4;
        let later = u16_at(quote, 6)? & 0x1fff != 0;
        let proto = *quote.get(9)?;
        (quote[0] >> 4 == 4 && header >= 20 && !later).then_some((header, proto))?
    } else {
        let (mut proto, mut at, mut first) = (*quote.get(6)?, 40, false);
        for _ in 0..6 {
            if !matches!(proto, 0 | 43 | 44 | 60) {
                break;
            }
            let &[next, size, f0, f1] = quote.get(at..at + 4)? else { return None };
            let field = u16::from_be_bytes([f0, f1]);
            if proto == 44 && (field >> 3 != 0 || first) {
                return None;
            }
            first |= proto == 44 && field & 1 != 0;
            at += if proto == 44 { 8 } else { 8 + usize::from(size) * 8 };
            proto = next;
        }
        (quote[0] >> 4 == 6).then_some((at, proto))?
    };
    let segment = quote.get(header..).filter(|segment| segment.len() >= 8)?;
    let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let icmp = if ip.is_v4() { PROTO_ICMP } else { PROTO_ICMPV6 };
    let (request, reply) = if ip.is_v4() { (8, 0) } else { (128, 129) };
    let (source, destination, checksum) = match proto {
        PROTO_TCP => (word(0), word(2), 16),
        PROTO_UDP => (word(0), word(2), 6),
        _ if proto == icmp && segment[..2] == [request, 0] => (word(4), 0, 2),
        _ if proto == icmp && segment[..2] == [reply, 0] => (0, word(4), 2),
        _ => return None,
    };
    let address = |at: usize| -> IpAddr {
        if ip.is_v4() {
            <[u8; 4]>::try_from(&quote[at..at + 4]).expect("4 bytes").into()
        } else {
            <[u8; 16]>::try_from(&quote[at..at + 16]).expect("16 bytes").into()
        }
    };
    let (source_at, destination_at) = if ip.is_v4() { (12, 16) } else { (8, 24) };
    Some(Quoted {
        source: (address(source_at), source),
        destination: (address(destination_at), destination),
        proto,
        network,
        transport: network + header,
        checksum: (segment.len() >= checksum + 2).then_some(network + header + checksum),
    })
}

/// The packet of any protocol that the error `ip` quotes. Ports that it does not show are 0.
pub(super) fn quoted_addresses(frame: &[u8], ip: &Ip) -> Option<Quoted> {
    let network = ip.transport + 8;
    let quote = frame.get(network..ip.end)?;
    let (header, proto, later) = if ip.is_v4() {
        let header = usize::from(quote.first()? & 15) * 4;
        let sound = quote[0] >> 4 == 4 && header >= 20 && quote.len() >= header;
        sound.then(|| (header, quote[9], u16_at(quote, 6).is_some_and(|field| field & 0x1fff != 0)))?
    } else {
        let (mut proto, mut at, mut later) = (*quote.get(6)?, 40, false);
        for _ in 0..6 {
            if !matches!(proto, 0 | 43 | 44 | 60) || later {
                break;
            }
            let &[next, size, f0, f1] = quote.get(at..at + 4)? else { return None };
            later = proto == 44 && u16::from_be_bytes([f0, f1]) >> 3 != 0;
            at += if proto == 44 { 8 } else { 8 + usize::from(size) * 8 };
            proto = next;
        }
        let hidden = matches!(proto, 0 | 43 | 44 | 60) && !later;
        (quote[0] >> 4 == 6 && quote.len() >= at && !hidden).then_some((at, proto, later))?
    };
    let segment = if later { &[] } else { &quote[header..] };
    let shown = matches!(proto, PROTO_TCP | PROTO_UDP) && segment.len() >= 4;
    let word = |at: usize| if shown { u16::from_be_bytes([segment[at], segment[at + 1]]) } else { 0 };
    let address = |at: usize| -> IpAddr {
        if ip.is_v4() {
            <[u8; 4]>::try_from(&quote[at..at + 4]).expect("4 bytes").into()
        } else {
            <[u8; 16]>::try_from(&quote[at..at + 16]).expect("16 bytes").into()
        }
    };
    let (source_at, destination_at) = if ip.is_v4() { (12, 16) } else { (8, 24) };
    let checksum = checksum_over_addresses(proto, ip.is_v4()).filter(|at| segment.len() >= at + 2);
    Some(Quoted {
        source: (address(source_at), word(0)),
        destination: (address(destination_at), word(2)),
        proto,
        network,
        transport: network + header,
        checksum: checksum.map(|at| network + header + at),
    })
}

/// Where a protocol has its checksum, if that covers addresses: TCP, UDP, DCCP, UDP-Lite, `ICMPv6`.
fn checksum_over_addresses(proto: u8, v4: bool) -> Option<usize> {
    match proto {
        PROTO_TCP => Some(16),
        PROTO_UDP | 33 | 136 => Some(6),
        PROTO_ICMPV6 if !v4 => Some(2),
        _ => None,
    }
}

/// The frame as it goes on with other addresses, whatever it carries.
pub(super) fn exchange(
    frame: &[u8],
    ip: &Ip,
    (source, destination): (IpAddr, IpAddr),
    (source_mac, destination_mac): (Mac, Mac),
) -> Result<Vec<u8>, DropReason> {
    let mut frame = frame.to_vec();
    let at = checksum_over_addresses(ip.proto, ip.is_v4()).filter(|_| ip.fragment != Fragment::Later);
    if let Some(at) = at {
        if ip.transport + at + 2 > ip.end {
            return Err(DropReason::Truncated);
        }
        let packet = &mut frame[ip.network..];
        let (transport, at) = (ip.transport - ip.network, ip.transport - ip.network + at);
        if let Some(error) = ip.checksum_error(packet, transport, at) {
            let right = ip.right_checksum(packet, transport, at, source, destination);
            let checksum = ones_complement_sum(right, error);
            let checksum = if ip.kind == Kind::Udp && checksum == 0 { 0xffff } else { checksum };
            packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    let other = Ip { source, destination, ..ip.clone() };
    Ok(forward(&frame, &other, (Rewrite::Nothing, None), source_mac, destination_mac))
}

/// As [`exchange`], for an error: the packet that it quotes is one that came from its receiver, and if it comes from
/// inside, one that went to whom its new source stands for.
pub(super) fn exchange_in_error(
    frame: &[u8],
    ip: &Ip,
    quoted: &Quoted,
    (source, destination): (IpAddr, IpAddr),
    inside: bool,
    (source_mac, destination_mac): (Mac, Mac),
) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (source_at, destination_at) = if ip.is_v4() { (12, 16) } else { (8, 24) };
    let quoted_destination = if inside { source } else { quoted.destination.0 };
    if let Some(at) = quoted.checksum {
        let there = u16_at(&frame, at).expect("it is in the quote");
        let sum_of = |a, b| ones_complement_sum(covered((a, 0), true), covered((b, 0), true));
        let before = sum_of(quoted.source.0, quoted.destination.0);
        let after = sum_of(destination, quoted_destination);
        let sum = ones_complement_sum(there, ones_complement_sum(before, !after));
        let sum = match (quoted.proto, there, sum) {
            (PROTO_UDP, 0, _) => 0,
            (PROTO_UDP, _, 0) => 0xffff,
            (_, _, sum) => sum,
        };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    write_address(&mut frame[quoted.network..], source_at, destination);
    write_address(&mut frame[quoted.network..], destination_at, quoted_destination);
    if ip.is_v4() {
        let header = &mut frame[quoted.network..quoted.transport];
        header[10..12].fill(0);
        let checksum = checksum_of(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let at = ip.transport + 2;
    frame[at..at + 2].fill(0);
    let checksum = transport_checksum(source, destination, ip.proto, &frame[ip.transport..ip.end]);
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    forward(
        &frame,
        &Ip { source, destination, ..ip.clone() },
        (Rewrite::Nothing, None),
        source_mac,
        destination_mac,
    )
}

/// Whether the checksums of an error and of the IPv4 header that it quotes are right.
pub(super) fn is_sound_error(frame: &[u8], ip: &Ip, quoted: &Quoted) -> bool {
    let header = !ip.is_v4() || checksum_of(&frame[quoted.network..quoted.transport]) == 0;
    let over = transport_checksum(ip.source, ip.destination, ip.proto, &frame[ip.transport..ip.end]);
    header && over == 0
}

/// An error as it goes on: `place` stands for its source and the quote's destination if it comes from inside, for
/// its destination and the quote's source if it comes from outside.
pub(super) fn forward_error(
    frame: &[u8],
    ip: &Ip,
    quoted: &Quoted,
    inside: bool,
    place: Place,
    (source_mac, destination_mac): (Mac, Mac),
) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (source_at, destination_at) = if ip.is_v4() { (12, 16) } else { (8, 24) };
    let (old, quoted_at, outer_at) = if inside {
        (quoted.destination, destination_at, source_at)
    } else {
        (quoted.source, source_at, destination_at)
    };
    if let Some(at) = quoted.checksum {
        // Nobody has all that it covers: it changes by as much as what it covers.
        let there = u16_at(&frame, at).expect("it is in the quote");
        let pseudo = !ip.is_v4() || matches!(quoted.proto, PROTO_TCP | PROTO_UDP);
        let before = covered(old, pseudo);
        let after = covered(place, pseudo);
        let sum = ones_complement_sum(there, ones_complement_sum(before, !after));
        let sum = match (quoted.proto, there, sum) {
            (PROTO_UDP, 0, _) => 0,
            (PROTO_UDP, _, 0) => 0xffff,
            (_, _, sum) => sum,
        };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let port_at = quoted.transport
        + match quoted.proto {
            PROTO_TCP | PROTO_UDP if inside => 2,
            PROTO_TCP | PROTO_UDP => 0,
            _ => 4,
        };
    frame[port_at..port_at + 2].copy_from_slice(&place.1.to_be_bytes());
    write_address(&mut frame[quoted.network..], quoted_at, place.0);
    if ip.is_v4() {
        let header = &mut frame[quoted.network..quoted.transport];
        header[10..12].fill(0);
        let checksum = checksum_of(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    write_address(&mut frame[ip.network..], outer_at, place.0);
    let (source, destination) = if inside { (place.0, ip.destination) } else { (ip.source, place.0) };
    let at = ip.transport + 2;
    frame[at..at + 2].fill(0);
    let checksum = transport_checksum(source, destination, ip.proto, &frame[ip.transport..ip.end]);
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    // The outer header has its addresses already.
    let ip = Ip { source, destination, ..ip.clone() };
    forward(&frame, &ip, (Rewrite::Nothing, None), source_mac, destination_mac)
}

/// What of a transport checksum depends on an address and a port.
fn covered((address, port): Place, pseudo: bool) -> u16 {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let bytes = if pseudo { octets } else { Vec::new() };
    !checksum_of(&[&bytes[..], &port.to_be_bytes()].concat())
}

/// Whether a packet to this address stays on its link.
pub(super) fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    }
}

/// Whether no router may forward the packet (RFC 1812 5.3.7, RFC 4291).
pub(super) fn is_martian(ip: &Ip) -> bool {
    let source = match ip.source {
        IpAddr::V4(source) => matches!(source.octets()[0], 0 | 127 | 224..=255),
        IpAddr::V6(source) => source.is_unspecified() || source.is_loopback() || is_group(ip.source),
    };
    let destination = match ip.destination {
        IpAddr::V4(destination) => matches!(destination.octets()[0], 0 | 127 | 240..=255),
        IpAddr::V6(destination) => destination.is_unspecified() || destination.is_loopback(),
    };
    source || destination
}

impl Ip {
    /// Whether it is IPv4.
    pub(super) fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Length of the IP packet, header included.
    pub(super) fn length(&self) -> usize {
        self.end - self.network
    }

    /// The protocol and the ports of the session that it may belong to.
    pub(super) fn flow(&self) -> Option<Shown> {
        let kind = matches!(self.kind, Kind::Tcp { .. } | Kind::Udp | Kind::EchoRequest | Kind::EchoReply);
        if kind { Some(Shown { proto: self.proto, ports: self.ports }) } else { self.shown }
    }

    /// Where the data of a fragment ends in that of the datagram, bytes.
    pub(super) fn part_end(&self) -> usize {
        self.part.offset + self.end - self.part.data
    }

    /// The ports for route selectors, of protocols that have some.
    pub(super) fn selectable_ports(&self) -> Option<(u16, u16)> {
        matches!(self.kind, Kind::Tcp { .. } | Kind::Udp).then_some(self.ports)
    }

    /// Reads the transport header, if the packet must have one.
    fn with_transport(self, frame: &[u8]) -> Result<Self, DropReason> {
        let icmp = if self.is_v4() { PROTO_ICMP } else { PROTO_ICMPV6 };
        let least = match self.proto {
            PROTO_TCP => 20,
            PROTO_UDP => 8,
            proto if proto == icmp => 8,
            _ => return Ok(self),
        };
        if self.fragment == Fragment::Later {
            return Ok(self);
        }
        let segment = &frame[self.transport..self.end];
        // In a first fragment that is an attempt to hide something.
        let first = self.fragment == Fragment::First;
        if segment.len() < least {
            return Err(if first { DropReason::Malformed } else { DropReason::Truncated });
        }
        if self.proto == PROTO_TCP && first && segment.len() < usize::from(segment[12] >> 4) * 4 {
            return Err(DropReason::Malformed);
        }
        let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let (request, reply) = if self.is_v4() { (8, 0) } else { (128, 129) };
        let (kind, ports) = match (self.proto, segment[0], segment[1]) {
            (PROTO_TCP, ..) => (Kind::Tcp(tcp(segment)), (word(0), word(2))),
            (PROTO_UDP, ..) => (Kind::Udp, (word(0), word(2))),
            (_, kind, 0) if kind == request => (Kind::EchoRequest, (word(4), 0)),
            (_, kind, 0) if kind == reply => (Kind::EchoReply, (0, word(4))),
            (_, kind, _) => (Kind::OtherIcmp { kind }, (0, 0)),
        };
        Ok(Self { kind, ports, ..self })
    }

    /// By how much the transport checksum is wrong, as a one's complement number; `None` where there is no
    /// checksum. Who translates does not vouch for the data: a wrong checksum stays wrong by as much.
    fn checksum_error(&self, packet: &[u8], transport: usize, checksum_at: usize) -> Option<u16> {
        let there = u16::from_be_bytes([packet[checksum_at], packet[checksum_at + 1]]);
        if self.kind == Kind::Udp && there == 0 {
            return None;
        }
        let right = self.right_checksum(packet, transport, checksum_at, self.source, self.destination);
        Some(ones_complement_sum(there, !right))
    }

    fn right_checksum(
        &self,
        packet: &[u8],
        transport: usize,
        checksum_at: usize,
        source: IpAddr,
        destination: IpAddr,
    ) -> u16 {
        let mut segment = packet[transport..self.length()].to_vec();
        segment[checksum_at - transport..checksum_at - transport + 2].fill(0);
        transport_checksum(source, destination, self.proto, &segment)
    }
}

impl Kind {
    /// Whether it is a TCP segment that opens a connection.
    pub(super) fn is_syn(self) -> bool {
        matches!(self, Self::Tcp(segment) if segment.flags & (SYN | ACK) == SYN)
    }
}

/// What a TCP segment says.
fn tcp(segment: &[u8]) -> Segment {
    let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("4 bytes"));
    let payload = segment.len().saturating_sub(usize::from(segment[12] >> 4) * 4) as u32;
    Segment { flags: segment[13], sequence: number(4), acknowledgement: number(8), payload, stamp: 0 }
}

/// The sum of two one's complement numbers; zero is 0.
fn ones_complement_sum(a: u16, b: u16) -> u16 {
    ((u32::from(a) + u32::from(b)) % 0xffff) as u16
}

fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

fn write_address(packet: &mut [u8], at: usize, address: IpAddr) {
    match address {
        IpAddr::V4(address) => packet[at..at + 4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => packet[at..at + 16].copy_from_slice(&address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{echo_reply, echo_request, ip, patch, tcp, udp};

    fn read(frame: &[u8]) -> Ip {
        let link = link(frame).expect("an Ethernet header");
        let read = if link.ethertype == ETHERTYPE_IPV4 { ipv4 } else { ipv6 };
        read(frame, link.network).expect("a packet")
    }

    #[test]
    fn forwarded_packets_are_those_that_the_builder_builds() {
        for (packet, rewrite, out) in [
            (
                tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).options(&[1, 1, 1, 0]).tag(0x8100, 0),
                Rewrite::Source(ip("198.51.100.1"), 5000),
                tcp("198.51.100.1:5000", "203.0.113.10:443", SYN).options(&[1, 1, 1, 0]),
            ),
            (
                udp("203.0.113.10:53", "198.51.100.1:5000").without_checksum(),
                Rewrite::Destination(ip("10.0.1.2"), 4000),
                udp("203.0.113.10:53", "10.0.1.2:4000").without_checksum(),
            ),
            (
                echo_reply("2001:db8::1", "2001:db8::2", 9).extension(60, &[1, 4, 0, 0, 0, 0]),
                Rewrite::Destination(ip("2001:db8::3"), 7),
                echo_reply("2001:db8::1", "2001:db8::3", 7).extension(60, &[1, 4, 0, 0, 0, 0]),
            ),
            (
                echo_request("10.0.1.2", "203.0.113.10", 9),
                Rewrite::Nothing,
                echo_request("10.0.1.2", "203.0.113.10", 9),
            ),
        ] {
            let frame = packet.frame();
            let forwarded = forward(&frame, &read(&frame), (rewrite, None), [2; 6], [4; 6]);
            assert_eq!(forwarded, out.ttl(63).macs([2; 6], [4; 6]).frame());
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_by_as_much() {
        let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
        let at = segment.transport_offset() + 16;
        let out = segment.clone().from("198.51.100.1:5000").ttl(63).macs([2; 6], [4; 6]);
        let bend = |frame: Vec<u8>| {
            let checksum = u16::from_be_bytes([frame[at], frame[at + 1]]);
            patch(frame, at, &ones_complement_sum(checksum, 0x1111).to_be_bytes())
        };
        let frame = bend(segment.frame());
        let rewrite = (Rewrite::Source(ip("198.51.100.1"), 5000), None);
        assert_eq!(forward(&frame, &read(&frame), rewrite, [2; 6], [4; 6]), bend(out.frame()));
    }
}
