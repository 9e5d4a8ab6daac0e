//! From the routes of a table to the elements of a trie.
//!
//! The kernel finds the longest prefix only. Where a prefix has routes with selectors and none without, what
//! the selectors do not match belongs to the next shorter prefix; so such a prefix carries the rules of its
//! covering prefixes behind its own. System routes are among the prefixes, see [`Connected`].

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use gateway_common::route::MAX_RULES_PER_PREFIX;
use ipnet::IpNet;

use crate::{
    dataplane::Connected,
    model::{Difference, Route, RouteKey, Selector, Table, TableKind, Target},
};

/// What the elements of a table are made of.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) table: &'a Table,
    pub(super) connected: &'a Connected,
}

impl<'a> View<'a> {
    /// A table, and the system routes that it has. A border table has none.
    pub(super) fn of(table: &'a Table, connected: &'a Connected) -> Self {
        static NONE: Connected = Connected::new();
        Self { table, connected: if table.kind == TableKind::Border { &NONE } else { connected } }
    }
}

/// What a trie element says: rules in the order in which they are asked, then the route for all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) rules: Vec<RouteKey>,
    pub(super) otherwise: Option<Otherwise>,
}

/// The route for what no rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// One of the operator's.
    Route(RouteKey),
    /// A system route.
    System(IpNet),
}

/// The element of `prefix`; `None` where there is no route to exactly that prefix.
///
/// # Errors
/// More rules than a packet may be compared with.
pub(super) fn element(view: View<'_>, prefix: IpNet) -> Result<Option<Element>> {
    let View { table, connected } = view;
    if !has_routes(table, prefix) && !is_systems(connected, prefix) {
        return Ok(None);
    }
    let mut element = Element::default();
    let mut at = Some(prefix);
    let mut in_hole = false;
    while let Some(prefix) = at {
        in_hole |= connected.holes.contains(&prefix);
        let mut rules = Vec::new();
        for key in keys(table, prefix) {
            if key.selector.is_any() {
                element.otherwise = Some(Otherwise::Route(key));
            } else {
                rules.push(key);
            }
        }
        rules.sort_by_key(|key| key.selector.precedence());
        element.rules.extend(rules);
        if element.otherwise.is_none() && !in_hole && connected.subnets.contains_key(&prefix) {
            element.otherwise = Some(Otherwise::System(prefix));
        }
        if element.otherwise.is_some() {
            break;
        }
        at = prefix.supernet();
    }
    if element.rules.len() > MAX_RULES_PER_PREFIX as usize {
        bail!(
            "{prefix} in table {} has {} routes with selectors, counting those of the prefixes that cover it; \
             at most {MAX_RULES_PER_PREFIX} are possible",
            table.name,
            element.rules.len()
        );
    }
    Ok(Some(element))
}

/// The prefixes whose elements differ between two versions of a table; `None`: more than `most`.
pub(super) fn changed_prefixes(from: View<'_>, to: View<'_>, most: usize) -> Option<BTreeSet<IpNet>> {
    let of_system = |view: View<'_>| -> BTreeSet<IpNet> { system_prefixes(view.connected).collect() };
    let mut changed = BTreeSet::new();
    if from.connected != to.connected {
        let (before, after) = (from.connected, to.connected);
        changed.extend(before.holes.symmetric_difference(&after.holes));
        changed.extend(of_system(from).symmetric_difference(&of_system(to)));
    }
    for Difference { key, before, after } in from.table.routes.diff(&to.table.routes) {
        if before.map(said) != after.map(said) {
            changed.insert(key.prefix);
        }
        if changed.len() > most {
            return None;
        }
    }
    let inheriting: Vec<IpNet> = changed.iter().flat_map(|outer| inheriting(to, *outer)).collect();
    changed.extend(inheriting);
    Some(changed).filter(|changed| changed.len() <= most)
}

/// What elements say of a route.
fn said(route: &Route) -> (&Target, bool) {
    (&route.target, route.log)
}

/// The prefixes in `outer` whose elements say in part what those say that cover them: prefixes that only have
/// selectors, and holes in system routes.
fn inheriting(View { table, connected }: View<'_>, outer: IpNet) -> impl Iterator<Item = IpNet> {
    let selective = table.routes.selective_within(Some(outer)).map(|key| key.prefix);
    let holes = connected.holes.iter().copied().filter(move |hole| outer.contains(hole));
    selective.chain(holes).filter(|prefix| {
        !table.routes.contains_key(&RouteKey { prefix: *prefix, selector: Selector::default() })
    })
}

/// The prefixes that have elements for the sake of system routes.
pub(super) fn system_prefixes(connected: &Connected) -> impl Iterator<Item = IpNet> {
    connected.subnets.keys().chain(&connected.holes).copied()
}

fn is_systems(connected: &Connected, prefix: IpNet) -> bool {
    connected.subnets.contains_key(&prefix) || connected.holes.contains(&prefix)
}

/// The keys of a table's routes to exactly `prefix`.
fn keys(table: &Table, prefix: IpNet) -> impl Iterator<Item = RouteKey> {
    table.routes.of_prefix(prefix).map(|(key, _)| *key)
}

