//! Maps `PROXIES`, `PROXY_HOSTS`, `PROXY_MACS`, `TUNNELS` and `TUNNEL_HOSTS`.
//!
//! Sessions name hosts by their elements of `PROXY_HOSTS`. So a host keeps its element as long as it is in its proxy,
//! also across daemons, and finds it again when it comes back; an element is given to another host only when nothing
//! else is left, and no session goes through it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{self, Array, MapData, PerCpuArray};
use gateway_common::{
    family::{self, NextHop},
    proxy::{
        DRAINED, FAIL_CLOSED, FAIL_DIRECT, FAIL_POOL, FAIL_PROXY, IN_USE, MAX_PROXIES, NO_HOST, Proxy,
        ProxyHost, ProxyMac, RESOLVED, SLOTS, UP,
    },
    tunnel::{self, GENEVE, GENEVE_PORT, Tunnel, TunnelKey, VXLAN, VXLAN_PORT},
};

use super::{
    netlink::neighbors,
    space::Space,
    tunnels::{self, Known, Way},
};
use crate::{
    dataplane::{
        Host, Link,
        maglev::{self, Share},
    },
    model::{self, Fail, ProxyMode, Role, Snapshot},
};

/// The maps that [`Proxies`] takes over.
pub(super) struct ProxyMaps {
    pub(super) proxies: Array<MapData, Proxy>,
    pub(super) hosts: Array<MapData, ProxyHost>,
    pub(super) macs: maps::HashMap<MapData, ProxyMac, u32>,
    pub(super) flows: PerCpuArray<MapData, u64>,
    pub(super) tunnels: Array<MapData, Tunnel>,
    pub(super) tunnel_hosts: maps::HashMap<MapData, TunnelKey, u32>,
}

/// What the hosts' ways depend on.
pub(super) struct Surroundings<'a> {
    /// Devices and addresses.
    pub(super) host: &'a Host,
    /// Slots of attached interfaces by name.
    pub(super) slots: &'a BTreeMap<String, u32>,
    /// Numbers of pools by name.
    pub(super) pools: &'a BTreeMap<String, u32>,
    /// Devices of tunnels by name.
    pub(super) tunnels: &'a BTreeMap<String, Known>,
}

pub(super) struct Proxies {
    maps: ProxyMaps,
    /// Numbers of proxies by name.
    numbers: BTreeMap<String, u32>,
    proxy_space: Space,
    /// What `PROXY_HOSTS` holds. Elements that are not in use any more keep the address that they had.
    elements: Vec<ProxyHost>,
    macs: HashMap<ProxyMac, u32>,
    /// What `TUNNELS` holds.
    tunnels: Vec<Tunnel>,
    tunnel_hosts: HashMap<TunnelKey, u32>,
    /// What was last said of hosts.
    health: BTreeMap<(String, IpAddr), bool>,
    /// The slots of each proxy as they were last shared out, because that takes longer than all else that is written.
    shared: BTreeMap<u32, Shared>,
}

/// Slots, and the hosts that they are shared out to.
struct Shared {
    hosts: Vec<(u16, Share)>,
    slots: Box<[u16; SLOTS]>,
}

