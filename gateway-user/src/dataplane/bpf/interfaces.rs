//! Maps `INTERFACES` and `EGRESS`, and the links that hold the program on the devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    maps::{Array, MapData, xdp::DevMap},
    programs::Xdp,
};
use gateway_common::interface::{
    ATTACHED, GENERIC, INSIDE, Interface, MAX_IFINDEX, MAX_INTERFACES, OUTSIDE, PROXIES, REDIRECT_ONLY,
};

use super::{
    links::{self, Driver, Pinned},
    netdev,
    pins::Pins,
    shut::Shut,
    space::Space,
};
use crate::{
    dataplane::{AttachedInterface, Host, Link},
    model::{self, AttachMode, Role},
};

/// The interfaces of the gateway.
pub(super) struct Interfaces {
    records: Array<MapData, Interface>,
    egress: DevMap<MapData>,
    attached: BTreeMap<String, Attached>,
    slots: BTreeMap<String, u32>,
    slot_space: Space,
    shut: Shut,
    /// Interfaces that hosts of proxies are behind.
    proxied: BTreeSet<String>,
}

/// An interface that carries the program.
#[derive(Clone, Debug)]
struct Attached {
    ifindex: u32,
    driver: Driver,
    mode: AttachMode,
}

/// What all calls that attach need.
pub(super) struct Context<'a> {
    /// The program.
    pub(super) program: &'a mut Xdp,
    /// Where links are pinned.
    pub(super) pins: &'a Pins,
    /// The devices.
    pub(super) host: &'a Host,
    /// Whether the host must not forward what arrives through an interface without the program.
    pub(super) active: bool,
    /// Interfaces that hosts of proxies are behind.
    pub(super) proxied: BTreeSet<String>,
}

impl Interfaces {
    /// Takes the maps over. Slots that are in use on devices of `host` stay with them: sessions name them.
    pub(super) fn new(
        records: Array<MapData, Interface>,
        egress: DevMap<MapData>,
        host: &Host,
    ) -> Result<Self> {
        let mut slot_space = Space::new("interfaces", 0, MAX_INTERFACES);
        let mut slots = BTreeMap::new();
        for (name, link) in host.links.iter().filter(|(_, link)| link.index < MAX_IFINDEX) {
            let record = records.get(&link.index, 0).context("cannot read an interface")?;
            if record.flags & ATTACHED != 0 {
                slot_space.take(record.slot);
                slots.insert(name.clone(), record.slot);
            }
        }
        Ok(Self {
            records,
            egress,
            attached: BTreeMap::new(),
            slots,
            slot_space,
            shut: Shut::find()?,
            proxied: BTreeSet::new(),
        })
    }

    /// Slots by name.
    pub(super) fn slots(&self) -> &BTreeMap<String, u32> {
        &self.slots
    }

    /// A bit for every slot that faces the inside.
    pub(super) fn inside_slots(&self, wanted: &BTreeMap<String, model::Interface>) -> u32 {
        wanted
            .values()
            .filter(|interface| interface.role != Role::Outside)
            .filter_map(|interface| self.slots.get(&interface.name))
            .fold(0, |bits, slot| bits | 1 << slot)
    }

