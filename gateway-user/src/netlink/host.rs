//! Devices and addresses of the host, as the data plane wants them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Context as _;
use ipnet::IpNet;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
};

use super::socket::Sockets;
use crate::dataplane::{Host, Link};

/// What was read, and what of it the data plane does not need to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// For the data plane.
    pub(super) host: Host,
    /// Devices with a carrier, by ifindex. The kernel's choice among several next hops depends on it.
    pub(super) carriers: Vec<u32>,
}

/// Reads devices and addresses.
pub(super) async fn read(sockets: &Sockets) -> anyhow::Result<Reading> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut reading = sockets
        .dump(RouteNetlinkMessage::GetLink(request), Reading::default, |reading, message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                reading.add_link(&message);
            }
        })
        .await
        .context("cannot read the devices of the host")?;
    let addresses = sockets
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), Vec::new, |found, message| {
            if let RouteNetlinkMessage::NewAddress(message) = message {
                found.extend(address(&message));
            }
        })
        .await
        .context("cannot read the addresses of the host")?;
    let mut by_index: BTreeMap<u32, &mut Link> =
        reading.host.links.values_mut().map(|link| (link.index, link)).collect();
    for (index, address) in addresses {
        // An address of a device that appeared in between: its event asks for another reading.
        if let Some(link) = by_index.get_mut(&index) {
            link.addresses.push(address);
        }
    }
    Ok(reading)
}

impl Reading {
    fn add_link(&mut self, message: &LinkMessage) {
        let mut link = Link {
            index: message.header.index,
            mac: [0; 6],
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            veth: false,
            addresses: Vec::new(),
        };
        let mut name = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value.clone()),
                LinkAttribute::Mtu(value) => link.mtu = *value,
                LinkAttribute::LinkInfo(infos) => link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
                LinkAttribute::Address(value) => link.mac = value.as_slice().try_into().unwrap_or_default(),
                _ => {}
            }
        }
        if message.header.flags.contains(LinkFlags::LowerUp) {
            self.carriers.push(link.index);
        }
        if let Some(name) = name {
            self.host.links.insert(name, link);
        }
    }
}

/// Ifindex and address. On a point-to-point device the host's own end is `IFA_LOCAL`; IPv6 has it only there.
fn address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let mut own: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            _ => {}
        }
    }
    Some((message.header.index, IpNet::new(own?, message.header.prefix_len).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_end_of_a_point_to_point_device_is_its_address() {
        let mut message = AddressMessage::default();
        message.header.index = 7;
        message.header.prefix_len = 32;
        message.attributes = vec![
            AddressAttribute::Address(IpAddr::from([10, 0, 0, 2])),
            AddressAttribute::Local(IpAddr::from([10, 0, 0, 1])),
        ];
        assert_eq!(address(&message), Some((7, "10.0.0.1/32".parse().expect("a prefix"))));
    }

    #[test]
    fn devices_without_an_ethernet_address_have_a_zero_one() {
        let mut message = LinkMessage::default();
        message.header.index = 3;
        message.attributes =
            vec![LinkAttribute::IfName("tun0".to_owned()), LinkAttribute::Address(vec![10, 0, 0, 1])];
        let mut reading = Reading::default();
        reading.add_link(&message);
        assert_eq!(reading.host.links["tun0"].mac, [0; 6]);
    }
}
