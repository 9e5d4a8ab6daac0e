//! What happens to a gateway: packets, answers to what came of them, changes of policy.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use gateway_tests::{
    network::{Network, mac},
    packet::{Extension, Fragment, Mac, Packet, Transport, fields, patch},
    policy::Policy,
};

/// A gateway, and what happens to it.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) network: Network,
    pub(crate) policy: Policy,
    /// With numbers that stay the same when other steps are left out.
    pub(crate) steps: Vec<(usize, Step)>,
}

/// One thing that happens.
#[derive(Clone)]
pub(crate) enum Step {
    /// A packet arrives.
    Packet { device: &'static str, packet: Packet, twists: Vec<Twist> },
    /// What came of an earlier step is answered from where it went, or through another device.
    Answer { to: usize, device: Option<&'static str>, twists: Vec<Twist> },
    /// What came of an earlier step fails on its way, and is quoted by an ICMP error.
    Error { about: usize, device: Option<&'static str>, from: [IpAddr; 2], error: Error, twists: Vec<Twist> },
    /// Another fragment of the datagram that an earlier step is about; it begins behind so many bytes.
    Rest { of: usize, from: usize, twists: Vec<Twist> },
    /// Any other frame arrives.
    Frame { device: &'static str, frame: Vec<u8> },
    /// The policy changes.
    Change(Policy),
    /// What was cut is removed.
    Sweep,
}

/// What an ICMP error says; its sender and its type are those of the family of what it quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Error {
    pub(crate) kind: [u8; 2],
    pub(crate) code: u8,
    /// Bytes of the packet that it quotes.
    pub(crate) quoted: usize,
}

/// Something about a packet that is not as usual.
#[derive(Clone, Debug)]
pub(crate) enum Twist {
    Ttl(u8),
    Options(Vec<u8>),
    Extension(u8, Vec<u8>),
    Fragment(u16, bool),
    Identification(u32),
    Tag(u16, u16),
    Trailer(usize),
    NoChecksum,
    /// The payload is so long.
    Payload(usize),
    /// The frame comes from this MAC address.
    Sender(Mac),
    /// The frame is for this MAC address.
    Receiver(Mac),
    /// A byte behind the Ethernet header is another one.
    Byte(usize, u8),
    /// As [`Twist::Byte`], and the IPv4 header checksum is made right again.
    HeaderByte(usize, u8),
    /// The frame ends after so many bytes.
    Cut(usize),
}

/// The frame of a packet that arrives on a device.
pub(crate) fn frame(network: &Network, device: &str, packet: &Packet, twists: &[Twist]) -> Vec<u8> {
    let packet = twisted(network, device, packet, twists);
    let network_offset = packet.network_offset();
    twists.iter().fold(packet.frame(), |frame, twist| twist.of_frame(frame, network_offset))
}

/// The packet as it arrives on a device, but for its bytes.
pub(crate) fn twisted(network: &Network, device: &str, packet: &Packet, twists: &[Twist]) -> Packet {
    let mut packet = packet.clone();
    if packet.source_mac == [0; 6] {
        // Whoever is not on the device's link sends through a router.
        let way = network.way(packet.source).filter(|way| way.device.name == device);
        packet.source_mac = mac(way.map_or(packet.source, |way| way.neighbor));
    }
    packet.destination_mac = network.find(device).mac();
    for twist in twists {
        packet = twist.of_packet(packet);
    }
    packet
}

/// Another fragment of the datagram of one that arrived; it begins behind so many bytes.
pub(crate) fn rest(arrived: &Packet, from: usize) -> Packet {
    let offset = (from / 8) as u16;
    let rest = Packet { transport: Transport::Bare(arrived.proto()), ..arrived.clone() };
    rest.fragment(offset, offset.is_multiple_of(2))
}

/// The answer to a packet that left as `sent`, without MAC addresses.
pub(crate) fn answer(packet: &Packet, sent: &[u8]) -> Packet {
    // Tags were taken off.
    let plain = Packet { tags: Vec::new(), ..packet.clone() };
    let at = plain.transport_offset();
    let port = |at: usize| sent.get(at..at + 2).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    let (from, to) =
        if matches!(plain.transport, Transport::Echo { .. }) { (at + 4, at + 4) } else { (at, at + 2) };
    let address = |at: usize| -> IpAddr {
        if plain.source.is_ipv4() {
            <[u8; 4]>::try_from(&sent[at..at + 4]).expect("4 bytes").into()
        } else {
            <[u8; 16]>::try_from(&sent[at..at + 16]).expect("16 bytes").into()
        }
    };
    let (source_at, destination_at) = if plain.source.is_ipv4() { (26, 30) } else { (22, 38) };
    let destination = SocketAddr::new(address(destination_at), port(to));
    let source = (address(source_at), port(from));
    let sent = plain.to(&destination.to_string()).from_address(source.0).from_port(source.1);
    sent.answer().macs(mac(destination.ip()), [0; 6])
}

/// An error about what left as `sent`, to whom it seems to come from.
pub(crate) fn error(error: Error, from: [IpAddr; 2], sent: &[u8]) -> Packet {
    let Error { kind, code, quoted } = error;
    let ([v4, v6], [kind4, kind6]) = (from, kind);
    let (from, kind, source) = if sent[12..14] == [0x08, 0x00] {
        (v4, kind4, <[u8; 4]>::try_from(&sent[26..30]).expect("4 bytes").into())
    } else {
        (v6, kind6, <[u8; 16]>::try_from(&sent[22..38]).expect("16 bytes").into())
    };
    let quote: Vec<u8> = sent[14..].iter().copied().take(quoted).collect();
    Packet::new(from, source, Transport::Icmp { kind, code, rest: [0, 0, 5, 0] }).payload(quote)
}

impl Twist {
    fn of_packet(&self, mut packet: Packet) -> Packet {
        match self.clone() {
            Self::Ttl(ttl) => packet.ttl = ttl,
            Self::Options(options) if packet.source.is_ipv4() => packet.options = options,
            Self::Extension(kind, data) if packet.source.is_ipv6() => {
                packet.extensions.push(Extension { kind, data });
            }
            Self::Fragment(offset, more) => packet.fragment = Some(Fragment { offset, more }),
            Self::Identification(number) => packet.identification = number,
            Self::Tag(kind, control) => packet = packet.tag(kind, control),
            Self::Trailer(length) => packet.trailer = vec![0; length],
            Self::NoChecksum => packet = packet.without_checksum(),
            Self::Payload(length) => packet.payload = (0..length).map(|at| at as u8).collect(),
            Self::Sender(mac) => packet.source_mac = mac,
            Self::Receiver(mac) => packet.destination_mac = mac,
            Self::Options(_) | Self::Extension(..) | Self::Byte(..) | Self::HeaderByte(..) | Self::Cut(_) => {
            }
        }
        packet
    }

    fn of_frame(&self, mut frame: Vec<u8>, network: usize) -> Vec<u8> {
        match *self {
            Self::Byte(at, byte) if network + at < frame.len() => frame[network + at] = byte,
            Self::HeaderByte(at, byte) if network + at < frame.len() => {
                frame[network + at] = byte;
                let header = network + usize::from(frame[network] & 15) * 4;
                if frame[network] >> 4 == 4 && header >= network + 20 && header <= frame.len() {
                    frame = patch(frame, network + 10, &[0, 0]);
                    let checksum = gateway_tests::packet::checksum_of(&frame[network..header]);
                    frame = patch(frame, network + 10, &checksum.to_be_bytes());
                }
            }
            // The kernel runs no program on less than an Ethernet header.
            Self::Cut(length) => frame.truncate(length.max(14)),
            Self::Byte(..)
            | Self::HeaderByte(..)
            | Self::Ttl(_)
            | Self::Options(_)
            | Self::Extension(..)
            | Self::Fragment(..)
            | Self::Identification(_)
            | Self::Tag(..)
            | Self::Trailer(_)
            | Self::NoChecksum
            | Self::Payload(_)
            | Self::Sender(_)
            | Self::Receiver(_) => {}
        }
        frame
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet { device, packet, twists } => {
                let (source, destination) = (packet.source, packet.destination);
                write!(f, "packet on {device}: {source} > {destination} {:?} {twists:?}", packet.transport)
            }
            Self::Answer { to, device, twists } => {
                write!(f, "answer to step {to} on {} {twists:?}", device.unwrap_or("the same device"))
            }
            Self::Error { about, device, from, error, twists } => {
                let device = device.unwrap_or("the same device");
                write!(f, "error about step {about} on {device} from {from:?}: {error:?} {twists:?}")
            }
            Self::Rest { of, from, twists } => write!(f, "rest of step {of} from {from} on: {twists:?}"),
            Self::Frame { device, frame } => write!(f, "frame on {device}: {:?}", fields(frame)),
            Self::Change(policy) => write!(f, "policy: {policy}"),
            Self::Sweep => write!(f, "sweep"),
        }
    }
}
