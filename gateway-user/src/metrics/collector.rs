//! Reads the data plane and the control plane when a scrape asks for it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    sync::Arc,
};

use gateway_common::{
    ABI_VERSION, DropReason, Verdict,
    counter::{Counter, SessionClass, SessionCounters},
};
use prometheus::{
    core::{Collector, Desc},
    proto::{self, LabelPair, Metric, MetricFamily},
};

use super::descriptor::{self as metric, Descriptor, Kind};
use crate::{
    access_log::{Lost, Stats},
    control::Handle,
    dataplane::{
        AttachedInterface, LimitStats, MapStats, PoolAddressStats, ProxyHostStats, Traffic, UsageStats,
    },
    model::Snapshot,
};

/// The metrics of the gateway, as a collector of the client library.
pub(super) struct GatewayCollector {
    control: Handle,
    recorded: Arc<Stats>,
    descs: Vec<Desc>,
}

impl GatewayCollector {
    pub(super) fn new(control: Handle, recorded: Arc<Stats>) -> prometheus::Result<Self> {
        let descs = metric::ALL.iter().map(Descriptor::desc).collect::<prometheus::Result<_>>()?;
        Ok(Self { control, recorded, descs })
    }
}

impl Collector for GatewayCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let current = self.control.current();
        let observe = self.control.observe();
        let mut out = Families::default();

        out.set(&metric::BUILD_INFO, [env!("CARGO_PKG_VERSION"), &ABI_VERSION.to_string()], 1);
        out.set(&metric::CONFIG_REVISION, [], current.revision);
        out.set(&metric::CONFIG_LAST_APPLY_SUCCESS, [], current.apply_error.is_none().into());
        desired(&mut out, &current.snapshot);

        if let Some(attached) = out.read("interfaces", observe.interfaces()) {
            interfaces(&mut out, &current.snapshot, &attached);
            if let Some(cells) = out.read("traffic", observe.traffic()) {
                traffic(&mut out, &attached, &cells);
            }
        }
        if let Some(counters) = out.read("drops", observe.drops()) {
            drops(&mut out, &counters);
        }
        if let Some(counters) = out.read("tables", observe.tables()) {
            for ((table, target), counter) in counters {
                out.set(&metric::TABLE_PACKETS, [&table, target], counter.packets);
                out.set(&metric::TABLE_BYTES, [&table, target], counter.bytes);
            }
        }
        if let Some(addresses) = out.read("pools", observe.pools()) {
            for address in &addresses {
                pool_address(&mut out, address);
            }
            limits(&mut out, &addresses);
        }
        if let Some(pools) = out.read("destinations", observe.fullest()) {
            for (pool, ratios) in &pools {
                for (rank, ratio) in (1..).zip(ratios) {
                    let rank: u32 = rank;
                    out.set_ratio(&metric::DESTINATION_SATURATION, [pool, &rank.to_string()], *ratio);
                }
            }
        }
        if let Some(pairs) = out.read("usage", observe.usage()) {
            pairs.iter().for_each(|pair| usage(&mut out, pair));
        }
        if let Some(limits) = out.read("limits", observe.limits()) {
            for LimitStats { name, counters, .. } in &limits {
                out.set(&metric::LIMIT_DROPS, [DropReason::SourceRate.name(), name], counters.over_rate);
                let concurrent = DropReason::SourceConcurrent.name();
                out.set(&metric::LIMIT_DROPS, [concurrent, name], counters.over_concurrent);
            }
        }
        if let Some(hosts) = out.read("proxies", observe.proxies()) {
            for ProxyHostStats { proxy, address, up, flows } in &hosts {
                let labels = [proxy.as_str(), &address.to_string()];
                out.set(&metric::PROXY_UP, labels, (*up).into());
                out.set(&metric::PROXY_FLOWS, labels, *flows);
            }
        }
        if let Some(classes) = out.read("sessions", observe.session_counters()) {
            sessions(&mut out, &classes);
        }
        if let Some(maps) = out.read("maps", observe.maps()) {
            for MapStats { name, entries, capacity } in maps {
                out.set(&metric::MAP_ENTRIES, [&name], entries);
                out.set(&metric::MAP_CAPACITY, [&name], capacity);
            }
        }
        out.set(&metric::ACCESS_LOG_RECORDS, [], self.recorded.written());
        for cause in Lost::ALL {
            out.set(&metric::ACCESS_LOG_LOST, [cause.name()], self.recorded.lost(cause));
        }
        if let Some(lost) = out.read("records", observe.records_lost()) {
            out.set(&metric::ACCESS_LOG_LOST, ["kernel"], lost);
        }
        if let Some(drift) = out.read("drift", observe.drift()) {
            out.set(&metric::ACCOUNTING_DRIFT, ["destinations"], drift.destinations);
            out.set(&metric::ACCOUNTING_DRIFT, ["sources"], drift.sources);
            out.set(&metric::ACCOUNTING_DRIFT, ["ports"], drift.ports);
        }
        if let Some(lost) = out.read("events", observe.events_lost()) {
            out.set(&metric::EVENTS_LOST, [], lost);
        }
        out.0.into_values().collect()
    }
}

