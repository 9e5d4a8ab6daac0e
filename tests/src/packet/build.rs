//! From a description to bytes.

use std::net::IpAddr;

use etherparse::{
    IpDscp, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader, checksum::Sum16BitWords,
};
use gateway_common::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};

use super::{ACK, FIN, Packet, RST, SYN, Transport};

const FRAGMENT_HEADER: u8 = 44;

/// The Internet checksum of `bytes` (RFC 1071).
pub fn checksum_of(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_be()
}

/// The checksum of a transport header and its payload, whose own checksum field is zero. ICMP of IPv4 has
/// no pseudo header. A UDP checksum that comes out as 0 is 0xffff (RFC 768).
pub fn transport_checksum(source: IpAddr, destination: IpAddr, proto: u8, segment: &[u8]) -> u16 {
    let mut sum = Sum16BitWords::new().add_slice(segment);
    let length = (segment.len() as u32).to_be_bytes();
    let sum = match (source, destination) {
        (IpAddr::V4(_), _) if proto == PROTO_ICMP => sum,
        (IpAddr::V4(source), IpAddr::V4(destination)) => sum
            .add_4bytes(source.octets())
            .add_4bytes(destination.octets())
            .add_4bytes(length)
            .add_2bytes([0, proto]),
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            sum.add_16bytes(octets(source))
                .add_16bytes(octets(destination))
                .add_4bytes(length)
                .add_2bytes([0, proto])
        }
    };
    if proto == PROTO_UDP { sum.to_ones_complement_with_no_zero() } else { sum.ones_complement() }.to_be()
}