impl Proxies {
    /// Takes the maps over, with the numbers that they hold.
    pub(super) fn new(maps: ProxyMaps) -> Result<Self> {
        let elements: Vec<ProxyHost> =
            maps.hosts.iter().collect::<Result<_, _>>().context("cannot read the hosts of proxies")?;
        let mut proxy_space = Space::new("proxies", 0, MAX_PROXIES);
        for element in elements.iter().filter(|element| element.flags & IN_USE != 0) {
            proxy_space.take(element.proxy);
        }
        let known = maps.macs.iter().collect::<Result<_, _>>().context("cannot read map PROXY_MACS")?;
        let tunnels = maps.tunnels.iter().collect::<Result<_, _>>().context("cannot read map TUNNELS")?;
        let tunnel_hosts =
            maps.tunnel_hosts.iter().collect::<Result<_, _>>().context("cannot read map TUNNEL_HOSTS")?;
        let (numbers, health, shared) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { maps, numbers, proxy_space, elements, macs: known, tunnels, tunnel_hosts, health, shared })
    }

    /// Numbers of proxies by name.
    pub(super) fn numbers(&self) -> &BTreeMap<String, u32> {
        &self.numbers
    }

    /// The hosts of `to` by element, with the name of the proxy.
    pub(super) fn hosts(&self, to: &BTreeMap<String, model::Proxy>) -> BTreeMap<u32, (String, IpAddr)> {
        to.values()
            .flat_map(|proxy| proxy.hosts.iter().map(move |host| (&proxy.name, host.address)))
            .filter_map(|(proxy, address)| Some((self.find(address)?, (proxy.clone(), address))))
            .collect()
    }

    /// Writes the proxies of `to`. New flows use them at once; hosts that left keep their elements until
    /// [`Proxies::remove_unused`].
    ///
    /// # Errors
    /// There are too many of them, or what the kernel says.
    pub(super) fn write(&mut self, to: &Snapshot, around: &Surroundings<'_>) -> Result<()> {
        self.proxy_space.begin_change();
        for proxy in to.proxies.values() {
            let number = self.number(proxy)?;
            self.numbers.insert(proxy.name.clone(), number);
        }
        self.write_hosts(to, around)?;
        for proxy in to.proxies.values() {
            let (fail, object) = match &proxy.fail {
                Fail::Closed => (FAIL_CLOSED, 0),
                Fail::Direct => (FAIL_DIRECT, 0),
                Fail::Pool(name) => (FAIL_POOL, *around.pools.get(name).context("no such pool")?),
                Fail::Proxy(name) => (FAIL_PROXY, *self.numbers.get(name).context("no such proxy")?),
            };
            let number = self.numbers[&proxy.name];
            let record = Proxy { fail, object, in_use: 1, slots: self.slots(number, proxy) };
            self.maps.proxies.set(number, record, 0).context("cannot write a proxy")?;
        }
        Ok(())
    }

    /// Finds the ways to the hosts of `to` again, because neighbours may have changed.
    pub(super) fn refresh(&mut self, to: &Snapshot, around: &Surroundings<'_>) -> Result<()> {
        self.write_hosts(to, around)?;
        self.forget_macs(&to.proxies)
    }

    /// Removes proxies and hosts that `to` does not have. The sessions of a host that is gone go to another one.
    pub(super) fn remove_unused(&mut self, to: &BTreeMap<String, model::Proxy>) -> Result<()> {
        let kept = addresses(to);
        for number in 0..self.elements.len() {
            let element = self.elements[number];
            if element.flags & IN_USE != 0 && !kept.contains(&family::to_ip(&element.address)) {
                self.set_host(number as u32, ProxyHost { flags: 0, ..element })?;
                self.set_tunnel(number as u32, Tunnel::default())?;
            }
        }
        self.forget_tunnel_hosts(to)?;
        let gone: Vec<String> = self.numbers.keys().filter(|name| !to.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(number) = self.numbers.remove(&name) {
                self.shared.remove(&number);
                self.maps.proxies.set(number, NO_PROXY, 0).context("cannot clear a proxy")?;
                self.proxy_space.give_back(number, 1);
            }
        }
        self.health.retain(|(name, address), _| {
            to.get(name).is_some_and(|proxy| proxy.hosts.iter().any(|host| host.address == *address))
        });
        self.forget_macs(to)
    }

    /// Takes in which hosts are up. In force for the next packet: slots of hosts that stay up do not change.
    pub(super) fn health_changed(
        &mut self,
        up: &BTreeMap<(String, IpAddr), bool>,
        to: Option<&Snapshot>,
    ) -> Result<()> {
        self.health.extend(up.iter().map(|(host, up)| (host.clone(), *up)));
        let Some(to) = to else { return Ok(()) };
        for proxy in to.proxies.values() {
            let Some(number) = self.numbers.get(&proxy.name).copied() else { continue };
            let mut changed = false;
            for host in &proxy.hosts {
                let Some(element) = self.find(host.address) else { continue };
                let before = self.elements[element as usize];
                let flags = self.flags(proxy, host.address, before.flags);
                let flags = flags | before.flags & RESOLVED;
                changed |= flags != before.flags;
                self.set_host(element, ProxyHost { flags, ..before })?;
            }
            if changed {
                let record = self.maps.proxies.get(&number, 0).context("cannot read a proxy")?;
                let record = Proxy { slots: self.slots(number, proxy), ..record };
                self.maps.proxies.set(number, record, 0).context("cannot write a proxy")?;
            }
        }
        Ok(())
    }

    fn write_hosts(&mut self, to: &Snapshot, around: &Surroundings<'_>) -> Result<()> {
        if to.proxies.is_empty() {
            return Ok(());
        }
        let known = neighbors().context("cannot read the neighbours of the host")?;
        let mut seen = BTreeSet::new();
        for proxy in to.proxies.values() {
            let proxy_number = self.numbers.get(&proxy.name).copied().context("a proxy has no number")?;
            for host in &proxy.hosts {
                let address = host.address;
                ensure!(seen.insert(address), "host {address} is in two proxies");
                let number = self.find(address).map_or_else(|| self.free(), Ok)?;
                let before = self.elements[number as usize];
                let same = before.address == family::from_ip(address);
                let before = if same { before } else { ProxyHost { flags: UP, ..ProxyHost::default() } };
                let tunnel = tunnel(around, &known, proxy.mode, address, self.tunnels[number as usize]);
                let way = match &tunnel {
                    None => way(to, around, &known, address, before),
                    Some(tunnel) => way_into(tunnel, around, &known, (proxy.mode, address), (number, before)),
                };
                let value = ProxyHost {
                    address: family::from_ip(address),
                    next_hop: way.unwrap_or_default(),
                    proxy: proxy_number,
                    flags: self.flags(proxy, address, before.flags) | way.map_or(0, |_| RESOLVED),
                };
                // What goes around a frame, and whose frames they are, is known before anything is sent there.
                self.set_tunnel(number, tunnel.unwrap_or_default())?;
                if let Some(key) = key_of(proxy.mode, address) {
                    self.set_tunnel_host(key, number)?;
                } else if let Some(next_hop) = way {
                    self.set_mac(ProxyMac { mac: next_hop.destination(), slot: next_hop.slot }, number)?;
                }
                self.set_host(number, value)?;
            }
        }
        Ok(())
    }

    /// Flags of a host whose flags were `before`. What was never heard of is up.
    fn flags(&self, proxy: &model::Proxy, address: IpAddr, before: u32) -> u32 {
        // An element that was not in use says nothing.
        let inherited = before & (IN_USE | UP) != IN_USE;
        let up = self.health.get(&(proxy.name.clone(), address)).copied().unwrap_or(inherited);
        let flag = |condition, flag| if condition { flag } else { 0 };
        IN_USE | flag(up, UP) | flag(proxy.drained.contains(&address), DRAINED)
    }

    /// The slots of the proxy of this number, as the flags of its hosts say.
    fn slots(&mut self, number: u32, proxy: &model::Proxy) -> [u16; SLOTS] {
        let hosts: Vec<(u16, Share)> = proxy
            .hosts
            .iter()
            .filter_map(|host| {
                let number = self.find(host.address)?;
                let live = self.elements[number as usize].flags & (UP | DRAINED) == UP;
                Some((number as u16, Share { address: host.address, weight: host.weight, live }))
            })
            .collect();
        if let Some(shared) = self.shared.get(&number).filter(|shared| shared.hosts == hosts) {
            return *shared.slots;
        }
        let shares: Vec<Share> = hosts.iter().map(|(_, share)| *share).collect();
        let mut slots = [NO_HOST; SLOTS];
        if maglev::fill(&shares, &mut slots) {
            for slot in &mut slots {
                *slot = hosts[usize::from(*slot)].0;
            }
        }
        self.shared.insert(number, Shared { hosts, slots: Box::new(slots) });
        slots
    }

    /// The number of a proxy: the one it has, or that its hosts had under another daemon.
    fn number(&mut self, proxy: &model::Proxy) -> Result<u32> {
        if let Some(number) = self.numbers.get(&proxy.name) {
            return Ok(*number);
        }
        let taken: BTreeSet<u32> = self.numbers.values().copied().collect();
        let inherited = proxy
            .hosts
            .iter()
            .filter_map(|host| self.find(host.address))
            .map(|number| self.elements[number as usize])
            .find(|element| element.flags & IN_USE != 0 && !taken.contains(&element.proxy));
        match inherited {
            Some(element) => Ok(element.proxy),
            None => self.proxy_space.one(),
        }
    }

    /// The element that a host has or has had.
    fn find(&self, address: IpAddr) -> Option<u32> {
        let address = family::from_ip(address);
        self.elements.iter().position(|element| element.address == address).map(|number| number as u32)
    }

    /// An element for another host: one that nobody has had, or else one that no session names.
    fn free(&self) -> Result<u32> {
        let unused = |element: &ProxyHost| element.address == ProxyHost::default().address;
        if let Some(number) = self.elements.iter().position(unused) {
            return Ok(number as u32);
        }
        for (number, element) in (0..).zip(&self.elements) {
            let flows = self.maps.flows.get(&number, 0).context("cannot read map PROXY_FLOWS")?;
            if element.flags & IN_USE == 0 && flows.iter().fold(0u64, |sum, of| sum.wrapping_add(*of)) == 0 {
                return Ok(number);
            }
        }
        bail!("there is no room for another host of a proxy")
    }

    fn set_host(&mut self, number: u32, value: ProxyHost) -> Result<()> {
        if self.elements[number as usize] != value {
            self.maps.hosts.set(number, value, 0).context("cannot write a host of a proxy")?;
            self.elements[number as usize] = value;
        }
        Ok(())
    }

    fn set_tunnel(&mut self, number: u32, value: Tunnel) -> Result<()> {
        if self.tunnels[number as usize] != value {
            self.maps.tunnels.set(number, value, 0).context("cannot write the tunnel to a proxy host")?;
            self.tunnels[number as usize] = value;
        }
        Ok(())
    }

    fn set_tunnel_host(&mut self, key: TunnelKey, number: u32) -> Result<()> {
        if self.tunnel_hosts.get(&key) != Some(&number) {
            self.maps.tunnel_hosts.insert(key, number, 0).context("cannot write the end of a tunnel")?;
            self.tunnel_hosts.insert(key, number);
        }
        Ok(())
    }

    /// Removes the ends of tunnels that `to` does not have.
    fn forget_tunnel_hosts(&mut self, to: &BTreeMap<String, model::Proxy>) -> Result<()> {
        let kept: BTreeSet<_> = to
            .values()
            .flat_map(|proxy| proxy.hosts.iter().filter_map(|host| key_of(proxy.mode, host.address)))
            .map(|TunnelKey { host, identifier }| (host, identifier))
            .collect();
        let unused: Vec<TunnelKey> = self
            .tunnel_hosts
            .keys()
            .filter(|key| !kept.contains(&(key.host, key.identifier)))
            .copied()
            .collect();
        for key in unused {
            self.maps.tunnel_hosts.remove(&key).context("cannot remove the end of a tunnel")?;
            self.tunnel_hosts.remove(&key);
        }
        Ok(())
    }

    /// Frames from there come from the host `number`; of two hosts with one MAC address, from the one that is first.
    fn set_mac(&mut self, key: ProxyMac, number: u32) -> Result<()> {
        let owner = self.macs.get(&key).map(|owner| (*owner, self.elements[*owner as usize]));
        let stays = owner.is_some_and(|(owner, element)| {
            owner == number
                || element.flags & (IN_USE | RESOLVED) == IN_USE | RESOLVED
                    && element.next_hop.destination() == key.mac
                    && element.next_hop.slot == key.slot
        });
        if !stays {
            self.maps.macs.insert(key, number, 0).context("cannot write the MAC address of a proxy host")?;
            self.macs.insert(key, number);
        }
        Ok(())
    }

    /// Removes MAC addresses at which no host of `to` is.
    fn forget_macs(&mut self, to: &BTreeMap<String, model::Proxy>) -> Result<()> {
        let kept = addresses(to);
        let unused: Vec<ProxyMac> = self
            .macs
            .iter()
            .filter(|(key, number)| {
                let element = self.elements[**number as usize];
                !kept.contains(&family::to_ip(&element.address))
                    || element.next_hop.destination() != key.mac
                    || element.next_hop.slot != key.slot
            })
            .map(|(key, _)| *key)
            .collect();
        for key in unused {
            self.maps.macs.remove(&key).context("cannot remove the MAC address of a proxy host")?;
            self.macs.remove(&key);
        }
        // One that shared its MAC address with a host that is gone.
        for number in 0..self.elements.len() {
            let ProxyHost { flags, next_hop, .. } = self.elements[number];
            let on_link = tunnel::host_of(next_hop.slot.into()).is_none();
            if on_link && flags & (IN_USE | RESOLVED) == IN_USE | RESOLVED {
                self.set_mac(ProxyMac { mac: next_hop.destination(), slot: next_hop.slot }, number as u32)?;
            }
        }
        Ok(())
    }
}

