//! What makes routes acceptable.
//!
//! A table may have a million of them, and most changes are about one. What is to be said of a route's target is said
//! once for all routes that lead there, and routes with selectors are looked at where something has changed.

use std::collections::BTreeSet;

use gateway_common::route::{MAX_ROUTERS, MAX_RULES, MAX_RULES_PER_PREFIX};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Subject, Violation, at, proxy, unknown, unknown_interface};
use crate::model::{
    Difference, RouteKey, Snapshot, Table, TableKind, Target,
    error::ValueError,
    prefix::{check_unicast, family, is_ipv6},
};

/// Checks what the routes of all tables share: routers, and room for selectors.
pub(super) fn shared(state: &Snapshot) -> Result<(), Violation> {
    let (mut routers, mut with_selector) = (BTreeSet::new(), 0);
    for table in state.tables.values() {
        let full = |key: RouteKey, field, message: String, hint: &str| {
            let subject = Subject::Route(table.name.clone(), key);
            Err(at(&subject)(ValueError::full(field, message).hint(hint)))
        };
        for target in table.routes.targets() {
            if let Target::Gateway { address, dev } = target
                && routers.insert((address, dev))
                && routers.len() > MAX_ROUTERS as usize
                && let Some(key) = leading_to(table, target)
            {
                let message = format!("router {address} is one more than the {MAX_ROUTERS} there can be");
                return full(key, "via", message, "use fewer routers");
            }
        }
        let room = (MAX_RULES as usize).saturating_sub(with_selector);
        with_selector += table.routes.selective();
        if let Some(key) = table.routes.selective_within(None).nth(room) {
            let message =
                format!("route {key} is one more with a selector than the {MAX_RULES} there can be");
            return full(*key, "proto", message, "use ranges of ports, or routes without selectors");
        }
    }
    Ok(())
}

/// Checks the routes of a table that was `before`, and acceptable then.
pub(super) fn routes(state: &Snapshot, table: &Table, before: Option<&Table>) -> Result<(), Violation> {
    let of = |key: &RouteKey, error| at(&Subject::Route(table.name.clone(), *key))(error);
    for target in table.routes.targets() {
        for ipv6 in [false, true] {
            if !table.routes.lead_to(target, ipv6) || one_target(state, table, any(ipv6), target).is_ok() {
                continue;
            }
            let is_it = |(key, to): &(&RouteKey, &Target)| *to == target && is_ipv6(&key.prefix) == ipv6;
            let mut routes = table.routes.iter().map(|(key, route)| (key, &route.target));
            let Some((key, _)) = routes.find(is_it) else { continue };
            one_target(state, table, key.prefix, target).map_err(|error| of(key, error))?;
        }
    }
    for ipv6 in [false, true] {
        let most = state.capacity.routes as usize;
        if table.routes.count(ipv6) > most {
            let mut of_family = table.routes.keys().filter(|key| is_ipv6(&key.prefix) == ipv6);
            let Some(key) = of_family.nth(most) else { continue };
            let message = format!("table `{}` would have more than {most} routes of a family", table.name);
            let error = ValueError::full("prefix", message);
            return Err(of(key, error.hint("raise capacity.routes in the configuration file")));
        }
    }
    let selective = table.routes.selective_within(None);
    match before.filter(|before| before.kind == table.kind) {
        None => of_selectors(table, selective.map(|key| key.prefix).collect()),
        Some(_) if table.routes.selective() == 0 => Ok(()),
        Some(before) => {
            let changed = before.routes.diff(&table.routes).map(|Difference { key, .. }| key.prefix);
            let inner = changed.flat_map(|prefix| table.routes.selective_within(Some(prefix)));
            of_selectors(table, inner.map(|key| key.prefix).collect())
        }
    }
}

/// Checks the routes with selectors to these prefixes.
fn of_selectors(table: &Table, prefixes: BTreeSet<IpNet>) -> Result<(), Violation> {
    for prefix in prefixes {
        let mut siblings: Vec<&RouteKey> = Vec::new();
        let selective =
            table.routes.of_prefix(prefix).map(|(key, _)| key).filter(|key| !key.selector.is_any());
        for key in selective {
            let check = || {
                no_selector_of_border(table, key)?;
                key.selector.check()?;
                if let Some(other) = siblings.iter().find(|other| crossing(other, key)) {
                    let message = format!("route {key} and route {other} overlap in part");
                    return Err(ValueError::invalid("dport", message)
                        .hint("choose ranges that are apart, or one within the other"));
                }
                // The same for all of the prefix: counted at the first.
                let asked = if siblings.is_empty() { asked(table, prefix) } else { 0 };
                if asked > MAX_RULES_PER_PREFIX as usize {
                    let message = format!(
                        "prefix {prefix} would have {asked} routes with selectors, those it falls back to included"
                    );
                    let hint = format!("at most {MAX_RULES_PER_PREFIX}; use ranges of ports");
                    return Err(ValueError::full("proto", message).hint(hint));
                }
                Ok(())
            };
            check().map_err(|error| at(&Subject::Route(table.name.clone(), *key))(error))?;
            siblings.push(key);
        }
    }
    Ok(())
}

