//! Rows of `route show` and `route get`: which route decides, and why the others do not.

use std::{collections::BTreeMap, net::IpAddr};

use gateway_common::counter::Counter;
use ipnet::IpNet;

use super::{
    ApiError, ErrorKind,
    request::{Lookup, Which},
    rows::{binding_row, find_table},
    types::{RouteMatch, RouteRow},
};
use crate::{
    dataplane::Connected,
    model::{MAIN_TABLE, Route, RouteKey, Selector, Snapshot, Table, TableKind, Target},
};

/// Packets of routes, see [`crate::dataplane::Observe::routes`].
pub(super) type RouteCounters = BTreeMap<(String, RouteKey), Counter>;

/// Routes of one table or of all, in the order of table, prefix and precedence.
pub(super) fn list(
    state: &Snapshot,
    connected: &Connected,
    table: Option<&str>,
    which: &Which,
    counters: Option<&RouteCounters>,
) -> Result<Vec<RouteRow>, ApiError> {
    let tables: Vec<&Table> = match table {
        None => state.tables.values().map(|table| &**table).collect(),
        Some(name) => vec![find_table(state, name)?],
    };
    let mut rows = Vec::new();
    for table in tables {
        let sight = Sight { table, connected, counters };
        match which {
            Which::Of(prefix) => rows.extend(sight.rows(table.routes.of_prefix(*prefix), |of| of == *prefix)),
            Which::Covering(address) => rows.extend(reasons(sight.covering(*address))),
            Which::All => rows.extend(sight.rows(table.routes.iter(), |_| true)),
            Which::Within(outer) => {
                rows.extend(sight.rows(table.routes.within(*outer), |prefix| outer.contains(&prefix)));
            }
        }
    }
    Ok(rows)
}

/// The route that decides, and the others that cover the address.
pub(super) fn decide(
    state: &Snapshot,
    connected: &Connected,
    lookup: &Lookup,
) -> Result<RouteMatch, ApiError> {
    let bound = lookup.from.and_then(|from| state.table_of(from, None));
    let table = match bound {
        Some((table, _)) => table,
        None => find_table(state, MAIN_TABLE)?,
    };
    let mut others = Sight { table, connected, counters: None }.covering(lookup.address);
    let winner = others.iter().position(|row| selector(row).matches(lookup.proto, lookup.dport));
    let Some(winner) = winner else {
        let message = format!("table `{}` has no route to {}", table.name, lookup.address);
        let hint = if state.active {
            "such packets are dropped (no_route)"
        } else {
            "once active, such packets are dropped (no_route)"
        };
        return Err(ApiError::new("route", ErrorKind::NotFound, message).hint(hint));
    };
    let mut route = others.remove(winner);
    route.why = Some("decides".to_owned());
    for (at, other) in others.iter_mut().enumerate() {
        let why = if at < winner {
            format!("is only for {}", words(selector(other)))
        } else if other.prefix == route.prefix {
            "is less specific".to_owned()
        } else {
            "has a shorter prefix".to_owned()
        };
        other.why = Some(why);
    }
    Ok(RouteMatch { route, binding: bound.map(|(_, binding)| binding_row(binding)), others })
}

/// Why a route cannot be removed that the operator has not made; `None`: it is not there for another reason.
pub(super) fn system_route(connected: &Connected, key: &RouteKey) -> Option<ApiError> {
    let interface = connected.subnets.get(&key.prefix).filter(|_| key.selector.is_any())?;
    let message =
        format!("route {key} is a system route: it is there while {interface} has an address in that subnet");
    let hint = format!("to keep others out of the subnet: route add {key} via prohibit");
    Some(ApiError::new("route", ErrorKind::NotPermitted, message).hint(hint).field("prefix"))
}

/// A table as packets meet it, with system routes.
struct Sight<'a> {
    table: &'a Table,
    connected: &'a Connected,
    counters: Option<&'a RouteCounters>,
}

impl Sight<'_> {
    /// Rows of `routes`, with the system routes whose prefix `wanted` takes: by prefix, and within a prefix the one
    /// that is asked first.
    fn rows<'a>(
        &self,
        routes: impl Iterator<Item = (&'a RouteKey, &'a Route)>,
        wanted: impl Fn(IpNet) -> bool,
    ) -> Vec<RouteRow> {
        let mut routes: Vec<_> = routes.collect();
        // Stable, and nearly sorted already.
        routes.sort_by_cached_key(|(key, _)| (key.prefix, key.selector.precedence()));
        let mut rows: Vec<_> = routes.into_iter().map(|(key, route)| self.row(key, route)).collect();
        for subnet in self.connected.subnets.keys().filter(|subnet| wanted(**subnet)) {
            if let Some(row) = self.system_row(*subnet) {
                let at = rows.partition_point(|row| row.prefix <= *subnet);
                rows.insert(at, row);
            }
        }
        rows
    }

    /// Routes that cover `address`, in the order in which they are asked.
    fn covering(&self, address: IpAddr) -> Vec<RouteRow> {
        let mut rows: Vec<_> =
            self.table.covering(address).map(|(key, route)| self.row(key, route)).collect();
        let system = self.connected.covering(address).and_then(|subnet| self.system_row(subnet));
        if let Some(row) = system {
            let at = rows.partition_point(|other| other.prefix.prefix_len() >= row.prefix.prefix_len());
            rows.insert(at, row);
        }
        rows
    }

    /// The system route to `subnet`, unless the operator has one in its place.
    fn system_row(&self, subnet: IpNet) -> Option<RouteRow> {
        let key = RouteKey { prefix: subnet, selector: Selector::default() };
        if self.table.kind == TableKind::Border || self.table.routes.contains_key(&key) {
            return None;
        }
        let route = Route { target: Target::Direct, log: false, comment: None };
        Some(RouteRow { system: true, ..self.row(&key, &route) })
    }

    fn row(&self, key: &RouteKey, route: &Route) -> RouteRow {
        let counter = self.counters.and_then(|counters| counters.get(&(self.table.name.clone(), *key)));
        RouteRow {
            table: self.table.name.clone(),
            prefix: key.prefix,
            proto: key.selector.proto,
            dport: key.selector.dport,
            via: route.target.to_string(),
            log: route.log,
            comment: route.comment.clone(),
            packets: counter.map(|counter| counter.packets),
            bytes: counter.map(|counter| counter.bytes),
            shared_counter: self.counters.is_some() && counter.is_none(),
            system: false,
            why: None,
        }
    }
}

/// Says of each route which packets it decides.
fn reasons(mut rows: Vec<RouteRow>) -> Vec<RouteRow> {
    let mut decided = false;
    let several = rows.first().is_some_and(|row| !selector(row).is_any());
    for row in &mut rows {
        let selector = selector(row);
        row.why = Some(if decided {
            "has a shorter prefix".to_owned()
        } else if selector.is_any() {
            decided = true;
            if several { "decides the rest" } else { "decides" }.to_owned()
        } else {
            format!("decides {}", words(selector))
        });
    }
    rows
}

fn selector(row: &RouteRow) -> Selector {
    Selector { proto: row.proto, dport: row.dport }
}

/// A selector as an operator writes it.
fn words(Selector { proto, dport }: Selector) -> String {
    let proto = proto.map(|proto| format!("proto {proto}"));
    let dport = dport.map(|ports| format!("dport {ports}"));
    proto.into_iter().chain(dport).collect::<Vec<_>>().join(" ")
}
