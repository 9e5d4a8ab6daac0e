//! The gateway's answers to ARP and neighbour solicitations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::{Ip, Kind};
use crate::{
    network::Device,
    packet::{Arp, Mac, advertisement, all_nodes, all_nodes_mac},
};

/// Ethernet and IPv4, with addresses of 6 and 4 bytes; a request (RFC 826).
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const SOLICITATION: u8 = 135;

/// What becomes of a neighbour solicitation.
pub(super) enum Discovery {
    /// It is none.
    No,
    /// It is one, and not for the gateway.
    Foreign,
    /// It is answered with this frame.
    Answer(Vec<u8>),
}

/// The answer to an ARP message at `network`, if there is one.
pub(super) fn arp(
    frame: &[u8],
    network: usize,
    device: &Device,
    answers_for: impl Fn(IpAddr) -> bool,
) -> Option<Vec<u8>> {
    let message = frame.get(network..network + 28)?;
    let address = |at: usize| Ipv4Addr::new(message[at], message[at + 1], message[at + 2], message[at + 3]);
    let wanted = address(24);
    if message[..8] != REQUEST || !answers_for(wanted.into()) {
        return None;
    }
    let sender: Mac = message[8..14].try_into().expect("6 bytes");
    let answer = Arp::request((sender, address(14)), wanted).reply(device.mac());
    // What is behind the message (padding) is sent back as it is.
    Some([answer.frame(), frame[network + 28..].to_vec()].concat())
}

/// What becomes of `ip` if it is a neighbour solicitation.
pub(super) fn discovery(
    frame: &[u8],
    ip: &Ip,
    device: &Device,
    answers_for: impl Fn(IpAddr) -> bool,
) -> Discovery {
    let IpAddr::V6(source) = ip.source else { return Discovery::No };
    if ip.kind != (Kind::OtherIcmp { kind: SOLICITATION }) {
        return Discovery::No;
    }
    let wanted = frame.get(ip.transport + 8..ip.transport + 24);
    let wanted = wanted.map(|octets| Ipv6Addr::from(<[u8; 16]>::try_from(octets).expect("16 bytes")));
    // From this link, and not behind extension headers (RFC 4861 7.1.1, RFC 6980).
    let near = ip.ttl == 255 && ip.transport == ip.network + 40;
    let Some(wanted) = wanted.filter(|wanted| near && answers_for((*wanted).into())) else {
        return Discovery::Foreign;
    };
    let sender: Mac = frame[6..12].try_into().expect("6 bytes");
    let to = if source.is_unspecified() { (all_nodes_mac(), all_nodes()) } else { (sender, source) };
    Discovery::Answer(advertisement((device.mac(), wanted), to).frame())
}
