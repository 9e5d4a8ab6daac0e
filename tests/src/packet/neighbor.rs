//! ARP and IPv6 neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType};
use gateway_common::parse::ETHERTYPE_ARP;

use super::{BROADCAST_MAC, Mac, Packet, Transport};

/// An ARP message for Ethernet and IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Destination MAC address of the frame.
    pub to: Mac,
    /// Source MAC address of the frame.
    pub from: Mac,
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// Sender.
    pub sender: (Mac, Ipv4Addr),
    /// Target.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// A broadcast question for `wanted`.
    pub fn request(sender: (Mac, Ipv4Addr), wanted: Ipv4Addr) -> Self {
        Self { to: BROADCAST_MAC, from: sender.0, operation: 1, sender, target: ([0; 6], wanted) }
    }

    /// The answer of the owner of the wanted address, who has this MAC address.
    pub fn reply(&self, owner: Mac) -> Self {
        Self {
            to: self.sender.0,
            from: owner,
            operation: 2,
            sender: (owner, self.target.1),
            target: self.sender,
        }
    }

    /// The frame, without padding.
    pub fn frame(&self) -> Vec<u8> {
        let message = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation(self.operation),
            &self.sender.0,
            &self.sender.1.octets(),
            &self.target.0,
            &self.target.1.octets(),
        )
        .expect("addresses of equal length");
        [&self.to[..], &self.from, &ETHERTYPE_ARP.to_be_bytes(), &message.to_bytes()].concat()
    }
}

/// A neighbour solicitation for `wanted`, sent to its solicited-node group. It carries the sender's MAC
/// address, but for one from `::` (RFC 4861 4.3).
pub fn solicitation(sender: (Mac, Ipv6Addr), wanted: Ipv6Addr) -> Packet {
    let low = wanted.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(low[13]),
        u16::from_be_bytes([low[14], low[15]]),
    );
    let mut message = wanted.octets().to_vec();
    if !sender.1.is_unspecified() {
        message.extend([1, 1]);
        message.extend(sender.0);
    }
    let transport = Transport::Icmp { kind: 135, code: 0, rest: [0; 4] };
    Packet::new(IpAddr::V6(sender.1), IpAddr::V6(group), transport)
        .ttl(255)
        .payload(message)
        .macs(sender.0, [0x33, 0x33, 0xff, low[13], low[14], low[15]])
}

/// The advertisement by which the owner of `wanted` answers (RFC 4861 4.4): not a router, solicited unless
/// it goes to all nodes, and overriding what neighbours knew.
pub fn advertisement(owner: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr)) -> Packet {
    let solicited = !to.1.is_multicast();
    let flags = if solicited { 0x60 } else { 0x20 };
    let message = [&owner.1.octets()[..], &[2, 1], &owner.0].concat();
    let transport = Transport::Icmp { kind: 136, code: 0, rest: [flags, 0, 0, 0] };
    Packet::new(IpAddr::V6(owner.1), IpAddr::V6(to.1), transport)
        .ttl(255)
        .payload(message)
        .macs(owner.0, to.0)
}

/// `ff02::1`, where answers to a question from `::` go.
pub fn all_nodes() -> Ipv6Addr {
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
}

/// The MAC address of [`all_nodes`].
pub fn all_nodes_mac() -> Mac {
    [0x33, 0x33, 0, 0, 0, 1]
}
