//! Maps `INTERFACES` and `EGRESS`, and the links that hold the program on the devices.

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd as _};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    maps::{Array, MapData, xdp::DevMap},
    programs::{
        Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use gateway_common::interface::{
    ATTACHED, GENERIC, INSIDE, Interface, MAX_IFINDEX, MAX_INTERFACES, OUTSIDE, REDIRECT_ONLY,
};

use super::{pins::Pins, space::Space, sys};
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
}

/// An interface that carries the program.
#[derive(Clone, Debug)]
struct Attached {
    ifindex: u32,
    generic: bool,
    mode: AttachMode,
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
        Ok(Self { records, egress, attached: BTreeMap::new(), slots, slot_space })
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
    /// # Errors
    /// An interface that is not in `before` could not be attached; those that were attached with it are detached.
    /// One that is in `before` stays unattached with a warning, and does not stop a change of something else.
    pub(super) fn attach(
        &mut self,
        program: &mut Xdp,
        pins: &Pins,
        before: Option<&BTreeMap<String, model::Interface>>,
        wanted: &BTreeMap<String, model::Interface>,
        host: &Host,
    ) -> Result<()> {
        self.slot_space.begin_change();
        let mut added = Vec::new();
        for interface in wanted.values() {
            let name = &interface.name;
            let Some(link) = host.links.get(name) else {
                self.attached.remove(name);
                continue;
            };
            let known = before.is_some_and(|before| before.get(name) == Some(interface));
            let is_new = !self.attached.contains_key(name);
            let result = self.attach_one(program, pins, interface, link);
            match result {
                Ok(()) if is_new && !known => added.push(name.clone()),
                Ok(()) => {}
                Err(error) if known => {
                    self.attached.remove(name);
                    tracing::error!(interface = name, error = format!("{error:#}"), "not attached");
                }
                Err(error) => {
                    for name in added {
                        self.detach_one(pins, &name, host)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Detaches every device that is not in `wanted`, also those that a daemon before this one attached.
    pub(super) fn detach_unwanted(
        &mut self,
        pins: &Pins,
        wanted: &BTreeMap<String, model::Interface>,
        host: &Host,
    ) -> Result<()> {
        let pinned = pins.linked_devices()?;
        let unwanted = pinned.iter().chain(self.slots.keys()).filter(|name| !wanted.contains_key(*name));
        for name in unwanted.cloned().collect::<std::collections::BTreeSet<_>>() {
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
                    mode: attached.map(|attached| if attached.generic { "generic" } else { "native" }),
                }
            })
            .collect()
    }

    fn attach_one(
        &mut self,
        program: &mut Xdp,
        pins: &Pins,
        interface: &model::Interface,
        link: &Link,
    ) -> Result<()> {
        let name = &interface.name;
        if link.index >= MAX_IFINDEX {
            return Err(anyhow!(
                "interface {name} has ifindex {}; it must be below {MAX_IFINDEX}",
                link.index
            ));
        }
        let slot = if let Some(slot) = self.slots.get(name) {
            *slot
        } else {
            let slot = self.slot_space.one()?;
            self.slots.insert(name.clone(), slot);
            slot
        };
        if let Some(attached) = self.attached.get(name)
            && attached.ifindex == link.index
            && attached.mode == interface.mode
        {
            return self.write(interface, link, slot, attached.generic);
        }
        let pin = pins.link(name);
        let mut generic = None;
        if pin.exists() {
            let pinned = PinnedLink::from_pin(&pin)
                .with_context(|| format!("cannot open the pinned link {}", pin.display()))?;
            let fd: FdLink = pinned.into();
            let on_device = sys::open_pin(&pin).and_then(|fd| Ok(sys::link_ifindex(fd.as_fd())?))?;
            let record = self.records.get(&link.index, 0).context("cannot read an interface")?;
            let was_generic = record.flags & GENERIC != 0;
            let same_mode = match interface.mode {
                AttachMode::Auto => true,
                AttachMode::Native => !was_generic,
                AttachMode::Generic => was_generic,
            };
            if on_device == link.index && same_mode {
                self.write(interface, link, slot, was_generic)?;
                let link = XdpLink::try_from(fd)
                    .map_err(|_| anyhow!("the pin {} is not an XDP link", pin.display()))?;
                let id = program
                    .attach_to_link(link)
                    .with_context(|| format!("cannot replace the program on {name}"))?;
                drop(program.take_link(id)?);
                generic = Some(was_generic);
            } else {
                std::fs::remove_file(&pin)
                    .with_context(|| format!("cannot remove the pinned link {}", pin.display()))?;
                drop(fd);
            }
        }
        let generic = if let Some(generic) = generic {
            generic
        } else {
            // The program must know the interface before the first packet comes.
            self.write(interface, link, slot, false)?;
            let generic = create_link(program, pins, interface, link)?;
            self.write(interface, link, slot, generic)?;
            generic
        };
        self.attached.insert(name.clone(), Attached { ifindex: link.index, generic, mode: interface.mode });
        Ok(())
    }

    fn detach_one(&mut self, pins: &Pins, name: &str, host: &Host) -> Result<()> {
        let pin = pins.link(name);
        if pin.exists() {
            std::fs::remove_file(&pin)
                .with_context(|| format!("cannot remove the pinned link {}", pin.display()))?;
        }
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
    fn write(&mut self, interface: &model::Interface, link: &Link, slot: u32, generic: bool) -> Result<()> {
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
                | if generic { GENERIC } else { 0 }
                | if link.veth { REDIRECT_ONLY } else { 0 },
            slot,
            mac: link.mac,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            address4: v4.unwrap_or_default(),
            address6: v6.unwrap_or_default(),
        };
        self.egress.set(slot, link.index, None, 0).context("cannot write an egress device")?;
        self.records.set(link.index, record, 0).context("cannot write an interface")
    }
}

/// Puts the program on a device and pins the link. Returns whether the mode is generic.
fn create_link(program: &mut Xdp, pins: &Pins, interface: &model::Interface, link: &Link) -> Result<bool> {
    let name = &interface.name;
    let native = |program: &mut Xdp| program.attach_to_if_index(link.index, XdpMode::Driver);
    let generic = |program: &mut Xdp| program.attach_to_if_index(link.index, XdpMode::Skb);
    let (result, is_generic) = match interface.mode {
        AttachMode::Native => (native(program), false),
        AttachMode::Generic => (generic(program), true),
        AttachMode::Auto => match native(program) {
            Ok(id) => (Ok(id), false),
            Err(error) => {
                tracing::warn!(
                    interface = name,
                    error = %anyhow::Error::new(error).root_cause(),
                    "the driver takes no XDP program; attaching in generic mode, which is slower"
                );
                (generic(program), true)
            }
        },
    };
    let id = result.with_context(|| format!("cannot attach to interface {name}"))?;
    let link: FdLink = program.take_link(id)?.try_into().map_err(|_| {
        anyhow!("the kernel does not offer links for XDP on {name}; Linux 5.9 is the oldest that does")
    })?;
    let pin = pins.link(name);
    link.pin(&pin).with_context(|| format!("cannot pin the link {}", pin.display()))?;
    Ok(is_generic)
}
