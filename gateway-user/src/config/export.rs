//! A state as a configuration file.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use super::access_log;
use crate::model::{
    AccessLog, Limit, MAIN_TABLE, NoSession, Per, PerDestination, Pool, Proxy, ProxyMode, Route, RouteKey,
    Snapshot, Table, TableKind,
};

/// Writes a state as a configuration file that loads to the same state.
pub fn export(state: &Snapshot, metrics: Option<SocketAddr>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, state, metrics);
    text
}

fn write(out: &mut String, state: &Snapshot, metrics: Option<SocketAddr>) -> fmt::Result {
    writeln!(out, "[gateway]")?;
    writeln!(out, "name = {}", quote(&state.name))?;
    writeln!(out, "state = \"{}\"", if state.active { "active" } else { "inactive" })?;
    if let Some(metrics) = metrics {
        writeln!(out, "metrics = \"{metrics}\"")?;
    }
    if state.no_session != NoSession::default() {
        writeln!(out, "no_session = \"{}\"", state.no_session.name())?;
    }
    writeln!(out, "\n[capacity]")?;
    writeln!(out, "sessions = {}", state.capacity.sessions)?;
    writeln!(out, "routes = {}", state.capacity.routes)?;
    if let Some(half_open) = state.capacity.half_open {
        writeln!(out, "half_open = {half_open}")?;
    }
    writeln!(out, "\n[timeouts]")?;
    for (key, value) in [
        ("tcp_established", state.timeouts.tcp_established),
        ("tcp_opening", state.timeouts.tcp_opening),
        ("tcp_closing", state.timeouts.tcp_closing),
        ("udp", state.timeouts.udp),
        ("udp_dns", state.timeouts.udp_dns),
        ("icmp", state.timeouts.icmp),
    ] {
        writeln!(out, "{key} = \"{}\"", humantime::format_duration(value))?;
    }
    if let Some(log) = &state.access_log {
        write_access_log(out, log)?;
    }
    for interface in state.interfaces.values() {
        writeln!(out, "\n[[interface]]")?;
        writeln!(out, "name = {}", quote(&interface.name))?;
        writeln!(out, "role = \"{}\"", interface.role)?;
        if interface.mode != crate::model::AttachMode::default() {
            writeln!(out, "mode = \"{}\"", interface.mode)?;
        }
    }
    state.pools.values().try_for_each(|pool| write_pool(out, pool))?;
    for eip in state.eips.values() {
        writeln!(out, "\n[[eip]]")?;
        writeln!(out, "address = \"{}\"", eip.address)?;
        writeln!(out, "host = \"{}\"", eip.host)?;
    }
    state.proxies.values().try_for_each(|proxy| write_proxy(out, proxy))?;
    state.limits.values().try_for_each(|limit| write_limit(out, limit))?;
    for group in state.groups.values() {
        let prefixes: Vec<_> = group.prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect();
        writeln!(out, "\n[[group]]")?;
        writeln!(out, "name = {}", quote(&group.name))?;
        writeln!(out, "prefixes = [{}]", prefixes.join(", "))?;
    }
    state.tables.values().try_for_each(|table| write_table(out, table))
}

fn write_access_log(out: &mut String, log: &AccessLog) -> fmt::Result {
    let AccessLog { path, all, tables, max_rate, max_size, max_age, keep, fsync } = log;
    writeln!(out, "\n[access_log]")?;
    writeln!(out, "path = {}", quote(&path.to_string()))?;
    if *all {
        writeln!(out, "all = true")?;
    }
    if !tables.is_empty() {
        let tables: Vec<_> = tables.iter().map(|table| quote(table)).collect();
        writeln!(out, "tables = [{}]", tables.join(", "))?;
    }
    if *max_rate != 0 {
        writeln!(out, "max_rate = {max_rate}")?;
    }
    writeln!(out, "max_size = \"{}\"", access_log::size_words(*max_size))?;
    writeln!(out, "max_age = \"{}\"", humantime::format_duration(*max_age))?;
    writeln!(out, "keep = {keep}")?;
    writeln!(out, "fsync = \"{fsync}\"")
}

