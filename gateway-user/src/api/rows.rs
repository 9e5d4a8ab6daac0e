//! Rows of answers, made of the state in force and of what the data plane says.

use std::collections::BTreeMap;

use gateway_common::{
    DropReason,
    counter::{Counter, SessionClass, SessionCounters},
};

use super::{
    ApiError,
    types::{
        BindingRow, Count, DropRow, EipRow, GroupRow, InterfaceRow, InterfaceStats, LimitRow, MapRow,
        PoolAddressRow, PoolRow, ProxyHostRow, ProxyRow, SessionUse, TableRow, UsageRow, VerdictRow,
    },
};
use crate::{
    control::not_found,
    dataplane::{
        AttachedInterface, LimitStats, MapStats, PoolAddressStats, ProxyHostStats, Traffic,
        UNKNOWN_INTERFACE, UsageStats,
    },
    health::{Health, HealthState},
    model::{Binding, Eip, Group, Limit, Pool, Proxy, ProxyHost, Snapshot, Table},
};

/// Packets of tables by kind of target, see [`crate::dataplane::Observe::tables`].
pub(super) type TableCounters = BTreeMap<(String, &'static str), Counter>;

/// The table of this name.
pub(super) fn find_table<'a>(state: &'a Snapshot, name: &str) -> Result<&'a Table, ApiError> {
    let table = state.tables.get(name).map(|table| &**table);
    table.ok_or_else(|| not_found("table", name, state.tables.keys().map(String::as_str)))
}

/// The pool of this name.
pub(super) fn find_pool<'a>(state: &'a Snapshot, name: &str) -> Result<&'a Pool, ApiError> {
    state.pools.get(name).ok_or_else(|| not_found("pool", name, state.pools.keys().map(String::as_str)))
}

/// The proxy of this name.
pub(super) fn find_proxy<'a>(state: &'a Snapshot, name: &str) -> Result<&'a Proxy, ApiError> {
    state.proxies.get(name).ok_or_else(|| not_found("proxy", name, state.proxies.keys().map(String::as_str)))
}

/// A table.
pub(super) fn table(table: &Table, counters: &TableCounters) -> TableRow {
    let mut sum = Counter::default();
    counters.iter().filter(|((name, _), _)| *name == table.name).for_each(|(_, counter)| sum.add(*counter));
    TableRow {
        name: table.name.clone(),
        kind: table.kind,
        bindings: table.bindings.iter().map(binding_row).collect(),
        routes: table.routes.len() as u64,
        routes_ipv4: table.routes.count(false) as u64,
        routes_ipv6: table.routes.count(true) as u64,
        packets: sum.packets,
        bytes: sum.bytes,
    }
}

/// A pool.
pub(super) fn pool(pool: &Pool) -> PoolRow {
    PoolRow {
        name: pool.name.clone(),
        addresses: pool.addresses.clone(),
        ports: pool.ports,
        drained: pool.drained.iter().copied().collect(),
        mapping: pool.mapping,
        mss: pool.mss,
        refuse: pool.refuse,
        rate: pool.per_destination.rate,
        burst: pool.per_destination.burst(),
        concurrent: pool.per_destination.concurrent,
    }
}

/// An EIP.
pub(super) fn eip(Eip { address, host }: &Eip) -> EipRow {
    EipRow { address: *address, host: *host }
}

/// All proxies.
pub(super) fn proxies(state: &Snapshot, health: &Health, seen: &[ProxyHostStats]) -> Vec<ProxyRow> {
    state.proxies.values().map(|of| proxy(of, health, seen)).collect()
}

