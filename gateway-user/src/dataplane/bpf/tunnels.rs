//! The host's devices for tunnels to proxy hosts, see [`crate::dataplane::tunnel`], and what keeps them from doing more
//! than they are for.
//!
//! ```text
//! 100: gwvx7: ... vxlan id 7 dstport 4789 alias gatewayd         made with the first proxy that needs it, adopted by the
//!                                                                next daemon, removed with the last proxy
//! 1:   from all iif gwvx7 blackhole proto 104                    the host forwards nothing that comes out of it
//! 2:   from all fwmark 0x67000067 ipproto tcp lookup 103         checks of hosts go into it
//! ```
//!
//! Packets that the programs forward do not pass these devices.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink are open: the kernel adds to them with every release"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result, anyhow, bail};
use gateway_common::tunnel::{GENEVE_PORT, VXLAN_PORT, overhead};
use rtnetlink::{
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, IpProtocol, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{
            AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoGeneve,
            InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
        },
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
    sys::protocols::NETLINK_ROUTE,
};

use super::{netlink, shut};
use crate::{
    dataplane::tunnel::{self, Device, MARK},
    model::{ProxyMode, Snapshot},
};

/// What the kernel shows of devices that are the gateway's.
const ALIAS: &str = "gatewayd";
/// Marks the gateway's rules and routes for tunnels.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(104);
/// Table of the ways into tunnels; for marked packets only.
const TABLE: u32 = 103;
/// Of the rule that leads to it.
const PRIORITY: u32 = shut::PRIORITY + 1;
/// MTU of an Ethernet link: what goes through the devices need not be large.
const MTU: u16 = 1_500;
/// What hosts of tunnels may use as their router for IPv6.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Of a device that has no IPv4 address of its own (RFC 7600 4.8), which to the kernel fails any reverse path check. Never a
/// source.
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// A device of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Ifindex.
    pub(super) index: u32,
    /// MAC address.
    pub(super) mac: [u8; 6],
}

/// The way of outer packets, as the host's routes have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Device.
    pub(super) ifindex: u32,
    /// Router, or the host itself.
    pub(super) neighbor: IpAddr,
    /// The gateway's own address.
    pub(super) source: IpAddr,
    /// MTU of the way, where it is less than that of the device.
    pub(super) mtu: Option<u32>,
}

/// The devices that there are.
#[derive(Default)]
pub(super) struct Tunnels {
    devices: BTreeMap<String, Known>,
    /// Whether `devices` are those of the kernel.
    read: bool,
}

impl Tunnels {
    /// The devices by name.
    pub(super) fn devices(&self) -> &BTreeMap<String, Known> {
        &self.devices
    }

    /// Makes the devices that `to` needs, and takes over those that are there.
    ///
    /// # Errors
    /// A name or a network identifier is somebody else's, or the kernel has no such devices.
    pub(super) fn write(&mut self, to: &Snapshot) -> Result<()> {
        let wanted = tunnel::devices(to);
        if wanted.is_empty() && self.read {
            return Ok(());
        }
        let mut found = links()?;
        self.devices = found
            .iter()
            .filter(|(_, link)| link.own)
            .map(|(name, link)| (name.clone(), link.known))
            .collect();
        self.read = true;
        for (name, device) in &wanted {
            if let Some(link) = found.get(name) {
                if !link.own {
                    bail!(
                        "the tunnel of a proxy needs the name {name}, and another device of the host has it: rename that one"
                    );
                }
                if !link.is_for(device) {
                    self.remove(name)?;
                    found.remove(name);
                }
            }
            if !found.contains_key(name) {
                // Nothing that comes out of it is forwarded, from the first packet on.
                change_rules(RouteNetlinkMessage::NewRule, &shut_rule(name))?;
                make(name, device).map_err(|error| refused(name, device, &error))?;
                let link = links()?.remove(name).with_context(|| format!("device {name} is gone"))?;
                self.devices.insert(name.clone(), link.known);
            }
            let known = self.devices[name];
            change_rules(RouteNetlinkMessage::NewRule, &shut_rule(name))?;
            connect(known.index, device)
                .with_context(|| format!("cannot lead device {name} to its hosts"))?;
        }
        if !wanted.is_empty() {
            for protocol in [false, true] {
                change_rules(RouteNetlinkMessage::NewRule, &mark_rule(protocol))?;
            }
        }
        Ok(())
    }

    /// Removes what `to` does not need.
    pub(super) fn remove_unused(&mut self, to: &Snapshot) -> Result<()> {
        let wanted = tunnel::devices(to);
        let unused: Vec<String> =
            self.devices.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in &unused {
            self.remove(name)?;
        }
        if wanted.is_empty() && !unused.is_empty() {
            for protocol in [false, true] {
                change_rules(RouteNetlinkMessage::DelRule, &mark_rule(protocol))?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        if let Some(known) = self.devices.get(name) {
            let mut link = LinkMessage::default();
            link.header.index = known.index;
            match netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::DelLink(link), 0) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                removed => drop(removed.with_context(|| format!("cannot remove device {name}"))?),
            }
            self.devices.remove(name);
        }
        change_rules(RouteNetlinkMessage::DelRule, &shut_rule(name))
    }
}