    /// Attaches the program to every device of `wanted` that exists and is not attached yet, with what it needs
    /// to know of the device.
    ///
    /// Mode `auto` is native, but generic where an interface of the gateway would lose what native programs
    /// redirect to it. What is attached already keeps its mode. While the gateway is active, the host forwards
    /// nothing that arrives through an interface without the program.
    ///
    /// # Errors
    /// An interface that is not in `before` could not be attached; those that were attached with it are detached.
    /// One that is in `before` stays unattached with a warning, and does not stop a change of something else.
    pub(super) fn attach(
        &mut self,
        context: &mut Context<'_>,
        before: Option<&BTreeMap<String, model::Interface>>,
        wanted: &BTreeMap<String, model::Interface>,
    ) -> Result<()> {
        self.slot_space.begin_change();
        self.proxied = std::mem::take(&mut context.proxied);
        let host = context.host;
        let auto = self.auto(wanted, host)?;
        let mut added = Vec::new();
        let mut decided = Vec::new();
        for interface in wanted.values() {
            let name = &interface.name;
            let Some(link) = host.links.get(name) else {
                self.attached.remove(name);
                self.close(name, context.active);
                continue;
            };
            let known = before.is_some_and(|before| before.get(name) == Some(interface));
            let is_new = !self.attached.contains_key(name);
            match self.attach_one(context, interface, link, auto) {
                Ok(made) => {
                    self.shut.open(name)?;
                    if is_new && !known {
                        added.push(name.clone());
                    }
                    if made == Some(Driver::Native) && interface.mode == AttachMode::Auto {
                        decided.push((interface, link));
                    }
                }
                Err(error) if known => {
                    tracing::error!(interface = name, error = format!("{error:#}"), "not attached");
                    if !self.attached.contains_key(name) {
                        self.close(name, context.active);
                    }
                }
                Err(error) => {
                    for name in added {
                        self.detach_one(context.pins, &name, host)?;
                    }
                    return Err(error);
                }
            }
        }
        // Many drivers take redirected frames only with a program of their own: it shows afterwards.
        if !decided.is_empty()
            && let Some(device) = deaf(wanted, host, Moment::Attached)?
        {
            say_generic(device);
            for (interface, link) in decided {
                if let Some(pinned) = links::open(context.pins, &interface.name)? {
                    self.change_mode(context, interface, link, &pinned, &[Driver::Generic])?;
                }
            }
        }
        Ok(())
    }

    /// Lets the host forward what it likes: the gateway is not active.
    pub(super) fn open_all(&mut self) -> Result<()> {
        self.shut.devices().clone().iter().try_for_each(|device| self.shut.open(device))
    }

    /// Detaches every device that is not in `wanted`, also those that a daemon before this one attached.
    pub(super) fn detach_unwanted(
        &mut self,
        pins: &Pins,
        wanted: &BTreeMap<String, model::Interface>,
        host: &Host,
    ) -> Result<()> {
        let pinned = pins.linked_devices()?;
        let unwanted = pinned
            .iter()
            .chain(self.slots.keys())
            .chain(self.shut.devices())
            .filter(|name| !wanted.contains_key(*name));
        for name in unwanted.cloned().collect::<BTreeSet<_>>() {
            self.detach_one(pins, &name, host)?;
        }
        Ok(())
    }

    /// The state of every device of `wanted`.
    pub(super) fn status(&self, wanted: &BTreeMap<String, model::Interface>) -> Vec<AttachedInterface> {
        wanted
            .values()
            .map(|interface| {
                let attached = self.attached.get(&interface.name);
                AttachedInterface {
                    name: interface.name.clone(),
                    index: attached.map_or(0, |attached| attached.ifindex),
                    role: interface.role,
                    mode: attached.map(|attached| attached.driver.name()),
                    takes_redirects: None,
                    shut: self.shut.devices().contains(&interface.name),
                }
            })
            .collect()
    }

