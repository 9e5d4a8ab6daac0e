//! The packet that an ICMP error quotes (RFC 792, RFC 4443 2.4): the beginning of the one that failed.
//!
//! Less is there than of a packet on its way: the quote may end eight bytes behind the IP header, and its lengths
//! and its transport checksum are those of a packet that nobody has any more.

use crate::{
    V4, V6,
    family::Family,
    parse::{self, Bytes, Fragment, IPV4_LEN, IPV6_LEN, PROTO_TCP, PROTO_UDP},
    session::Tuple,
};

/// Bytes of an ICMP error before the quote.
pub const ICMP_LEN: usize = 8;

/// Bytes of a quote behind its IP header that are always there.
const LEAST: usize = 8;

/// What translation needs of a quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<F: Family> {
    /// Source address, network byte order.
    pub source: F::Address,
    /// Destination address, network byte order.
    pub destination: F::Address,
    /// Source port, network byte order; the identifier of an echo request. Else 0.
    pub source_port: [u8; 2],
    /// Destination port, network byte order; the identifier of an echo reply. Else 0.
    pub destination_port: [u8; 2],
    /// Offset of the quoted IP header in the frame.
    pub network: u16,
    /// Offset of the quoted transport header.
    pub transport: u16,
    /// Offset of the quoted transport checksum; 0 where the quote ends before it.
    pub checksum: u16,
    /// Transport protocol.
    pub proto: u8,
}

impl<F: Family> Quote<F> {
    /// The key of the session that the quoted packet left with: it came out of the gateway to the side that now
    /// complains about it, where the session has its element under the answers.
    #[inline(always)]
    pub const fn answer(&self, side: u8) -> Tuple<F> {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            proto: self.proto,
            side,
            origin: 0,
        }
    }
}

/// Reads the IPv4 packet quoted at `network` by an error that ends at `end`.
///
/// `None` where it is none, and where it shows no ports: another protocol, a later fragment, too short a quote.
/// Its header checksum is not looked at.
#[inline(always)]
pub fn ipv4(frame: &(impl Bytes + ?Sized), network: usize, end: usize) -> Option<Quote<V4>> {
    let (source, destination, body) = ipv4_header(frame, network, end)?;
    if body.later { None } else { quote(frame, source, destination, &body) }
}

/// As [`ipv4`], for IPv6 with up to six extension headers.
#[inline(always)]
pub fn ipv6(frame: &(impl Bytes + ?Sized), network: usize, end: usize) -> Option<Quote<V6>> {
    let (source, destination, body) = ipv6_header(frame, network, end)?;
    if body.later { None } else { quote(frame, source, destination, &body) }
}

/// As [`ipv4`], for translations that change addresses only: the quoted packet may be of any protocol, and need not
/// show its ports, which are 0 then.
#[inline(always)]
pub fn ipv4_addresses(frame: &(impl Bytes + ?Sized), network: usize, end: usize) -> Option<Quote<V4>> {
    let (source, destination, body) = ipv4_header(frame, network, end)?;
    addresses(frame, source, destination, &body)
}

/// As [`ipv4_addresses`], for IPv6 with up to six extension headers.
#[inline(always)]
pub fn ipv6_addresses(frame: &(impl Bytes + ?Sized), network: usize, end: usize) -> Option<Quote<V6>> {
    let (source, destination, body) = ipv6_header(frame, network, end)?;
    addresses(frame, source, destination, &body)
}

/// Where the parts of the quote are.
struct Body {
    network: usize,
    transport: usize,
    end: usize,
    proto: u8,
    /// Whether it is a later fragment, without a transport header.
    later: bool,
}

/// Source, destination and body of an IPv4 packet.
#[inline(always)]
fn ipv4_header(frame: &(impl Bytes + ?Sized), network: usize, end: usize) -> Option<(u32, u32, Body)> {
    let words: [u32; 5] = frame.read(network)?;
    let [version_ihl, ..] = words[0].to_ne_bytes();
    let header = usize::from(version_ihl & 0x0f) * 4;
    let [_, _, f0, f1] = words[1].to_ne_bytes();
    let later = u16::from_be_bytes([f0, f1]) & 0x1fff != 0;
    if version_ihl >> 4 != 4 || header < IPV4_LEN {
        return None;
    }
    let [_, proto, _, _] = words[2].to_ne_bytes();
    Some((words[3], words[4], Body { network, transport: network + header, end, proto, later }))
}

/// As [`ipv4_header`], for IPv6.
#[inline(always)]
fn ipv6_header(
    frame: &(impl Bytes + ?Sized),
    network: usize,
    end: usize,
) -> Option<([u32; 4], [u32; 4], Body)> {
    let words: [u32; 10] = frame.read(network)?;
    let [version, ..] = words[0].to_ne_bytes();
    let [_, _, next, _] = words[1].to_ne_bytes();
    if version >> 4 != 6 {
        return None;
    }
    let chain = parse::ipv6_chain(frame, network + IPV6_LEN, end, next).ok()?;
    let later = matches!(chain.fragment, Fragment::Later);
    let body = Body { network, transport: chain.transport, end, proto: chain.proto, later };
    let source = [words[2], words[3], words[4], words[5]];
    Some((source, [words[6], words[7], words[8], words[9]], body))
}

