//! What `apply` of a configuration would change, in the words of `gwctl`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::types::DiffRow;
use crate::{
    control::Command,
    model::{Difference, Interface, Pool, Proxy, Route, RouteKey, Routes, Snapshot, Table},
};

/// The differences from `before` to `after`, as they stand in a configuration file.
pub(super) fn between(before: &Snapshot, after: &Snapshot) -> Vec<DiffRow> {
    let mut rows: Vec<DiffRow> = settings(before)
        .into_iter()
        .zip(settings(after))
        .filter(|(before, after)| before != after)
        .map(|(before, after)| row("gateway", Some(before), Some(after)))
        .collect();
    maps(&mut rows, "interface", (&before.interfaces, &after.interfaces), interface);
    maps(&mut rows, "pool", (&before.pools, &after.pools), pool);
    maps(&mut rows, "eip", (&before.eips, &after.eips), |eip| noun(&Command::EipAdd(*eip)));
    maps(&mut rows, "proxy", (&before.proxies, &after.proxies), proxy);
    maps(&mut rows, "limit", (&before.limits, &after.limits), |limit| {
        noun(&Command::LimitAdd(limit.clone()))
    });
    maps(&mut rows, "group", (&before.groups, &after.groups), |group| {
        noun(&Command::GroupAdd(group.clone()))
    });
    let table = |table: &std::sync::Arc<Table>| {
        noun(&Command::TableAdd { name: table.name.clone(), kind: table.kind })
    };
    let none = Table::new("", crate::model::TableKind::Egress);
    for name in names(&before.tables, &after.tables) {
        let (from, to) = (before.tables.get(name), after.tables.get(name));
        let known = from.map(table);
        let asked = to.map(table);
        if known != asked {
            rows.push(row("table", known, asked));
        }
        let (from, to) = (from.map_or(&none, |table| &**table), to.map_or(&none, |table| &**table));
        let bound = |binding| format!("table bind {name} from {binding}");
        let removed = from.bindings.difference(&to.bindings).map(|it| row("binding", Some(bound(it)), None));
        let added = to.bindings.difference(&from.bindings).map(|it| row("binding", None, Some(bound(it))));
        rows.extend(removed.chain(added));
        routes(&mut rows, name, &from.routes, &to.routes);
    }
    rows
}

fn routes(rows: &mut Vec<DiffRow>, table: &str, before: &Routes, after: &Routes) {
    rows.extend(before.diff(after).map(|Difference { key, before, after }| {
        let words = |of: &Route| route(table, key, of);
        row("route", before.map(words), after.map(words))
    }));
}

fn route(table: &str, key: &RouteKey, Route { target, log, comment }: &Route) -> String {
    let mut text = format!("route {key} via {target} table {table}");
    if *log {
        text.push_str(" log");
    }
    if let Some(comment) = comment {
        // Writing to a string does not fail.
        let _ = write!(text, " comment {comment:?}");
    }
    text
}

/// Values of what is neither in a list nor in a table, each with its key in the configuration file.
fn settings(state: &Snapshot) -> Vec<String> {
    let Snapshot { name, active, capacity, timeouts, no_session, access_log, .. } = state;
    let access_log = access_log.as_ref().map(|log| serde_json::to_string(log).unwrap_or_default());
    let time = humantime::format_duration;
    vec![
        format!("gateway.name {name}"),
        format!("gateway.state {}", if *active { "active" } else { "inactive" }),
        format!("gateway.no_session {}", no_session.name()),
        format!("capacity.sessions {}", capacity.sessions),
        format!("capacity.routes {}", capacity.routes),
        format!(
            "capacity.half_open {}",
            capacity.half_open.map_or("a quarter of sessions".to_owned(), |it| it.to_string())
        ),
        format!("timeouts.tcp_established {}", time(timeouts.tcp_established)),
        format!("timeouts.tcp_opening {}", time(timeouts.tcp_opening)),
        format!("timeouts.tcp_closing {}", time(timeouts.tcp_closing)),
        format!("timeouts.udp {}", time(timeouts.udp)),
        format!("timeouts.udp_dns {}", time(timeouts.udp_dns)),
        format!("timeouts.icmp {}", time(timeouts.icmp)),
        format!("access_log {}", access_log.as_deref().unwrap_or("none")),
    ]
}

fn interface(interface: &Interface) -> String {
    noun(&Command::InterfaceAdd(interface.clone()))
}

fn pool(pool: &Pool) -> String {
    drained(noun(&Command::PoolAdd(pool.clone())), &pool.drained)
}

fn proxy(proxy: &Proxy) -> String {
    drained(noun(&Command::ProxyAdd(proxy.clone())), &proxy.drained)
}

fn drained<'a>(text: String, drained: impl IntoIterator<Item = &'a std::net::IpAddr>) -> String {
    let list: Vec<String> = drained.into_iter().map(ToString::to_string).collect();
    if list.is_empty() { text } else { format!("{text} drained {}", list.join(",")) }
}

/// A command that adds something, without its verb.
fn noun(command: &Command) -> String {
    command.to_string().replacen(" add ", " ", 1)
}

fn maps<K: Ord, V: PartialEq>(
    rows: &mut Vec<DiffRow>,
    noun: &str,
    (before, after): (&BTreeMap<K, V>, &BTreeMap<K, V>),
    words: impl Fn(&V) -> String,
) {
    for key in names(before, after) {
        let (known, asked) = (before.get(key), after.get(key));
        if known != asked {
            rows.push(row(noun, known.map(&words), asked.map(&words)));
        }
    }
}

/// The keys of both, in order, each once.
fn names<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
) -> std::collections::BTreeSet<&'a K> {
    before.keys().chain(after.keys()).collect()
}

fn row(noun: &str, before: Option<String>, after: Option<String>) -> DiffRow {
    let change = match (&before, &after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    };
    DiffRow { change: change.to_owned(), noun: noun.to_owned(), before, after }
}