/// What the desired state alone says.
fn desired(out: &mut Families, snapshot: &Snapshot) {
    out.set(&metric::ACTIVE, [], snapshot.active.into());
    out.set(&metric::SESSION_CAPACITY, [], snapshot.capacity.sessions.into());
    for (name, table) in &snapshot.tables {
        out.set(&metric::ROUTES, [name, "ipv4"], table.routes.count(false) as u64);
        out.set(&metric::ROUTES, [name, "ipv6"], table.routes.count(true) as u64);
    }
}

fn interfaces(out: &mut Families, snapshot: &Snapshot, attached: &[AttachedInterface]) {
    let mut seen = BTreeMap::new();
    for interface in snapshot.interfaces.values() {
        seen.insert(interface.name.as_str(), (interface.role, None));
    }
    seen.extend(attached.iter().map(|interface| (interface.name.as_str(), (interface.role, interface.mode))));
    for (name, (role, mode)) in seen {
        let labels = [name, role.name(), mode.unwrap_or("none")];
        out.set(&metric::INTERFACE_ATTACHED, labels, mode.is_some().into());
    }
}

/// Both margins of the traffic matrix. Every verdict of an attached interface is there from the start.
fn traffic(out: &mut Families, attached: &[AttachedInterface], cells: &[Traffic]) {
    let mut margins: BTreeMap<(&str, &str, &str), Counter> = BTreeMap::new();
    for interface in attached {
        for &verdict in Verdict::ALL {
            margins.entry((&interface.name, "in", verdict.name())).or_default();
            if leaves(verdict) {
                margins.entry((&interface.name, "out", verdict.name())).or_default();
            }
        }
    }
    for cell in cells {
        let verdict = cell.verdict.name();
        margins.entry((&cell.ingress, "in", verdict)).or_default().add(cell.counter);
        if let Some(egress) = &cell.egress {
            margins.entry((egress, "out", verdict)).or_default().add(cell.counter);
        }
    }
    for ((interface, direction, verdict), counter) in margins {
        out.set(&metric::PACKETS, [interface, direction, verdict], counter.packets);
        out.set(&metric::BYTES, [interface, direction, verdict], counter.bytes);
    }
}

/// Whether a packet with this verdict leaves through an interface.
fn leaves(verdict: Verdict) -> bool {
    match verdict {
        Verdict::Direct
        | Verdict::Snat
        | Verdict::Eip
        | Verdict::Proxy
        | Verdict::Gateway
        | Verdict::Reply => true,
        Verdict::Host | Verdict::Drop => false,
    }
}

fn drops(out: &mut Families, counters: &[(DropReason, Counter)]) {
    for &reason in DropReason::ALL {
        let mut sum = Counter::default();
        counters.iter().filter(|(of, _)| *of == reason).for_each(|(_, counter)| sum.add(*counter));
        out.set(&metric::DROPS, [reason.name()], sum.packets);
        out.set(&metric::DROP_BYTES, [reason.name()], sum.bytes);
    }
}

