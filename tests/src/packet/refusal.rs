//! What the sender of a refused packet is told.

use std::net::IpAddr;

use gateway_common::DropReason;

use super::{ACK, FIN, Mac, Packet, RST, SYN, Transport};

/// Precedence "internetwork control" (RFC 1812 4.3.2.5).
const CONTROL: u8 = 0xc0;
/// Bytes behind the IP header that an error quotes.
const QUOTED: usize = 8;

/// The ICMP error about the packet at `network` in `frame`, for this reason, sent by the device with these
/// addresses back to where the frame came from. `mtu` is told of packets that are too large.
///
/// # Panics
/// If there is no error for the reason, or the frame has no such packet.
pub fn icmp_error(
    frame: &[u8],
    network: usize,
    device: (Mac, IpAddr),
    reason: DropReason,
    mtu: u16,
) -> Packet {
    let (source, header) = sender(frame, network);
    let (kind, code) = match (reason, source) {
        (DropReason::TtlExceeded, IpAddr::V4(_)) => (11, 0),
        (DropReason::MtuExceeded, IpAddr::V4(_)) => (3, 4),
        (reason, IpAddr::V4(_)) if is_prohibited(reason) => (3, 13),
        (DropReason::TtlExceeded, IpAddr::V6(_)) => (3, 0),
        (DropReason::MtuExceeded, IpAddr::V6(_)) => (2, 0),
        (reason, IpAddr::V6(_)) if is_prohibited(reason) => (1, 1),
        (reason, _) => panic!("nobody is told of {}", reason.name()),
    };
    let [high, low] = if reason == DropReason::MtuExceeded { mtu.to_be_bytes() } else { [0, 0] };
    let transport = Transport::Icmp { kind, code, rest: [0, 0, high, low] };
    let quoted = &frame[network..network + header + QUOTED];
    let error = Packet::new(device.1, source, transport).payload(quoted);
    back(error, frame, device.0)
}

/// Whether the sender is told that the packet was prohibited.
fn is_prohibited(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::Prohibited
            | DropReason::PoolExhausted
            | DropReason::SessionTableFull
            | DropReason::DestinationRate
            | DropReason::DestinationConcurrent
            | DropReason::SourceRate
            | DropReason::SourceConcurrent
    )
}

/// The reset that answers the TCP segment at `transport` in `frame` (RFC 9293 3.10.7.1), in the name of the
/// server.
///
/// # Panics
/// If the frame has no such segment.
pub fn reset(frame: &[u8], network: usize, device: Mac) -> Packet {
    let (client, header) = sender(frame, network);
    let (server, end) = match client {
        IpAddr::V4(_) => (address::<4>(frame, network + 16).into(), number(frame, network + 2, 2) as usize),
        IpAddr::V6(_) => {
            (address::<16>(frame, network + 24).into(), 40 + number(frame, network + 4, 2) as usize)
        }
    };
    let tcp = network + header;
    let flags = frame[tcp + 13];
    let data = (end - header).wrapping_sub(usize::from(frame[tcp + 12] >> 4) * 4) as u32;
    let taken = data.wrapping_add(u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0));
    let (flags, sequence, acknowledgement) = if flags & ACK == 0 {
        (RST | ACK, 0, number(frame, tcp + 4, 4).wrapping_add(taken))
    } else {
        (RST, number(frame, tcp + 8, 4), 0)
    };
    let transport = Transport::Tcp {
        source: number(frame, tcp + 2, 2) as u16,
        destination: number(frame, tcp, 2) as u16,
        flags,
        sequence,
        acknowledgement,
        window: 0,
    };
    let reset = Packet::new(server, client, transport).payload([]);
    back(reset, frame, device)
}

/// What the gateway sends itself, on its way back to the sender of `frame`.
fn back(packet: Packet, frame: &[u8], device: Mac) -> Packet {
    let tos = if packet.source.is_ipv4() { CONTROL } else { 0 };
    let sender = frame[6..12].try_into().expect("6 bytes");
    Packet { tos, identification: 0, ..packet }.macs(device, sender)
}

/// The source address of an IP packet, and the length of its header without options.
fn sender(frame: &[u8], network: usize) -> (IpAddr, usize) {
    if frame[network] >> 4 == 4 {
        (address::<4>(frame, network + 12).into(), 20)
    } else {
        (address::<16>(frame, network + 8).into(), 40)
    }
}

fn address<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    frame[at..at + N].try_into().expect("the length is given")
}

fn number(frame: &[u8], at: usize, length: usize) -> u32 {
    frame[at..at + length].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}