/// How many routes with selectors a packet to `prefix` is compared with: its own, and as long as no route
/// takes all the rest, those of the prefixes that cover it.
fn asked(table: &Table, prefix: IpNet) -> usize {
    let mut asked = 0;
    let mut covering = Some(prefix);
    while let Some(prefix) = covering {
        let routes = table.of_prefix(prefix);
        asked += routes.iter().filter(|(key, _)| !key.selector.is_any()).count();
        if routes.iter().any(|(key, _)| key.selector.is_any()) {
            break;
        }
        covering = prefix.supernet();
    }
    asked
}

/// Whether two port ranges overlap and neither contains the other: which of them wins would be a guess.
fn crossing(a: &RouteKey, b: &RouteKey) -> bool {
    match (a.selector.dport, b.selector.dport) {
        (Some(x), Some(y)) if a.selector.proto == b.selector.proto => {
            let (x, y) = if x.low <= y.low { (x, y) } else { (y, x) };
            x.low < y.low && y.low <= x.high && x.high < y.high
        }
        _ => false,
    }
}

/// Checks the target of a route to `prefix`.
fn one_target(state: &Snapshot, table: &Table, prefix: IpNet, target: &Target) -> Result<(), ValueError> {
    if table.kind == TableKind::Border {
        of_border(table, target)?;
    }
    match target {
        Target::Direct | Target::Eip | Target::Blackhole | Target::Prohibit | Target::Host => Ok(()),
        Target::Proxy(name) => proxy::route(state, prefix, name),
        Target::Pool(name) => pool_for(state, prefix, name),
        Target::Gateway { address, dev } => {
            check_unicast("via", *address)?;
            if address.is_ipv4() != prefix.addr().is_ipv4() {
                return Err(ValueError::invalid(
                    "via",
                    format!("router {address} is {} and prefix {} is not", family(*address), prefix),
                )
                .hint("use a router of the same family"));
            }
            match dev {
                Some(dev) if !state.interfaces.contains_key(dev) => Err(unknown_interface("via", state, dev)),
                _ => Ok(()),
            }
        }
    }
}

/// The pool has to have an address for the packets of the route.
pub(super) fn pool_for(state: &Snapshot, prefix: IpNet, name: &str) -> Result<(), ValueError> {
    let Some(pool) = state.pools.get(name) else {
        return Err(unknown("via", "pool", name, "address", state.pools.keys()));
    };
    let wanted = prefix.addr();
    if pool.addresses.iter().any(|address| address.is_ipv4() == wanted.is_ipv4()) {
        return Ok(());
    }
    let family = family(wanted);
    let message = format!("pool `{name}` has no {family} address for the {family} prefix {prefix}");
    Err(ValueError::invalid("via", message)
        .hint(format!("add an {family} address to the pool, or use another target")))
}

/// What the routes of a border table can lead to.
fn of_border(table: &Table, target: &Target) -> Result<(), ValueError> {
    let name = &table.name;
    match target {
        Target::Direct | Target::Gateway { .. } | Target::Blackhole | Target::Prohibit | Target::Proxy(_) => {
            Ok(())
        }
        Target::Pool(_) | Target::Eip | Target::Host => {
            let message = format!("target `{target}` of border table `{name}` is none for replies");
            Err(ValueError::invalid("via", message)
                .hint("one of `gateway ADDR [dev IF]`, `proxy NAME`, `direct`, `blackhole`, `prohibit`"))
        }
    }
}

/// The routes of a border table look at the client's address alone.
fn no_selector_of_border(table: &Table, key: &RouteKey) -> Result<(), ValueError> {
    if table.kind != TableKind::Border {
        return Ok(());
    }
    let field = if key.selector.dport.is_some() { "dport" } else { "proto" };
    let name = &table.name;
    let message = format!("route {key} of border table `{name}` chooses by more than the client's address");
    Err(ValueError::invalid(field, message).hint("leave out `proto` and `dport`"))
}

/// A route that leads to `target`.
fn leading_to(table: &Table, target: &Target) -> Option<RouteKey> {
    table.routes.iter().find(|(_, route)| route.target == *target).map(|(key, _)| *key)
}

/// All of a family: what is asked of a target is the same for all prefixes of one.
fn any(ipv6: bool) -> IpNet {
    if ipv6 { IpNet::V6(Ipv6Net::default()) } else { IpNet::V4(Ipv4Net::default()) }
}