/// What limits have refused, by pool.
fn limits(out: &mut Families, addresses: &[PoolAddressStats]) {
    let mut pools: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for PoolAddressStats { pool, counters, .. } in addresses {
        let [rate, concurrent] = pools.entry(pool).or_default();
        *rate += counters.over_rate;
        *concurrent += counters.over_concurrent;
    }
    for (pool, [rate, concurrent]) in pools {
        out.set(&metric::LIMIT_DROPS, [DropReason::DestinationRate.name(), pool], rate);
        out.set(&metric::LIMIT_DROPS, [DropReason::DestinationConcurrent.name(), pool], concurrent);
    }
}

fn pool_address(out: &mut Families, stats: &PoolAddressStats) {
    let labels = [stats.pool.as_str(), &stats.address.to_string()];
    let counters = &stats.counters;
    let open = counters.opened.saturating_sub(counters.closed);
    out.set(&metric::POOL_PORTS_IN_USE, labels, open);
    out.set(&metric::POOL_PORTS, labels, stats.ports.into());
    out.set(&metric::POOL_SESSIONS, labels, open);
    out.set(&metric::POOL_CONNECTION_ATTEMPTS, labels, counters.attempts);
    out.set(&metric::POOL_CONNECTIONS_ESTABLISHED, labels, counters.established);
    out.set(&metric::POOL_PORT_ALLOCATION_ERRORS, labels, counters.allocation_errors);
    out.set(&metric::POOL_IDLE_TIMEOUTS, labels, counters.idle_timeouts);
}

fn usage(out: &mut Families, UsageStats { source, destination, usage }: &UsageStats) {
    for (direction, counter) in [("sent", usage.sent), ("received", usage.received)] {
        out.set(&metric::USAGE_PACKETS, [source, destination, direction], counter.packets);
        out.set(&metric::USAGE_BYTES, [source, destination, direction], counter.bytes);
    }
    out.set(&metric::USAGE_CONNECTIONS, [source, destination], usage.connections);
}

fn sessions(out: &mut Families, classes: &[(SessionClass, SessionCounters)]) {
    let mut sum = SessionCounters::default();
    for &(class, SessionCounters { created, closed, expired, killed, .. }) in classes {
        // The four are read one CPU after the other while packets go on: the difference may be off by those.
        let open = created.saturating_sub(closed + expired + killed);
        out.set(&metric::SESSIONS, [class.name()], open);
        sum.created += created;
        sum.closed += closed;
        sum.expired += expired;
        sum.killed += killed;
    }
    let SessionCounters { created, closed, expired, killed, .. } = sum;
    for (event, count) in [("created", created), ("closed", closed), ("expired", expired), ("killed", killed)]
    {
        out.set(&metric::SESSION_EVENTS, [event], count);
    }
}

/// What one scrape found, by name.
#[derive(Default)]
struct Families(HashMap<&'static str, MetricFamily>);

impl Families {
    /// Sets the series of `metric` with these values of its labels.
    fn set<const N: usize>(&mut self, metric: &'static Descriptor, labels: [&str; N], value: u64) {
        #[expect(clippy::cast_precision_loss, reason = "the text format has no integers beyond 2^53")]
        self.set_ratio(metric, labels, value as f64);
    }

    /// As [`Families::set`], of a value that is no whole number.
    fn set_ratio<const N: usize>(&mut self, metric: &'static Descriptor, labels: [&str; N], value: f64) {
        debug_assert_eq!(N, metric.labels.len(), "labels of {}", metric.name);
        let pairs = metric.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut series = Metric::from_label(pairs.collect());
        match metric.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                series.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                series.set_gauge(gauge);
            }
        }
        let family = self.0.entry(metric.name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name.to_owned());
            family.set_help(metric.help.to_owned());
            family.set_field_type(metric.kind.metric_type());
            family
        });
        family.mut_metric().push(series);
    }

    /// What was read, if it could be: one part that fails does not hide the others.
    fn read<T, E: Display>(&mut self, source: &'static str, result: Result<T, E>) -> Option<T> {
        self.set(&metric::SCRAPE_SUCCESS, [source], result.is_ok().into());
        result
            .inspect_err(|error| {
                tracing::warn!(source, "metrics are missing: cannot read the data plane: {error:#}");
            })
            .ok()
    }
}