#[inline(always)]
fn quote<F: Family>(
    frame: &(impl Bytes + ?Sized),
    source: F::Address,
    destination: F::Address,
    body: &Body,
) -> Option<Quote<F>> {
    let Body { network, transport, end, proto, .. } = *body;
    if transport + LEAST > end {
        return None;
    }
    let [b0, b1, b2, b3]: [u8; 4] = frame.read::<u32>(transport)?.to_ne_bytes();
    let (source_port, destination_port, checksum) = match proto {
        PROTO_TCP => ([b0, b1], [b2, b3], transport + 16),
        PROTO_UDP => ([b0, b1], [b2, b3], transport + 6),
        _ if proto == F::ICMP && b1 == 0 => {
            let identifier = frame.read::<u16>(transport + 4)?.to_ne_bytes();
            if b0 == F::ECHO_REQUEST {
                (identifier, [0; 2], transport + 2)
            } else if b0 == F::ECHO_REPLY {
                ([0; 2], identifier, transport + 2)
            } else {
                return None;
            }
        }
        _ => return None,
    };
    let checksum = if checksum + 2 > end { 0 } else { checksum as u16 };
    let (network, transport) = (network as u16, transport as u16);
    Some(Quote { source, destination, source_port, destination_port, network, transport, checksum, proto })
}

#[inline(always)]
fn addresses<F: Family>(
    frame: &(impl Bytes + ?Sized),
    source: F::Address,
    destination: F::Address,
    body: &Body,
) -> Option<Quote<F>> {
    let Body { network, transport, end, proto, later } = *body;
    if transport > end {
        return None;
    }
    let (mut ports, mut checksum) = ([0; 4], 0);
    if !later {
        if matches!(proto, PROTO_TCP | PROTO_UDP) && transport + 4 <= end {
            ports = frame.read::<u32>(transport)?.to_ne_bytes();
        }
        if let Some(at) = parse::address_checksum::<F>(proto)
            && transport + at + 2 <= end
        {
            checksum = transport + at;
        }
    }
    let [s0, s1, d0, d1] = ports;
    Some(Quote {
        source,
        destination,
        source_port: [s0, s1],
        destination_port: [d0, d1],
        network: network as u16,
        transport: transport as u16,
        checksum: checksum as u16,
        proto,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse::PROTO_ICMP, session::SIDE_OUTSIDE};

    const UDP: [u8; 28] = [
        0x45, 0, 0, 60, 0, 1, 0, 0, 3, 17, 0xaa, 0xbb, 198, 51, 100, 10, 203, 0, 113, 10, 0x0f, 0xa0, 0, 53,
        0, 40, 0x12, 0x34,
    ];

    #[test]
    fn a_quote_of_28_bytes_shows_ports_and_the_checksum_of_udp() {
        let quote = ipv4(&UDP[..], 0, 28).expect("a quote");
        assert_eq!((quote.source_port, quote.destination_port), ([0x0f, 0xa0], [0, 53]));
        assert_eq!((quote.network, quote.transport, quote.checksum), (0, 20, 26));
        let answer = quote.answer(SIDE_OUTSIDE);
        assert_eq!(answer.source, V4::address([203, 0, 113, 10]));
        assert_eq!(answer.source_port, [0, 53]);
        assert_eq!(answer.destination, V4::address([198, 51, 100, 10]));
        assert_eq!(answer.destination_port, [0x0f, 0xa0]);
    }

    #[test]
    fn the_checksum_of_tcp_is_often_beyond_the_quote() {
        let mut tcp = [UDP.to_vec(), vec![0; 12]].concat();
        tcp[9] = PROTO_TCP;
        assert_eq!(ipv4(&tcp[..], 0, 28).expect("a quote").checksum, 0);
        assert_eq!(ipv4(&tcp[..], 0, 37).expect("a quote").checksum, 0);
        assert_eq!(ipv4(&tcp[..], 0, 38).expect("a quote").checksum, 36);
    }

    #[test]
    fn the_addresses_of_any_quoted_packet_are_read() {
        let with = |at: usize, value: u8| {
            let mut bytes = UDP;
            bytes[at] = value;
            bytes
        };
        let addresses = |bytes: [u8; 28], end| {
            ipv4_addresses(&bytes[..], 0, end).map(|quote| {
                (quote.destination_port, quote.checksum, quote.source == V4::address([198, 51, 100, 10]))
            })
        };
        assert_eq!(addresses(UDP, 28), Some(([0, 53], 26, true)));
        assert_eq!(addresses(UDP, 27), Some(([0, 53], 0, true)));
        assert_eq!(addresses(UDP, 23), Some(([0, 0], 0, true)));
        assert_eq!(addresses(UDP, 19), None);
        assert_eq!(addresses(with(9, 47), 28), Some(([0, 0], 0, true)));
        assert_eq!(addresses(with(9, PROTO_ICMP), 28), Some(([0, 0], 0, true)));
        // A later fragment has neither ports nor a checksum.
        assert_eq!(addresses(with(7, 1), 28), Some(([0, 0], 0, true)));
        assert_eq!(addresses(with(0, 0x55), 28), None);
    }

    #[test]
    fn a_quote_without_ports_is_none() {
        let with = |at: usize, value: u8| {
            let mut bytes = UDP;
            bytes[at] = value;
            bytes
        };
        for (what, bytes) in [
            ("version 5", with(0, 0x55)),
            ("a header of 16 bytes", with(0, 0x44)),
            ("options that leave less than eight bytes", with(0, 0x46)),
            ("a later fragment", with(7, 1)),
            ("GRE", with(9, 47)),
            ("an ICMP message that is no query", with(9, PROTO_ICMP)),
        ] {
            assert_eq!(ipv4(&bytes[..], 0, 28), None, "{what}");
        }
        assert_eq!(ipv4(&UDP[..], 0, 27), None);
    }
}
