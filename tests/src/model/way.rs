//! Where packets go next, and whether they come from where they say.

use std::net::IpAddr;

use gateway_common::DropReason;
use gateway_user::model::Role;

use super::{
    Arrival, Model, Step,
    nat::{NextHop, Side},
    wire::Ip,
};
use crate::network::{Device, Way};

impl Model {
    /// The way back to the source of a packet from inside, which must lead through where it came from. On a
    /// one-armed interface it must end on the link: which of the routers there is an inside one nobody says.
    pub(super) fn reverse_path(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<NextHop> {
        let ingress = &arrival.ingress;
        let one_armed = ingress.role == Some(Role::Both);
        let way = self.network.way(ip.source).filter(|way| way.device.name == ingress.name);
        let way = way.filter(|way| !one_armed || way.neighbor == ip.source);
        let Some(Way { neighbor, mac, .. }) = way else { return Err(DropReason::SpoofedSource.into()) };
        let sender = arrival.sender();
        if mac.is_none() {
            self.learned.insert(neighbor, (ingress.name.to_owned(), sender));
        }
        let (device, mtu, learned) = (ingress.name.to_owned(), ingress.mtu, mac.is_none());
        Ok(NextHop { device, mtu, mac: mac.unwrap_or(sender), learned })
    }

    /// A packet from outside must not have a source of the inside, or one that nobody has.
    pub(super) fn loose_reverse_path(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<()> {
        let outside = |device: &Device| device.role.is_some() && !faces(device, Side::Inside);
        let way = self.network.way(ip.source).filter(|way| outside(way.device));
        let Some(way) = way else { return Err(DropReason::SpoofedSource.into()) };
        if way.mac.is_none() && way.device.name == arrival.ingress.name {
            self.learned.insert(way.neighbor, (way.device.name.to_owned(), arrival.sender()));
        }
        Ok(())
    }

    pub(super) fn towards(&self, to: IpAddr) -> Step<NextHop> {
        let way = self.network.way(to).filter(|way| way.device.role.is_some());
        self.resolved(way.ok_or(DropReason::NoRoute)?)
    }

    /// The way to the router of a route: on its own link, through `device` if that is given.
    pub(super) fn router(&self, address: IpAddr, device: Option<&str>) -> Step<NextHop> {
        let way = match device {
            None => self.network.way(address),
            Some(device) => {
                let linked = self.network.find(device).addresses.iter().any(|own| own.contains(&address));
                linked.then(|| self.network.hop(device, address))
            }
        };
        let way = way.filter(|way| way.neighbor == address && way.device.role.is_some());
        self.resolved(way.ok_or(DropReason::NoRoute)?)
    }

    /// The MAC address of a next hop: the host knows it, or has not learned it yet and the gateway has.
    pub(super) fn resolved(&self, way: Way<'_>) -> Step<NextHop> {
        let name = way.device.name;
        let learned = self.learned.get(&way.neighbor).filter(|(device, _)| device == name);
        let mac = way.mac.or(learned.map(|(_, mac)| *mac)).ok_or(DropReason::NeighborUnresolved)?;
        Ok(NextHop { device: name.to_owned(), mtu: way.device.mtu, mac, learned: way.mac.is_none() })
    }
}

/// Whether an interface faces this side.
pub(super) fn faces(device: &Device, side: Side) -> bool {
    match device.role {
        None => false,
        Some(Role::Both) => true,
        Some(Role::Inside) => side == Side::Inside,
        Some(Role::Outside) => side == Side::Outside,
    }
}