/// The way of packets to `host` past any tunnel; `None`: there is none.
pub(super) fn way_to(host: IpAddr) -> Option<Way> {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = family_of(host);
    request.attributes.push(RouteAttribute::Destination(host.into()));
    let answers = netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(request), 0).ok()?;
    let [RouteNetlinkMessage::NewRoute(route), ..] = answers.as_slice() else { return None };
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ifindex, mut neighbor, mut source, mut mtu) = (None, host, None, None);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => neighbor = ip(address)?,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics
                    .iter()
                    .find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    Some(Way { ifindex: ifindex?, neighbor, source: source?, mtu })
}

struct Link {
    known: Known,
    own: bool,
    /// Kind and network identifier.
    mode: Option<ProxyMode>,
}

impl Link {
    fn is_for(&self, device: &Device) -> bool {
        self.mode == Some(device.mode)
    }
}

fn links() -> Result<BTreeMap<String, Link>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = netlink::list(NETLINK_ROUTE, &request).context("cannot read the devices of the host")?;
    let links = answers.iter().filter_map(|answer| {
        if let RouteNetlinkMessage::NewLink(message) = answer { link(message) } else { None }
    });
    Ok(links.collect())
}

fn link(message: &LinkMessage) -> Option<(String, Link)> {
    let (mut name, mut own, mut mac, mut mode) = (None, false, [0; 6], None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::IfAlias(alias) => own = alias == ALIAS,
            LinkAttribute::Address(value) => mac = value.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => mode = infos.iter().find_map(mode_of),
            _ => {}
        }
    }
    Some((name?, Link { known: Known { index: message.header.index, mac }, own, mode }))
}

fn mode_of(info: &LinkInfo) -> Option<ProxyMode> {
    let LinkInfo::Data(data) = info else { return None };
    match data {
        InfoData::Vxlan(infos) => infos.iter().find_map(|info| {
            if let InfoVxlan::Id(vni) = info { Some(ProxyMode::Vxlan { vni: *vni }) } else { None }
        }),
        InfoData::Geneve(infos) => infos.iter().find_map(|info| {
            if let InfoGeneve::Id(vni) = info { Some(ProxyMode::Geneve { vni: *vni }) } else { None }
        }),
        _ => None,
    }
}

fn make(name: &str, device: &Device) -> io::Result<()> {
    let host = device.hosts.first().copied().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let (kind, data) = match device.mode {
        ProxyMode::L2 => return Err(io::ErrorKind::InvalidInput.into()),
        ProxyMode::Vxlan { vni } => {
            let mut infos = vec![InfoVxlan::Id(vni), InfoVxlan::Port(VXLAN_PORT), InfoVxlan::Learning(true)];
            if host.is_ipv6() {
                // Of this family, and to nobody yet.
                infos.extend([InfoVxlan::Group6(Ipv6Addr::UNSPECIFIED), InfoVxlan::UDPZeroCsumRX(true)]);
            }
            (InfoKind::Vxlan, InfoData::Vxlan(infos))
        }
        ProxyMode::Geneve { vni } => {
            let remote = match host {
                IpAddr::V4(host) => InfoGeneve::Remote(host),
                IpAddr::V6(host) => InfoGeneve::Remote6(host),
            };
            let infos = vec![InfoGeneve::Id(vni), remote, InfoGeneve::Port(GENEVE_PORT)];
            (InfoKind::Geneve, InfoData::Geneve(infos))
        }
    };
    let mtu = u32::from(MTU - overhead(host.is_ipv4()));
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)?;
    let index = links().map_err(io::Error::other)?.get(name).map_or(0, |link| link.known.index);
    // A device that nobody knows to be the gateway's would be in the way of the next attempt.
    finish(index).inspect_err(|_| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let _gone = netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::DelLink(link), 0);
    })
}

/// Says whose the device is, and switches it on.
fn finish(index: u32) -> io::Result<()> {
    // A host is not reached through the device that its packets come from: at most loose reverse path checks. The larger
    // of this and `all` counts.
    let mut loose = InetDevConf::default();
    loose.rp_filter = 2;
    let loose = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(loose)]);
    change(index, vec![LinkAttribute::IfAlias(ALIAS.to_owned()), LinkAttribute::AfSpecUnspec(vec![loose])])?;
    let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    or_without_ipv6(change(index, vec![LinkAttribute::AfSpecUnspec(vec![none])]))?;
    add_address(index, IpAddr::V4(DUMMY), 32, AddressScope::Host)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::SetLink(link), 0)?;
    or_without_ipv6(add_address(index, IpAddr::V6(LINK_LOCAL), 64, AddressScope::Link))
}

fn change(index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::SetLink(link), 0).map(drop)
}

fn add_address(index: u32, own: IpAddr, length: u8, scope: AddressScope) -> io::Result<()> {
    let mut address = AddressMessage::default();
    address.header.family = family_of(own).0;
    address.header.prefix_len = length;
    address.header.index = index;
    address.header.scope = scope;
    // All ends of tunnels have it.
    address.header.flags = AddressHeaderFlags::Nodad;
    address.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(own)];
    netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE)
        .map(drop)
}

