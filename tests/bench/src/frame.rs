//! Frames as clients send them, one for each flow.

use std::net::Ipv4Addr;

use gateway_common::checksum::{fold, sum};

/// Bytes of a frame: the least that Ethernet carries, without the check sequence.
pub(crate) const LENGTH: usize = 60;

/// How many templates of flows there are, see [`Flow::template`].
pub(crate) const TEMPLATES: usize = 1 << 14;

/// How many flows they stand for, at most.
pub(crate) const MANY: u32 = 1 << 22;

/// Clients there are, from 10.0.1.2 on.
pub(crate) const CLIENTS: u8 = 200;

/// Bytes before a frame in an element of the map `FRAMES`.
const LEAD: usize = 2;

const ETHERNET: usize = 14;
const IP: usize = 20;

/// TCP: the first segment of a connection.
pub(crate) const SYN: u8 = 0x02;
/// TCP: any later one.
pub(crate) const ACK: u8 = 0x10;

/// Transport protocol of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// With these flags.
    Tcp(u8),
    /// Without a choice.
    Udp,
}

/// A flow in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Who sends.
    pub(crate) source: (Ipv4Addr, u16),
    /// Who is meant.
    pub(crate) destination: (Ipv4Addr, u16),
}

impl Flow {
    /// Flow `number` from the clients to the servers: 200 clients, 250 servers, and as many ports of the
    /// clients as it takes.
    pub(crate) fn outward(number: usize) -> Self {
        let client = Ipv4Addr::new(10, 0, 1, 2 + (number % usize::from(CLIENTS)) as u8);
        let server = Ipv4Addr::new(203, 0, 113, 1 + (number % 250) as u8);
        Self { source: (client, 2_000 + (number / usize::from(CLIENTS)) as u16), destination: (server, 443) }
    }

    /// Flow `number` of [`TEMPLATES`] of different clients and servers, each of which stands for
    /// [`MANY`] / [`TEMPLATES`] flows: the port of the client goes up by 1 for each.
    ///
    /// No two clients of a server have the same port, so each flow may keep its own when it is translated.
    pub(crate) fn template(number: usize) -> Self {
        let (client, server) = (number % 128, number / 128);
        Self {
            source: (Ipv4Addr::new(10, 0, 1, 2 + client as u8), 1_024 + 500 * client as u16),
            destination: (Ipv4Addr::new(203, 0, 113, 1 + server as u8), 443),
        }
    }

    /// The answers to what `frame` has become on its way.
    pub(crate) fn answering(frame: &[u8; LENGTH]) -> Self {
        let source = Self::source_of(frame);
        let destination = (address(frame, ETHERNET + 16), word(frame, ETHERNET + IP + 2));
        Self { source: destination, destination: source }
    }

    /// Source address and port of a frame.
    pub(crate) fn source_of(frame: &[u8; LENGTH]) -> (Ipv4Addr, u16) {
        (address(frame, ETHERNET + 12), word(frame, ETHERNET + IP))
    }

    /// A frame of this flow. Its checksums are right.
    pub(crate) fn frame(&self, transport: Transport, destination: [u8; 6], source: [u8; 6]) -> [u8; LENGTH] {
        let mut frame = [0; LENGTH];
        let (ethernet, packet) = frame.split_at_mut(ETHERNET);
        ethernet[..6].copy_from_slice(&destination);
        ethernet[6..12].copy_from_slice(&source);
        ethernet[12..].copy_from_slice(&[0x08, 0x00]);

        let (header, segment) = packet.split_at_mut(IP);
        let length = segment.len() as u16;
        let proto = match transport {
            Transport::Tcp(_) => 6,
            Transport::Udp => 17,
        };
        header[0] = 0x45;
        header[2..4].copy_from_slice(&(IP as u16 + length).to_be_bytes());
        header[6] = 0x40;
        header[8] = 64;
        header[9] = proto;
        header[12..16].copy_from_slice(&self.source.0.octets());
        header[16..20].copy_from_slice(&self.destination.0.octets());
        let checksum = !fold(sum(header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());

        segment[..2].copy_from_slice(&self.source.1.to_be_bytes());
        segment[2..4].copy_from_slice(&self.destination.1.to_be_bytes());
        let at = match transport {
            Transport::Tcp(flags) => {
                segment[12] = 5 << 4;
                segment[13] = flags;
                segment[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
                16
            }
            Transport::Udp => {
                segment[4..6].copy_from_slice(&length.to_be_bytes());
                6
            }
        };
        let pseudo = sum(&header[12..20]) + u32::from(proto) + u32::from(length);
        let checksum = !fold(u32::from(fold(pseudo)) + sum(segment));
        segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }
}

/// A frame as an element of the map `FRAMES`.
pub(crate) fn element(frame: &[u8; LENGTH]) -> [u32; 16] {
    let mut bytes = [0; 64];
    bytes[LEAD..LEAD + LENGTH].copy_from_slice(frame);
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// The same frames in an order that no processor foresees, always the same.
pub(crate) fn shuffle<T>(frames: &mut [T]) {
    // Xorshift, Marsaglia 2003.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for last in (1..frames.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        frames.swap(last, (state % (last as u64 + 1)) as usize);
    }
}

fn address(frame: &[u8; LENGTH], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3])
}

fn word(frame: &[u8; LENGTH], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn checksums_are_right() {
        for transport in [Transport::Tcp(SYN), Transport::Udp] {
            let frame = Flow::outward(7).frame(transport, [2; 6], [4; 6]);
            let header = &frame[ETHERNET..ETHERNET + IP];
            assert_eq!(fold(sum(header)), 0xffff);
            let segment = &frame[ETHERNET + IP..];
            let pseudo = sum(&header[12..20]) + u32::from(header[9]) + segment.len() as u32;
            assert_eq!(fold(u32::from(fold(pseudo)) + sum(segment)), 0xffff);
        }
    }

    #[test]
    fn flows_are_different() {
        let flows: HashSet<_> = (0..65_536).map(|number| Flow::outward(number).source).collect();
        assert_eq!(flows.len(), 65_536);
    }

    #[test]
    fn many_flows_are_different() {
        let laps = (MANY as usize / TEMPLATES) as u16;
        let mut flows = HashSet::new();
        for number in 0..TEMPLATES {
            let Flow { source: (client, port), destination } = Flow::template(number);
            for lap in [0, laps - 1] {
                assert!(flows.insert((destination, port + lap)), "port {port} of {client} meets another");
            }
        }
    }

    #[test]
    fn an_answer_goes_the_other_way() {
        let flow = Flow::outward(9);
        let answer = Flow::answering(&flow.frame(Transport::Udp, [2; 6], [4; 6]));
        assert_eq!((answer.source, answer.destination), (flow.destination, flow.source));
    }
}