/// A proxy, with what is known of its hosts.
pub(super) fn proxy(proxy: &Proxy, health: &Health, seen: &[ProxyHostStats]) -> ProxyRow {
    let host = |host: &ProxyHost| {
        let ProxyHost { address, weight } = *host;
        let known = health.get(&(proxy.name.clone(), address));
        let state = known.map_or(HealthState::Unknown, |known| known.state);
        let seen = seen.iter().find(|seen| seen.proxy == proxy.name && seen.address == address);
        ProxyHostRow {
            address,
            weight,
            drained: proxy.drained.contains(&address),
            state: state.name().to_owned(),
            age: known
                .filter(|_| state != HealthState::Unchecked)
                .map(|known| known.since.elapsed().as_secs_f64().round()),
            error: known.and_then(|known| known.error.clone()),
            up: seen.map_or(state.is_up().unwrap_or(true), |seen| seen.up),
            flows: seen.map_or(0, |seen| seen.flows),
        }
    };
    ProxyRow {
        name: proxy.name.clone(),
        mode: proxy.mode.name().to_owned(),
        vni: proxy.mode.vni(),
        check: proxy.check.to_string(),
        interval: proxy.interval.as_secs_f64(),
        fail: proxy.fail.to_string(),
        hosts: proxy.hosts.iter().map(host).collect(),
    }
}

/// The limit of this name.
pub(super) fn find_limit<'a>(state: &'a Snapshot, name: &str) -> Result<&'a Limit, ApiError> {
    state.limits.get(name).ok_or_else(|| not_found("limit", name, state.limits.keys().map(String::as_str)))
}

/// A limit of sources, with what it has done.
pub(super) fn limit(limit: &Limit, seen: &[LimitStats]) -> LimitRow {
    let seen = seen.iter().find(|seen| seen.name == limit.name);
    let seen = |of: fn(&LimitStats) -> u64| seen.map_or(0, of);
    LimitRow {
        name: limit.name.clone(),
        from: limit.from,
        per: limit.per,
        rate: limit.rate,
        burst: limit.burst(),
        concurrent: limit.concurrent,
        sources: seen(|seen| seen.sources),
        sessions: seen(|seen| seen.sessions),
        most: seen(|seen| seen.most),
        admitted: seen(|seen| seen.counters.admitted),
        over_rate: seen(|seen| seen.counters.over_rate),
        over_concurrent: seen(|seen| seen.counters.over_concurrent),
    }
}

/// The group of this name.
pub(super) fn find_group<'a>(state: &'a Snapshot, name: &str) -> Result<&'a Group, ApiError> {
    state.groups.get(name).ok_or_else(|| not_found("group", name, state.groups.keys().map(String::as_str)))
}

/// A group.
pub(super) fn group(group: &Group) -> GroupRow {
    GroupRow { name: group.name.clone(), prefixes: group.prefixes.clone() }
}

/// What sessions between groups have carried, the most first.
pub(super) fn usage(stats: &[UsageStats], since: Option<&str>) -> Vec<UsageRow> {
    let row = |stats: &UsageStats| UsageRow {
        source: stats.source.to_string(),
        destination: stats.destination.to_string(),
        connections: stats.usage.connections,
        sent: stats.usage.sent.into(),
        received: stats.usage.received.into(),
        since: since.map(str::to_owned),
    };
    let mut rows: Vec<_> = stats.iter().map(row).collect();
    let bytes = |row: &UsageRow| row.sent.bytes.saturating_add(row.received.bytes);
    rows.sort_by(|a, b| {
        let by_name = || (&a.source, &a.destination).cmp(&(&b.source, &b.destination));
        bytes(b).cmp(&bytes(a)).then_with(by_name)
    });
    rows
}

/// Interfaces as configured, with what became of each.
pub(super) fn interfaces(state: &Snapshot, attached: &[AttachedInterface]) -> Vec<InterfaceRow> {
    let row = |interface: &crate::model::Interface| {
        let at = attached.iter().find(|at| at.name == interface.name);
        InterfaceRow {
            name: interface.name.clone(),
            role: interface.role,
            mode: interface.mode,
            attached: at.and_then(|at| at.mode).map(str::to_owned),
            index: at.map(|at| at.index).filter(|index| *index != 0),
        }
    };
    state.interfaces.values().map(row).collect()
}