pub(super) fn has_routes(table: &Table, prefix: IpNet) -> bool {
    keys(table, prefix).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Proto;

    fn key(prefix: &str, proto: Option<Proto>, dport: Option<&str>) -> RouteKey {
        let dport = dport.map(|ports| ports.parse().expect("ports"));
        RouteKey { prefix: prefix.parse().expect("a prefix"), selector: Selector { proto, dport } }
    }

    fn table(keys: &[RouteKey]) -> Table {
        let mut table = Table::new("main", TableKind::Egress);
        for key in keys {
            let route = Route { target: Target::Direct, log: false, comment: None };
            table.routes.insert(*key, route);
        }
        table
    }

    fn made(table: &Table, prefix: IpNet) -> Element {
        let connected = Connected::default();
        element(View { table, connected: &connected }, prefix).expect("fits").expect("exists")
    }

    fn changed(from: &Table, to: &Table) -> BTreeSet<IpNet> {
        let connected = Connected::default();
        let view = |table| View { table, connected: &connected };
        changed_prefixes(view(from), view(to), usize::MAX).expect("any number")
    }

    #[test]
    fn a_system_route_is_a_prefix_among_others() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let subnet = net("10.0.1.0/24");
        let connected =
            Connected { subnets: [(subnet, "eth1".to_owned())].into(), holes: [net("10.0.1.10/32")].into() };
        let default = key("0.0.0.0/0", None, None);
        let dns = key("10.0.1.53/32", Some(Proto::Udp), Some("53"));
        let before = table(&[default]);
        let after = table(&[default, dns]);
        let made = |table, prefix| element(View { table, connected: &connected }, prefix).expect("fits");
        let otherwise = |table, prefix| made(table, net(prefix)).expect("exists").otherwise;
        assert_eq!(otherwise(&before, "10.0.1.0/24"), Some(Otherwise::System(subnet)));
        assert_eq!(otherwise(&after, "10.0.1.53/32"), Some(Otherwise::System(subnet)));
        assert_eq!(otherwise(&before, "10.0.1.10/32"), Some(Otherwise::Route(default)));
        assert_eq!(made(&before, net("10.0.2.0/24")), None);
        let denied = key("10.0.1.0/24", None, None);
        assert_eq!(otherwise(&table(&[denied]), "10.0.1.0/24"), Some(Otherwise::Route(denied)));

        // A hole follows the routes that cover it, and everything follows a subnet that comes.
        let view = |table| View { table, connected: &connected };
        let empty = table(&[]);
        let changed = changed_prefixes(view(&empty), view(&before), 2);
        assert_eq!(changed, Some(BTreeSet::from([default.prefix, net("10.0.1.10/32")])));
        assert_eq!(changed_prefixes(view(&empty), view(&before), 1), None);
        let none = Connected::default();
        let changed = changed_prefixes(View { table: &after, connected: &none }, view(&after), 3);
        assert_eq!(changed, Some(BTreeSet::from([subnet, dns.prefix, net("10.0.1.10/32")])));
    }

    #[test]
    fn rules_are_asked_from_the_most_specific_on() {
        let any = key("192.0.2.0/24", None, None);
        let tcp = key("192.0.2.0/24", Some(Proto::Tcp), None);
        let range = key("192.0.2.0/24", Some(Proto::Tcp), Some("1-1024"));
        let https = key("192.0.2.0/24", Some(Proto::Tcp), Some("443"));
        let element = made(&table(&[any, tcp, range, https]), any.prefix);
        assert_eq!(
            element,
            Element { rules: vec![https, range, tcp], otherwise: Some(Otherwise::Route(any)) }
        );
    }

    #[test]
    fn a_prefix_with_selectors_only_falls_through_to_the_prefixes_that_cover_it() {
        let dns = key("192.0.2.53/32", Some(Proto::Udp), Some("53"));
        let tcp = key("192.0.2.0/24", Some(Proto::Tcp), None);
        let default = key("0.0.0.0/0", None, None);
        let table = table(&[dns, tcp, default]);
        let element = made(&table, dns.prefix);
        assert_eq!(element, Element { rules: vec![dns, tcp], otherwise: Some(Otherwise::Route(default)) });
    }

    #[test]
    fn a_change_of_a_covering_prefix_changes_those_that_inherit_from_it() {
        let dns = key("192.0.2.53/32", Some(Proto::Udp), Some("53"));
        let other = key("198.51.100.0/24", None, None);
        let default = key("0.0.0.0/0", None, None);
        let changed = changed(&table(&[dns, other]), &table(&[dns, other, default]));
        assert_eq!(changed, BTreeSet::from([dns.prefix, default.prefix]));
    }

    #[test]
    fn a_large_table_is_compared_prefix_by_prefix() {
        const CHANGED: u32 = 50_000;
        // Each with each would take minutes. Every second prefix is one that could inherit.
        let many = |proto| {
            let keys = (0..2 * CHANGED).map(|number| {
                let prefix = format!("{}/32", std::net::Ipv4Addr::from(0x0a00_0000 + number));
                key(&prefix, if number % 2 == 0 { proto } else { Some(Proto::Icmp) }, None)
            });
            table(&keys.collect::<Vec<_>>())
        };
        let changed = changed(&many(Some(Proto::Tcp)), &many(Some(Proto::Udp)));
        assert_eq!(changed.len(), CHANGED as usize);
    }
}