const NO_PROXY: Proxy = Proxy { fail: FAIL_CLOSED, object: 0, in_use: 0, slots: [NO_HOST; SLOTS] };

/// The interfaces that hosts of proxies are behind which are in no tunnel.
pub(super) fn devices(to: &Snapshot, host: &Host) -> BTreeSet<String> {
    let on_links = to.proxies.values().filter(|proxy| proxy.mode == ProxyMode::L2);
    on_links
        .flat_map(|proxy| proxy.hosts.iter().map(|host| host.address))
        .filter_map(|address| device(to, host, address))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The interface that the host of a proxy is behind: an inside one, or what is sent to a host would have left.
fn device<'a>(to: &Snapshot, host: &'a Host, address: IpAddr) -> Option<(&'a str, &'a Link)> {
    host.link_of(address)
        .filter(|(name, _)| to.interfaces.get(*name).is_some_and(|interface| interface.role != Role::Outside))
}

/// The way to a host. A neighbour that stops answering for a moment is still where it was: whether it is up is told
/// by its checks.
fn way(
    to: &Snapshot,
    around: &Surroundings<'_>,
    known: &Neighbors,
    address: IpAddr,
    before: ProxyHost,
) -> Option<NextHop> {
    let (name, link) = device(to, around.host, address)?;
    let slot = *around.slots.get(name)? as u16;
    let former = before.next_hop;
    let former = Some(former.destination()).filter(|_| before.flags & RESOLVED != 0 && former.slot == slot);
    let mac = known.get(&(link.index, address)).copied().or(former)?;
    Some(NextHop::new(slot, u16::try_from(link.mtu).unwrap_or(u16::MAX), mac, link.mac))
}

