//! Packets of the tests, written field by field.
//!
//! A [`Packet`] is a description. [`Packet::frame`] makes bytes of it, with the lengths and checksums that
//! belong to it, so the packet that must come out is the packet that went in with some fields changed.
//! Broken packets are frames with bytes overwritten by [`patch`].

mod build;
mod differ;
mod neighbor;
mod refusal;
mod tunnel;

use std::net::{IpAddr, SocketAddr};

pub use build::{checksum_of, transport_checksum};
pub use differ::{differences, fields};
pub use neighbor::{Arp, advertisement, all_nodes, all_nodes_mac, solicitation};
pub use refusal::{icmp_error, reset};
pub use tunnel::Tunnel;

/// A MAC address.
pub type Mac = [u8; 6];

/// The broadcast MAC address.
pub const BROADCAST_MAC: Mac = [0xff; 6];

/// Flag of a TCP segment, as on the wire.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// An IEEE 802.1Q tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub kind: u16,
    /// Priority and VLAN number; number 0 is a priority tag.
    pub control: u16,
}

/// An IPv6 extension header, without its first two bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Protocol number.
    pub kind: u8,
    /// What follows next header and length: 6 bytes, or 6 + 8n. A fragment header has 6.
    pub data: Vec<u8>,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in units of 8 bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

/// What IP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these flags.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// [`SYN`] and the others.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Window.
        window: u16,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// `false`: sent without a checksum.
        checksum: bool,
    },
    /// An echo request or reply of the packet's family.
    Echo {
        /// Request, not reply.
        request: bool,
        /// Identifier.
        identifier: u16,
        /// Sequence number.
        sequence: u16,
    },
    /// Any other ICMP or `ICMPv6` message.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: [u8; 4],
    },
    /// Another protocol, or a later fragment: no header of its own.
    Bare(u8),
}

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Source MAC address.
    pub source_mac: Mac,
    /// VLAN and priority tags, outermost first.
    pub tags: Vec<Tag>,
    /// Source address; of the same family as the destination.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Identification: its low 16 bits in IPv4, all of it in the fragment header of IPv6.
    pub identification: u32,
    /// Position in a fragmented datagram. In IPv6 it adds the fragment header behind `extensions`.
    pub fragment: Option<Fragment>,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    /// Transport header.
    pub transport: Transport,
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// What follows it.
    pub payload: Vec<u8>,
    /// Bytes of the frame behind the IP packet (Ethernet padding).
    pub trailer: Vec<u8>,
}

/// A TCP segment with `flags`. Addresses are written `10.0.1.2:4000` or `[2001:db8::2]:4000`.
pub fn tcp(from: &str, to: &str, flags: u8) -> Packet {
    let (from, to) = (socket(from), socket(to));
    Packet::new(from.ip(), to.ip(), segment(from.port(), to.port(), flags))
}

/// A UDP datagram; addresses as in [`tcp`].
pub fn udp(from: &str, to: &str) -> Packet {
    let (from, to) = (socket(from), socket(to));
    let transport = Transport::Udp { source: from.port(), destination: to.port(), checksum: true };
    Packet::new(from.ip(), to.ip(), transport)
}

/// An echo request.
pub fn echo_request(from: &str, to: &str, identifier: u16) -> Packet {
    Packet::new(ip(from), ip(to), Transport::Echo { request: true, identifier, sequence: 1 })
}

/// An echo reply.
pub fn echo_reply(from: &str, to: &str, identifier: u16) -> Packet {
    Packet::new(ip(from), ip(to), Transport::Echo { request: false, identifier, sequence: 1 })
}

/// A packet of a protocol without ports.
pub fn bare(from: &str, to: &str, proto: u8) -> Packet {
    Packet::new(ip(from), ip(to), Transport::Bare(proto))
}

/// Reads an address.
///
/// # Panics
/// If it is none: a test is wrong.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is not an address"))
}

