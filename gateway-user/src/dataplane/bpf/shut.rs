//! Devices whose packets the host must not forward, because the program should be on them and is not.
//!
//! A routing rule says so, in both families, and `ip rule` shows it:
//!
//! ```text
//! 1: from all iif eth1 blackhole proto 103
//! ```
//!
//! It comes after the rule that leads to the host's own addresses, so the host stays reachable. The kernel keeps
//! it when the daemon dies, and takes it for a device that is not there yet: when that appears, nothing passes
//! it before the program does. The sysctl `forwarding` would do neither, and does not stop IPv6 on one device.

use std::{collections::BTreeSet, io};

use anyhow::{Context as _, Result};
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
    sys::protocols::NETLINK_ROUTE,
};

use super::netlink;

/// Right behind the rule of the host's own addresses, which has 0.
pub(super) const PRIORITY: u32 = 1;
/// Marks the gateway's rules; no routing daemon has this number (`/etc/iproute2/rt_protos`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(103);

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The rules there are.
pub(super) struct Shut {
    devices: BTreeSet<String>,
}

impl Shut {
    /// Finds the rules that a daemon before this one left in this network namespace.
    pub(super) fn find() -> Result<Self> {
        let mut devices = BTreeSet::new();
        for family in FAMILIES {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let rules = match netlink::list(NETLINK_ROUTE, &RouteNetlinkMessage::GetRule(request)) {
                Err(error) if is_unknown_family(&error) => continue,
                rules => rules.context("cannot read the routing rules")?,
            };
            devices.extend(rules.iter().filter_map(device_of));
        }
        Ok(Self { devices })
    }

    /// The devices that are shut.
    pub(super) fn devices(&self) -> &BTreeSet<String> {
        &self.devices
    }

    /// Keeps the host from forwarding what arrives through a device, which need not exist.
    pub(super) fn close(&mut self, device: &str) -> Result<()> {
        if self.devices.contains(device) {
            return Ok(());
        }
        // Entered first: what was made has to be removed, even if the other family fails.
        self.devices.insert(device.to_owned());
        for family in FAMILIES {
            let request = RouteNetlinkMessage::NewRule(rule(family, device));
            match netlink::ask(NETLINK_ROUTE, request, NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                // What the kernel does not know it does not forward.
                Err(error) if family == AddressFamily::Inet6 && is_unknown_family(&error) => {}
                made => drop(made.with_context(|| format!("cannot make a routing rule for {device}"))?),
            }
        }
        Ok(())
    }

    /// Leaves it to the host again.
    pub(super) fn open(&mut self, device: &str) -> Result<()> {
        if !self.devices.contains(device) {
            return Ok(());
        }
        for family in FAMILIES {
            match netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRule(rule(family, device)), 0) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) || is_unknown_family(&error) => {}
                removed => {
                    drop(removed.with_context(|| format!("cannot remove the routing rule of {device}"))?);
                }
            }
        }
        self.devices.remove(device);
        Ok(())
    }
}

fn rule(family: AddressFamily, device: &str) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::Blackhole;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Iifname(device.to_owned()),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    rule
}

/// The device of a rule that is the gateway's.
fn device_of(message: &RouteNetlinkMessage) -> Option<String> {
    let RouteNetlinkMessage::NewRule(rule) = message else { return None };
    let has = |attribute: &RuleAttribute| rule.attributes.contains(attribute);
    if rule.header.action != RuleAction::Blackhole
        || !has(&RuleAttribute::Protocol(PROTOCOL))
        || !has(&RuleAttribute::Priority(PRIORITY))
    {
        return None;
    }
    rule.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Iifname(name) = attribute { Some(name.clone()) } else { None }
    })
}

/// Whether the kernel is built or was started without this family.
fn is_unknown_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}