impl Packet {
    /// The protocol number of what the packet carries.
    pub fn proto(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => PROTO_TCP,
            Transport::Udp { .. } => PROTO_UDP,
            Transport::Echo { .. } | Transport::Icmp { .. } if self.source.is_ipv4() => PROTO_ICMP,
            Transport::Echo { .. } | Transport::Icmp { .. } => PROTO_ICMPV6,
            Transport::Bare(proto) => proto,
        }
    }

    /// The frame, with right lengths and checksums.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [self.destination_mac, self.source_mac].concat();
        for tag in &self.tags {
            frame.extend(tag.kind.to_be_bytes());
            frame.extend(tag.control.to_be_bytes());
        }
        let ethertype = if self.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        frame.extend(ethertype.to_be_bytes());
        frame.extend(self.network());
        frame.extend(&self.trailer);
        frame
    }

    /// The packet in fragments: one up to each of `cuts`, in bytes of what IP carries, and the rest.
    ///
    /// # Panics
    /// If the cuts are not ascending multiples of eight within the packet.
    pub fn fragments(&self, cuts: &[usize]) -> Vec<Self> {
        let segment = self.segment();
        let ends = cuts.iter().copied().chain([segment.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let fragment = |(start, end): (usize, usize)| {
            assert!(start % 8 == 0, "fragments begin at multiples of eight bytes");
            let offset = u16::try_from(start / 8).expect("an offset has 13 bits");
            Self { transport: Transport::Bare(self.proto()), ..self.clone() }
                .payload(&segment[start..end])
                .fragment(offset, end < segment.len())
        };
        starts.zip(ends).map(fragment).collect()
    }

    /// Offset of the IP header in the frame.
    pub fn network_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Offset of the transport header in the frame.
    pub fn transport_offset(&self) -> usize {
        let frame_end = self.network_offset() + self.network().len();
        frame_end - self.segment().len()
    }

    /// The IP packet.
    pub(super) fn network(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source.octets(), destination.octets()),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source.octets(), destination.octets()),
            (source, destination) => panic!("{source} and {destination} are of different families"),
        }
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let segment = self.segment();
        let mut header = Ipv4Header {
            dscp: IpDscp::try_new(self.tos >> 2).expect("a DSCP has 6 bits"),
            identification: self.identification as u16,
            dont_fragment: self.fragment.is_none(),
            more_fragments: self.fragment.is_some_and(|fragment| fragment.more),
            fragment_offset: IpFragOffset::try_new(self.fragment.map_or(0, |fragment| fragment.offset))
                .expect("a fragment offset has 13 bits"),
            time_to_live: self.ttl,
            protocol: IpNumber(self.proto()),
            source,
            destination,
            options: self.options.as_slice().try_into().expect("options are a multiple of four bytes"),
            ..Ipv4Header::default()
        };
        header.set_payload_len(segment.len()).expect("an IPv4 packet has at most 65535 bytes");
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().as_slice(), &segment].concat()
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let fragment = self.fragment.map(|fragment| {
            let [high, low] = (fragment.offset << 3 | u16::from(fragment.more)).to_be_bytes();
            let identification = self.identification.to_be_bytes();
            (FRAGMENT_HEADER, [[high, low].as_slice(), &identification].concat())
        });
        let extensions = self.extensions.iter().map(|extension| (extension.kind, extension.data.clone()));
        let extensions: Vec<_> = extensions.chain(fragment).collect();
        let mut chain: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
        chain.push(self.proto());

        let mut payload = Vec::new();
        for ((kind, data), next) in extensions.iter().zip(&chain[1..]) {
            assert!(data.len() % 8 == 6, "an extension header is a multiple of eight bytes");
            // The length byte of a fragment header is reserved.
            let length = if *kind == FRAGMENT_HEADER { 0 } else { data.len() / 8 };
            payload.extend([*next, u8::try_from(length).expect("an extension header has a length byte")]);
            payload.extend(data);
        }
        payload.extend(self.segment());
        let header = Ipv6Header {
            traffic_class: self.tos,
            payload_length: u16::try_from(payload.len()).expect("an IPv6 payload has at most 65535 bytes"),
            next_header: IpNumber(chain[0]),
            hop_limit: self.ttl,
            source,
            destination,
            ..Ipv6Header::default()
        };
        [header.to_bytes().as_slice(), &payload].concat()
    }

    /// Transport header and payload.
    fn segment(&self) -> Vec<u8> {
        let (header, checksum_at) = match self.transport {
            Transport::Tcp { source, destination, flags, sequence, acknowledgement, window } => {
                let mut header = TcpHeader::new(source, destination, sequence, window);
                header.acknowledgment_number = acknowledgement;
                (header.fin, header.syn) = (flags & FIN != 0, flags & SYN != 0);
                (header.rst, header.ack) = (flags & RST != 0, flags & ACK != 0);
                header.set_options_raw(&self.tcp_options).expect("TCP options are at most 40 bytes");
                (header.to_bytes().to_vec(), Some(16))
            }
            Transport::Udp { source, destination, checksum } => {
                let length =
                    u16::try_from(8 + self.payload.len()).expect("a datagram has at most 65535 bytes");
                let header =
                    UdpHeader { source_port: source, destination_port: destination, length, checksum: 0 };
                (header.to_bytes().to_vec(), checksum.then_some(6))
            }
            Transport::Echo { request, identifier, sequence } => {
                let kind = match (request, self.source) {
                    (true, IpAddr::V4(_)) => 8,
                    (false, IpAddr::V4(_)) => 0,
                    (true, IpAddr::V6(_)) => 128,
                    (false, IpAddr::V6(_)) => 129,
                };
                let [id, sequence] = [identifier, sequence].map(u16::to_be_bytes);
                (vec![kind, 0, 0, 0, id[0], id[1], sequence[0], sequence[1]], Some(2))
            }
            Transport::Icmp { kind, code, rest } => {
                (vec![kind, code, 0, 0, rest[0], rest[1], rest[2], rest[3]], Some(2))
            }
            Transport::Bare(_) => (Vec::new(), None),
        };
        let mut segment = [header, self.payload.clone()].concat();
        if let Some(at) = checksum_at {
            let checksum = transport_checksum(self.source, self.destination, self.proto(), &segment);
            segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        segment
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;
    use crate::packet::{echo_request, tcp, udp};

    #[test]
    fn a_built_packet_reads_back_with_good_checksums() {
        for packet in [
            tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).options(&[1, 1, 1, 0]),
            tcp("[2001:db8::2]:4000", "[2001:db8::3]:443", ACK).extension(60, &[1, 4, 0, 0, 0, 0]),
            udp("10.0.1.2:4000", "203.0.113.10:53").payload([7; 3]),
            udp("[2001:db8::2]:4000", "[2001:db8::3]:53").tag(0x8100, 0x2000),
            echo_request("10.0.1.2", "203.0.113.10", 77),
            echo_request("2001:db8::2", "2001:db8::3", 77),
        ] {
            let frame = packet.frame();
            let sliced = SlicedPacket::from_ethernet(&frame).expect("a packet");
            let segment = &frame[packet.transport_offset()..];
            match sliced.transport.expect("a transport header") {
                TransportSlice::Tcp(tcp) => assert_eq!(tcp.slice(), segment),
                TransportSlice::Udp(udp) => assert_eq!(udp.slice(), segment),
                TransportSlice::Icmpv4(icmp) => assert_eq!(icmp.slice(), segment),
                TransportSlice::Icmpv6(icmp) => assert_eq!(icmp.slice(), segment),
                TransportSlice::Igmp(igmp) => panic!("{igmp:?}"),
            }
            // Over a segment that carries its own checksum, the checksum is zero.
            let over = transport_checksum(packet.source, packet.destination, packet.proto(), segment);
            assert!(matches!(over, 0 | 0xffff), "{over:#x}");
            if packet.source.is_ipv4() {
                let network = packet.network_offset();
                let header = &frame[network..packet.transport_offset()];
                assert_eq!(checksum_of(header), 0);
            }
        }
    }
}
