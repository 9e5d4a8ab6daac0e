//! Frames in tunnels.

use std::net::IpAddr;

use gateway_common::{pool, tunnel};

use super::{Mac, Packet, Transport};

/// A tunnel between the gateway and a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// [`tunnel::VXLAN`] or [`tunnel::GENEVE`].
    pub kind: u32,
    /// Network identifier.
    pub vni: u32,
    /// The gateway's end: outer address, and the MAC address inside.
    pub gateway: (IpAddr, Mac),
    /// The host's end.
    pub host: (IpAddr, Mac),
}

impl Tunnel {
    /// A frame of the gateway to the host, between the MAC addresses of a link.
    pub fn to_host(&self, (source_mac, destination_mac): (Mac, Mac), inner: &Packet) -> Vec<u8> {
        let inner = inner.clone().macs(self.gateway.1, self.host.1);
        let port = tunnel::source_port(flow(&inner));
        let datagram = self.datagram(self.gateway.0, self.host.0, port, &inner.frame());
        Packet { tos: inner.tos, identification: 0, ..datagram.macs(source_mac, destination_mac) }.frame()
    }

    /// A packet of the host to the gateway, with this frame in it.
    pub fn from_host(&self, inner: &Packet) -> Packet {
        let inner = inner.clone().macs(self.host.1, self.gateway.1);
        self.from_host_frame(&inner.frame())
    }

    /// As [`Tunnel::from_host`], for any frame.
    pub fn from_host_frame(&self, inner: &[u8]) -> Packet {
        self.datagram(self.host.0, self.gateway.0, 50_000, inner)
    }

    fn datagram(&self, from: IpAddr, to: IpAddr, source: u16, inner: &[u8]) -> Packet {
        let destination = if self.kind == tunnel::VXLAN { tunnel::VXLAN_PORT } else { tunnel::GENEVE_PORT };
        let header = tunnel::header(self.kind, self.vni).map(u32::to_ne_bytes).concat();
        let transport = Transport::Udp { source, destination, checksum: false };
        Packet::new(from, to, transport).payload([&header, inner].concat())
    }
}

/// What the programs compute of addresses and ports, written in another way.
fn flow(packet: &Packet) -> u32 {
    let words = |address: IpAddr| match address {
        IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
        IpAddr::V6(address) => address
            .octets()
            .chunks(4)
            .fold(0, |sum, word| sum ^ u32::from_ne_bytes(word.try_into().expect("4 bytes"))),
    };
    let shown = packet.fragment.is_none() && packet.extensions.is_empty();
    let ports = if let Transport::Tcp { source, destination, .. } | Transport::Udp { source, destination, .. } =
        packet.transport
        && shown
    {
        let ([s0, s1], [d0, d1]) = (source.to_be_bytes(), destination.to_be_bytes());
        u32::from_ne_bytes([s0, s1, d0, d1])
    } else {
        0
    };
    pool::respread(words(packet.source) ^ words(packet.destination).rotate_left(16) ^ ports)
}