    /// The ways to attach an interface of mode `auto`, in the order of preference.
    fn auto(&self, wanted: &BTreeMap<String, model::Interface>, host: &Host) -> Result<&'static [Driver]> {
        let mut undecided = wanted.values().filter(|interface| {
            interface.mode == AttachMode::Auto && !self.attached.contains_key(&interface.name)
        });
        if undecided.next().is_some()
            && let Some(device) = deaf(wanted, host, Moment::Before)?
        {
            say_generic(device);
            return Ok(&[Driver::Generic]);
        }
        Ok(&[Driver::Native, Driver::Generic])
    }

    /// Attaches one interface. Returns how, unless it was attached.
    fn attach_one(
        &mut self,
        context: &mut Context<'_>,
        interface: &model::Interface,
        link: &Link,
        auto: &[Driver],
    ) -> Result<Option<Driver>> {
        let name = &interface.name;
        if link.index >= MAX_IFINDEX {
            return Err(anyhow!(
                "interface {name} has ifindex {}; it must be below {MAX_IFINDEX}",
                link.index
            ));
        }
        if let Some(attached) = self.attached.get(name)
            && attached.ifindex == link.index
            && attached.mode == interface.mode
        {
            let driver = attached.driver;
            self.write(interface, link, driver)?;
            return Ok(None);
        }
        self.attached.remove(name);
        let ways = match interface.mode {
            AttachMode::Auto => auto,
            AttachMode::Native => &[Driver::Native],
            AttachMode::Generic => &[Driver::Generic],
        };
        match links::open(context.pins, name)? {
            Some(pinned) if pinned.ifindex == link.index => {
                let driver = self.driver(link)?;
                if interface.mode == AttachMode::Auto || ways == [driver] {
                    self.write(interface, link, driver)?;
                    links::update(context.program, pinned, name)?;
                    self.enter(interface, link, driver);
                    Ok(None)
                } else {
                    self.change_mode(context, interface, link, &pinned, ways).map(Some)
                }
            }
            // Of a device that is gone.
            Some(_) => {
                links::unpin(context.pins, name)?;
                self.make(context, interface, link, ways).map(Some)
            }
            None => self.make(context, interface, link, ways).map(Some),
        }
    }

    /// Attaches in another mode. The kernel has no way to do that without a gap, in which the host forwards
    /// nothing that arrives there while the gateway is active.
    ///
    /// # Errors
    /// No way of `ways` works. The interface is attached as before, if that works, and else stays shut.
    fn change_mode(
        &mut self,
        context: &mut Context<'_>,
        interface: &model::Interface,
        link: &Link,
        pinned: &Pinned,
        ways: &[Driver],
    ) -> Result<Driver> {
        let name = &interface.name;
        let former = self.driver(link)?;
        if context.active {
            self.shut.close(name).with_context(|| {
                format!("{name} stays in {former} mode: its mode can only be changed while the gateway is inactive")
            })?;
        }
        self.attached.remove(name);
        links::break_off(context.pins, pinned, name)?;
        let changed = self.make(context, interface, link, ways).map_err(|error| {
            let mode = match former {
                Driver::Native => AttachMode::Native,
                Driver::Generic => AttachMode::Generic,
            };
            let before = model::Interface { mode, ..interface.clone() };
            match self.make(context, &before, link, &[former]) {
                Ok(_) => error.context(format!("{name} stays attached in {former} mode")),
                Err(again) => error.context(format!(
                    "{name} is no longer attached, since it does not take the {former} mode any more ({again:#})"
                )),
            }
        });
        if self.attached.contains_key(name) {
            self.shut.open(name)?;
        }
        changed
    }

    /// Closes an interface without the program, where that is possible: nothing else is refused because of it.
    fn close(&mut self, name: &str, active: bool) {
        if active && let Err(error) = self.shut.close(name) {
            tracing::error!(
                interface = name,
                error = format!("{error:#}"),
                "the host forwards what arrives there until the program is attached"
            );
        }
    }

    /// Makes a link to a device that has none.
    fn make(
        &mut self,
        context: &mut Context<'_>,
        interface: &model::Interface,
        link: &Link,
        ways: &[Driver],
    ) -> Result<Driver> {
        // The program must know the interface before the first packet comes.
        self.write(interface, link, Driver::Native)?;
        let driver = links::make(context.program, context.pins, &interface.name, link, ways)?;
        self.write(interface, link, driver)?;
        self.enter(interface, link, driver);
        Ok(driver)
    }

    fn enter(&mut self, interface: &model::Interface, link: &Link, driver: Driver) {
        let attached = Attached { ifindex: link.index, driver, mode: interface.mode };
        self.attached.insert(interface.name.clone(), attached);
    }

    /// How the program on a device was attached, by whichever daemon.
    fn driver(&self, link: &Link) -> Result<Driver> {
        let record = self.records.get(&link.index, 0).context("cannot read an interface")?;
        Ok(if record.flags & GENERIC == 0 { Driver::Native } else { Driver::Generic })
    }

    fn detach_one(&mut self, pins: &Pins, name: &str, host: &Host) -> Result<()> {
        if let Some(pinned) = links::open(pins, name)? {
            links::break_off(pins, &pinned, name)?;
        }
        self.shut.open(name)?;
        let ifindex = host.links.get(name).map(|link| link.index);
        self.attached.remove(name);
        if let Some(ifindex) = ifindex.filter(|ifindex| *ifindex < MAX_IFINDEX) {
            self.records.set(ifindex, Interface::default(), 0).context("cannot clear an interface")?;
        }
        if let Some(slot) = self.slots.remove(name) {
            self.slot_space.give_back(slot, 1);
        }
        Ok(())
    }

    /// Writes what the program knows of an interface.
    fn write(&mut self, interface: &model::Interface, link: &Link, driver: Driver) -> Result<()> {
        let slot = self.slot(&interface.name)?;
        let role = match interface.role {
            Role::Inside => INSIDE,
            Role::Outside => OUTSIDE,
            Role::Both => INSIDE | OUTSIDE,
        };
        let v4 = link.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        });
        // An error from a link-local address does not get past the next router.
        let v6 = link.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V6(address) if !address.is_unicast_link_local() => Some(address.octets()),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        let record = Interface {
            flags: ATTACHED
                | role
                | if driver == Driver::Generic { GENERIC } else { 0 }
                | if link.veth { REDIRECT_ONLY } else { 0 }
                | if self.proxied.contains(&interface.name) { PROXIES } else { 0 },
            slot,
            mac: link.mac,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            address4: v4.unwrap_or_default(),
            address6: v6.unwrap_or_default(),
        };
        self.egress.set(slot, link.index, None, 0).context("cannot write an egress device")?;
        self.records.set(link.index, record, 0).context("cannot write an interface")
    }

    /// The slot of an interface; the lowest free one where it has none.
    fn slot(&mut self, name: &str) -> Result<u32> {
        if let Some(slot) = self.slots.get(name) {
            return Ok(*slot);
        }
        let slot = self.slot_space.one()?;
        self.slots.insert(name.to_owned(), slot);
        Ok(slot)
    }
}