/// Traffic by interface, direction and verdict. Unknown interfaces are there only if something came from one.
pub(super) fn interface_stats(attached: &[AttachedInterface], traffic: &[Traffic]) -> Vec<InterfaceStats> {
    let mut cells: BTreeMap<(&str, &str, u8), (&'static str, Counter)> = BTreeMap::new();
    for cell in traffic {
        let ways =
            [Some((cell.ingress.as_str(), "in")), cell.egress.as_deref().map(|egress| (egress, "out"))];
        for (name, direction) in ways.into_iter().flatten() {
            let place = cells.entry((name, direction, cell.verdict as u8));
            place.or_insert((cell.verdict.name(), Counter::default())).1.add(cell.counter);
        }
    }
    let stats = |name: &str| {
        let mine = cells.iter().filter(|((of, ..), _)| *of == name);
        let verdicts: Vec<_> = mine
            .map(|((_, direction, _), (verdict, counter))| VerdictRow {
                direction: (*direction).to_owned(),
                verdict: (*verdict).to_owned(),
                count: Count::from(*counter),
            })
            .collect();
        let sum = |direction: &str| {
            verdicts.iter().filter(|row| row.direction == direction).fold(Count::default(), |sum, row| {
                Count { packets: sum.packets + row.count.packets, bytes: sum.bytes + row.count.bytes }
            })
        };
        InterfaceStats { name: name.to_owned(), received: sum("in"), sent: sum("out"), verdicts }
    };
    let unknown = traffic.iter().any(|cell| cell.ingress == UNKNOWN_INTERFACE);
    attached.iter().map(|at| &*at.name).chain(unknown.then_some(UNKNOWN_INTERFACE)).map(stats).collect()
}

/// Drops, in the order of the reasons.
pub(super) fn drops(drops: Vec<(DropReason, Counter)>) -> Vec<DropRow> {
    let row = |(reason, counter): (DropReason, Counter)| DropRow {
        reason: reason.name().to_owned(),
        class: reason.class().name().to_owned(),
        count: counter.into(),
        help: reason.help().to_owned(),
    };
    drops.into_iter().map(row).collect()
}

/// Addresses of pools.
pub(super) fn pool_addresses(stats: Vec<PoolAddressStats>) -> Vec<PoolAddressRow> {
    let row = |stats: PoolAddressStats| PoolAddressRow {
        pool: stats.pool,
        address: stats.address,
        ports: u64::from(stats.ports),
        // Counters of several CPUs are not read at one instant.
        sessions: stats.counters.opened.saturating_sub(stats.counters.closed),
        connection_attempts: stats.counters.attempts,
        connections_established: stats.counters.established,
        port_allocation_errors: stats.counters.allocation_errors,
        over_rate: stats.counters.over_rate,
        over_concurrent: stats.counters.over_concurrent,
        idle_timeouts: stats.counters.idle_timeouts,
        drained: stats.drained,
    };
    stats.into_iter().map(row).collect()
}

/// Sessions there are.
pub(super) fn session_use(counters: &[(SessionClass, SessionCounters)], capacity: u32) -> SessionUse {
    let live = |wanted: SessionClass| -> u64 {
        let of_class = counters.iter().filter(|(class, _)| *class == wanted);
        of_class.map(|(_, c)| c.created.saturating_sub(c.closed + c.expired + c.killed)).sum()
    };
    let (tcp, udp) = (live(SessionClass::Tcp), live(SessionClass::Udp));
    let (icmp, other) = (live(SessionClass::Icmp), live(SessionClass::Other));
    SessionUse { total: tcp + udp + icmp + other, tcp, udp, icmp, other, capacity: u64::from(capacity) }
}

/// Maps.
pub(super) fn maps(maps: Vec<MapStats>) -> Vec<MapRow> {
    let row = |MapStats { name, entries, capacity }| MapRow { name, entries, capacity };
    maps.into_iter().map(row).collect()
}

pub(super) fn binding_row(binding: &Binding) -> BindingRow {
    BindingRow { from: binding.source, iif: binding.iif.clone() }
}