/// What goes around frames to a host, if they go into a tunnel; without a port where there is no way. A neighbour that
/// stops answering is still where it was.
fn tunnel(
    around: &Surroundings<'_>,
    known: &Neighbors,
    mode: ProxyMode,
    address: IpAddr,
    before: Tunnel,
) -> Option<Tunnel> {
    let (kind, vni, port) = match mode {
        ProxyMode::L2 => return None,
        ProxyMode::Vxlan { vni } => (VXLAN, vni, VXLAN_PORT),
        ProxyMode::Geneve { vni } => (GENEVE, vni, GENEVE_PORT),
    };
    let find = || {
        let Way { ifindex, neighbor, source, mtu } = tunnels::way_to(address)?;
        let (name, link) = around.host.links.iter().find(|(_, link)| link.index == ifindex)?;
        let slot = *around.slots.get(name)? as u16;
        let (source, destination) = (family::from_ip(source), family::from_ip(address));
        let same = before.port != [0; 2] && before.next_hop.slot == slot && before.destination == destination;
        let former = same.then(|| before.next_hop.destination());
        let mac = known.get(&(ifindex, neighbor)).copied().or(former)?;
        let mtu = u16::try_from(mtu.unwrap_or(u32::MAX).min(link.mtu)).unwrap_or(u16::MAX);
        let next_hop = NextHop::new(slot, mtu, mac, link.mac);
        let header = tunnel::header(kind, vni);
        Some(Tunnel { source, destination, next_hop, header, port: port.to_be_bytes(), reserved: [0; 2] })
    };
    Some(find().unwrap_or_default())
}