/// When [`deaf`] is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Before the programs are attached: what may come with them is taken for granted.
    Before,
    /// The programs are attached.
    Attached,
}

/// A device of `wanted` that loses what native programs redirect to it; `None` also where the kernel does not
/// tell.
fn deaf<'a>(
    wanted: &BTreeMap<String, model::Interface>,
    host: &'a Host,
    moment: Moment,
) -> Result<Option<&'a str>> {
    let devices: Vec<_> = wanted
        .values()
        .filter_map(|interface| Some((interface, host.links.get_key_value(&interface.name)?)))
        .collect();
    let features = netdev::features(devices.iter().map(|(_, (_, link))| link.index))
        .context("cannot ask the kernel what the devices can do with XDP")?;
    // A single device sends back what it received, which needs no redirection but on a veth.
    let alone = devices.len() == 1;
    let deaf = devices.into_iter().find(|(interface, (_, link))| {
        let Some(features) = features.get(&link.index) else { return false };
        if features.takes_redirects() || (alone && !link.veth) {
            return false;
        }
        // The peer decides what a veth takes, and an own program what most others take.
        let may_come = features.runs_programs() && !link.veth && interface.mode != AttachMode::Generic;
        moment == Moment::Attached || !may_come
    });
    Ok(deaf.map(|(_, (name, _))| name.as_str()))
}

fn say_generic(device: &str) {
    tracing::warn!(
        interface = device,
        "takes no frames that a native XDP program redirects to it: interfaces of mode auto are attached in \
         generic mode, which is slower; on a veth, `ethtool -K PEER gro on` at the other end helps"
    );
}