fn write_pool(out: &mut String, pool: &Pool) -> fmt::Result {
    let list = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
        addresses.map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
    };
    writeln!(out, "\n[[pool]]")?;
    writeln!(out, "name = {}", quote(&pool.name))?;
    writeln!(out, "addresses = [{}]", list(&mut pool.addresses.iter()))?;
    writeln!(out, "ports = \"{}\"", pool.ports)?;
    if !pool.drained.is_empty() {
        writeln!(out, "drained = [{}]", list(&mut pool.drained.iter()))?;
    }
    if !pool.mapping.is_default() {
        writeln!(out, "mapping = \"{}\"", pool.mapping)?;
    }
    if pool.mss != 0 {
        writeln!(out, "mss = {}", pool.mss)?;
    }
    if !pool.refuse.is_default() {
        writeln!(out, "refuse = \"{}\"", pool.refuse)?;
    }
    let PerDestination { rate, burst, concurrent } = pool.per_destination;
    let burst = burst.map(|burst| format!(", burst = {burst}")).unwrap_or_default();
    writeln!(out, "per_destination = {{ rate = {rate}{burst}, concurrent = {concurrent} }}")
}

fn write_proxy(out: &mut String, proxy: &Proxy) -> fmt::Result {
    let Proxy { name, hosts, drained, mode, check, interval, fail } = proxy;
    let list = |words: Vec<String>| words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(", ");
    writeln!(out, "\n[[proxy]]")?;
    writeln!(out, "name = {}", quote(name))?;
    writeln!(out, "hosts = [{}]", list(hosts.iter().map(ToString::to_string).collect()))?;
    if !drained.is_empty() {
        writeln!(out, "drained = [{}]", list(drained.iter().map(ToString::to_string).collect()))?;
    }
    if *mode != ProxyMode::default() {
        writeln!(out, "mode = \"{}\"", mode.name())?;
    }
    if let Some(vni) = mode.vni() {
        writeln!(out, "vni = {vni}")?;
    }
    writeln!(out, "check = \"{check}\"")?;
    if *interval != Proxy::INTERVAL {
        writeln!(out, "interval = \"{}\"", humantime::format_duration(*interval))?;
    }
    writeln!(out, "fail = {}", quote(&fail.to_string()))
}

fn write_limit(out: &mut String, limit: &Limit) -> fmt::Result {
    let Limit { name, from, per, rate, burst, concurrent } = limit;
    writeln!(out, "\n[[limit]]")?;
    writeln!(out, "name = {}", quote(name))?;
    writeln!(out, "from = \"{from}\"")?;
    if *per != Per::default() {
        writeln!(out, "per = \"{per}\"")?;
    }
    writeln!(out, "rate = {rate}")?;
    if let Some(burst) = burst {
        writeln!(out, "burst = {burst}")?;
    }
    writeln!(out, "concurrent = {concurrent}")
}

fn write_table(out: &mut String, table: &Table) -> fmt::Result {
    if table.name == MAIN_TABLE && table.routes.is_empty() && table.bindings.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n[[table]]")?;
    writeln!(out, "name = {}", quote(&table.name))?;
    if table.kind != TableKind::default() {
        writeln!(out, "kind = \"{}\"", table.kind)?;
    }
    if !table.bindings.is_empty() {
        let bindings: Vec<_> = table.bindings.iter().map(|binding| quote(&binding.to_string())).collect();
        writeln!(out, "bind = [{}]", bindings.join(", "))?;
    }
    if table.routes.is_empty() {
        return Ok(());
    }
    writeln!(out, "routes = [")?;
    table.routes.iter().try_for_each(|(key, route)| write_route(out, key, route))?;
    writeln!(out, "]")
}

fn write_route(out: &mut String, key: &RouteKey, route: &Route) -> fmt::Result {
    write!(out, "  {{ to = \"{}\"", key.prefix)?;
    if let Some(proto) = key.selector.proto {
        write!(out, ", proto = \"{proto}\"")?;
    }
    if let Some(ports) = key.selector.dport {
        write!(out, ", dport = \"{ports}\"")?;
    }
    write!(out, ", via = {}", quote(&route.target.to_string()))?;
    if route.log {
        write!(out, ", log = true")?;
    }
    if let Some(comment) = &route.comment {
        write!(out, ", comment = {}", quote(comment))?;
    }
    writeln!(out, " }},")
}

/// `text` as a TOML string.
fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}