/// The way to a host that is in a tunnel: that of the frame inside.
fn way_into(
    tunnel: &Tunnel,
    around: &Surroundings<'_>,
    known: &Neighbors,
    (mode, address): (ProxyMode, IpAddr),
    (number, before): (u32, ProxyHost),
) -> Option<NextHop> {
    if tunnel.port == [0; 2] {
        return None;
    }
    let device = around.tunnels.get(&crate::dataplane::tunnel::device_of(mode, address)?)?;
    let slot = tunnel::slot_of(number as u16);
    let former = before.next_hop;
    let former = Some(former.destination()).filter(|_| before.flags & RESOLVED != 0 && former.slot == slot);
    let mac = known.get(&(device.index, address)).copied().or(former)?;
    let mtu = tunnel.next_hop.mtu.saturating_sub(tunnel::overhead(address.is_ipv4()));
    Some(NextHop::new(slot, mtu, mac, device.mac))
}

/// Where frames of a host come from that is in a tunnel.
fn key_of(mode: ProxyMode, address: IpAddr) -> Option<TunnelKey> {
    let identifier = match mode {
        ProxyMode::L2 => return None,
        ProxyMode::Vxlan { vni } => tunnel::identifier(VXLAN, vni),
        ProxyMode::Geneve { vni } => tunnel::identifier(GENEVE, vni),
    };
    Some(TunnelKey { host: family::from_ip(address), identifier })
}

/// MAC addresses of neighbours by ifindex and address.
type Neighbors = HashMap<(u32, IpAddr), [u8; 6]>;

fn addresses(proxies: &BTreeMap<String, model::Proxy>) -> BTreeSet<IpAddr> {
    proxies.values().flat_map(|proxy| &proxy.hosts).map(|host| host.address).collect()
}