/// Overwrites bytes of a frame.
///
/// # Panics
/// If the frame ends before.
pub fn patch(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

impl Packet {
    /// A packet with 10 bytes of payload, TTL 64 and no MAC addresses.
    pub fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            destination_mac: [0; 6],
            source_mac: [0; 6],
            tags: Vec::new(),
            source,
            destination,
            ttl: 64,
            tos: 0,
            identification: 0x5678_1234,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            transport,
            tcp_options: Vec::new(),
            payload: b"0123456789".to_vec(),
            trailer: Vec::new(),
        }
    }

    /// With these MAC addresses.
    pub fn macs(self, source_mac: Mac, destination_mac: Mac) -> Self {
        Self { destination_mac, source_mac, ..self }
    }

    /// With this source address, and port or echo identifier.
    pub fn from(self, source: &str) -> Self {
        let source = socket(source);
        self.from_address(source.ip()).from_port(source.port())
    }

    /// With this destination address, and port or echo identifier.
    pub fn to(mut self, destination: &str) -> Self {
        let to = socket(destination);
        self.destination = to.ip();
        match &mut self.transport {
            Transport::Tcp { destination, .. } | Transport::Udp { destination, .. } => {
                *destination = to.port();
            }
            Transport::Echo { identifier, .. } => *identifier = to.port(),
            Transport::Icmp { .. } | Transport::Bare(_) => {}
        }
        self
    }

    /// With this source address.
    pub fn from_address(self, source: IpAddr) -> Self {
        Self { source, ..self }
    }

    /// With this source port or echo identifier.
    pub fn from_port(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp { source, .. } | Transport::Udp { source, .. } => *source = port,
            Transport::Echo { identifier, .. } => *identifier = port,
            Transport::Icmp { .. } | Transport::Bare(_) => {}
        }
        self
    }

    /// With this TTL or hop limit.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With this payload.
    pub fn payload(self, payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), ..self }
    }

    /// With a payload that makes the IP packet `length` bytes long.
    ///
    /// # Panics
    /// If the headers are longer than that.
    pub fn length(self, length: usize) -> Self {
        let headers = self.clone().payload([]).network().len();
        let payload = (0..length - headers).map(|at| at as u8).collect::<Vec<_>>();
        self.payload(payload)
    }

    /// With this identification.
    pub fn identification(self, identification: u32) -> Self {
        Self { identification, ..self }
    }

    /// As this part of a fragmented datagram.
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        Self { fragment: Some(Fragment { offset, more }), ..self }
    }

    /// With these IPv4 options.
    pub fn options(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    /// With these TCP options.
    pub fn tcp_options(self, options: &[u8]) -> Self {
        Self { tcp_options: options.to_vec(), ..self }
    }

    /// With one more IPv6 extension header.
    pub fn extension(mut self, kind: u8, data: &[u8]) -> Self {
        self.extensions.push(Extension { kind, data: data.to_vec() });
        self
    }

    /// With one more tag, inside of those it has.
    pub fn tag(mut self, kind: u16, control: u16) -> Self {
        self.tags.push(Tag { kind, control });
        self
    }

    /// Without a UDP checksum.
    pub fn without_checksum(mut self) -> Self {
        if let Transport::Udp { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    /// With these TCP sequence and acknowledgement numbers.
    ///
    /// # Panics
    /// If it is not TCP.
    pub fn numbers(mut self, first: u32, expected: u32) -> Self {
        let Transport::Tcp { sequence, acknowledgement, .. } = &mut self.transport else {
            panic!("{:?} has no sequence number", self.transport);
        };
        (*sequence, *acknowledgement) = (first, expected);
        self
    }

    /// With these TCP flags.
    pub fn flags(mut self, with: u8) -> Self {
        if let Transport::Tcp { source, destination, .. } = self.transport {
            self.transport = segment(source, destination, with);
        }
        self
    }

    /// The answer that the receiver would send: ends swapped, SYN answered by SYN and ACK, a fresh TTL.
    pub fn answer(&self) -> Self {
        let transport = match self.transport {
            Transport::Tcp { source, destination, flags, .. } => {
                segment(destination, source, if flags & SYN == SYN { SYN | ACK } else { ACK })
            }
            Transport::Udp { source, destination, checksum } => {
                Transport::Udp { source: destination, destination: source, checksum }
            }
            Transport::Echo { request, identifier, sequence } => {
                Transport::Echo { request: !request, identifier, sequence }
            }
            other @ (Transport::Icmp { .. } | Transport::Bare(_)) => other,
        };
        Self {
            source: self.destination,
            destination: self.source,
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            ttl: 60,
            transport,
            ..self.clone()
        }
    }
}

fn segment(source: u16, destination: u16, flags: u8) -> Transport {
    let acknowledgement = if flags & ACK == 0 { 0 } else { 0x0506_0708 };
    Transport::Tcp { source, destination, flags, sequence: 0x0102_0304, acknowledgement, window: 0xfa00 }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is not an address with a port"))
}