/// The kernel is built or was started without IPv6, or it is switched off.
fn or_without_ipv6(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_unknown_family(&error) || error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        result => result,
    }
}

fn refused(name: &str, device: &Device, error: &io::Error) -> anyhow::Error {
    let mode = device.mode;
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => anyhow!(
            "the kernel of this host has no {} devices: load the module, or use another mode",
            mode.name()
        ),
        Some(libc::EEXIST | libc::EADDRINUSE) => {
            anyhow!(
                "another device of the host uses {mode} already, or its port: see `ip -d link show type {}`",
                mode.name()
            )
        }
        _ => anyhow!("cannot make device {name} for {mode}: {error}"),
    }
}

/// Leads a device to its hosts, and to no others.
fn connect(index: u32, device: &Device) -> Result<()> {
    let hosts: BTreeSet<IpAddr> = device.hosts.iter().copied().collect();
    if matches!(device.mode, ProxyMode::Vxlan { .. }) {
        let known = destinations(index).context("cannot read where it leads to")?;
        for host in &known - &hosts {
            netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::DelNeighbour(destination(index, host)), 0)?;
            match netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRoute(route(index, host)), 0) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                removed => drop(removed?),
            }
        }
        for host in &hosts - &known {
            let request = RouteNetlinkMessage::NewNeighbour(destination(index, host));
            netlink::ask(NETLINK_ROUTE, request, NLM_F_CREATE | NLM_F_APPEND)?;
        }
    }
    for host in hosts {
        let request = RouteNetlinkMessage::NewRoute(route(index, host));
        netlink::ask(NETLINK_ROUTE, request, NLM_F_CREATE | NLM_F_REPLACE)?;
    }
    Ok(())
}

/// A host that frames go to whose receiver is not known.
fn destination(index: u32, host: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    let address = match host {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(vec![0; 6]), NeighbourAttribute::Destination(address)];
    message
}

fn destinations(index: u32) -> io::Result<BTreeSet<IpAddr>> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    let answers = netlink::list(NETLINK_ROUTE, &RouteNetlinkMessage::GetNeighbour(request))?;
    let hosts = answers.iter().filter_map(|answer| {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else { return None };
        let everybody = NeighbourAttribute::LinkLayerAddress(vec![0; 6]);
        if message.header.ifindex != index || !message.attributes.contains(&everybody) {
            return None;
        }
        message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
            // Of a bridge device, the kernel's tables do not say what kind of address it is.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => of_bytes(bytes),
            _ => None,
        })
    });
    Ok(hosts.collect())
}

fn of_bytes(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The way of marked packets to a host.
fn route(index: u32, host: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = family_of(host);
    message.header.protocol = PROTOCOL;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if host.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.table = TABLE as u8;
    message.attributes = vec![RouteAttribute::Destination(host.into()), RouteAttribute::Oif(index)];
    message
}

fn family_of(host: IpAddr) -> (AddressFamily, u8) {
    if host.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) }
}

/// A rule in both families: what it selects, and what becomes of it.
struct Rule {
    action: RuleAction,
    of: Box<dyn Fn(AddressFamily) -> Vec<RuleAttribute>>,
}

/// Nothing that comes out of the device is forwarded.
fn shut_rule(device: &str) -> Rule {
    let device = device.to_owned();
    let of = move |_| vec![RuleAttribute::Priority(shut::PRIORITY), RuleAttribute::Iifname(device.clone())];
    Rule { action: RuleAction::Blackhole, of: Box::new(of) }
}

/// Checks take the ways into tunnels. What the tunnels' devices make of them is UDP with the same mark, and must not.
fn mark_rule(icmp: bool) -> Rule {
    let of = move |family| {
        let protocol = match (icmp, family) {
            (false, _) => IpProtocol::Tcp,
            (true, AddressFamily::Inet) => IpProtocol::Icmp,
            (true, _) => IpProtocol::Other(58),
        };
        vec![
            RuleAttribute::Priority(PRIORITY),
            RuleAttribute::FwMark(MARK),
            RuleAttribute::FwMask(u32::MAX),
            RuleAttribute::IpProtocol(protocol),
            RuleAttribute::Table(TABLE),
        ]
    };
    Rule { action: RuleAction::ToTable, of: Box::new(of) }
}

/// Adds or removes a rule; what is so already is fine.
fn change_rules(request: fn(RuleMessage) -> RouteNetlinkMessage, rule: &Rule) -> Result<()> {
    for family in FAMILIES {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = rule.action;
        message.attributes = (rule.of)(family);
        message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
        let request = request(message);
        let flags =
            if matches!(request, RouteNetlinkMessage::NewRule(_)) { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
        match netlink::ask(NETLINK_ROUTE, request, flags) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => {}
            Err(error) if family == AddressFamily::Inet6 && is_unknown_family(&error) => {}
            done => drop(done.context("cannot change the routing rules of tunnels")?),
        }
    }
    Ok(())
}

/// Whether the kernel is built or was started without this family.
fn is_unknown_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}
