//! The table of metrics: names, labels and help in one place. It drives what `/metrics` says and the
//! reference page.

use std::{collections::HashMap, fmt::Write as _};

use gateway_common::{DropReason, Verdict, counter::SessionClass};
use prometheus::{
    core::{Collector as _, Desc},
    process_collector::ProcessCollector,
    proto::MetricType,
};

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Name.
    pub name: &'static str,
    /// Whether it only ever grows.
    pub kind: Kind,
    /// Names of its labels, in the order of their values.
    pub labels: &'static [&'static str],
    /// What it says, in a sentence or two.
    pub help: &'static str,
}

/// What a metric's value may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the data plane is made anew.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Kind {
    /// The word for it in the text format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }

    /// The client library's word for it.
    pub(super) const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::COUNTER,
            Self::Gauge => MetricType::GAUGE,
        }
    }
}

impl Descriptor {
    /// The client library's form, for registration.
    pub(super) fn desc(&self) -> prometheus::Result<Desc> {
        let labels = self.labels.iter().map(|&label| label.to_owned()).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, HashMap::new())
    }
}

macro_rules! metrics {
    ($($konst:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = concat!("`", $name, "`")]
            pub const $konst: Descriptor =
                Descriptor { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )+

        /// Every metric of the gateway's own, in the order of the reference page.
        pub const ALL: &[Descriptor] = &[$($konst),+];
    };
}

metrics! {
    BUILD_INFO = Gauge "gateway_build_info" ["version", "abi"]
        "Always 1; the labels name the version of the daemon and of the layout it shares with the data plane.";
    ACTIVE = Gauge "gateway_active" []
        "1 while the gateway is active and drops what no route allows, 0 while it only observes.";
    CONFIG_REVISION = Gauge "gateway_config_revision" []
        "Revision of the configuration in force; moves with every change.";
    CONFIG_LAST_APPLY_SUCCESS = Gauge "gateway_config_last_apply_success" []
        "1 if the last change was applied, 0 if it was rolled back and the state before it is in force.";
    INTERFACE_ATTACHED = Gauge "gateway_interface_attached" ["interface", "role", "mode"]
        "1 while a program is attached to the interface; 0, with mode none, while it is not and the gateway does not see its packets.";
    PACKETS = Counter "gateway_packets_total" ["interface", "direction", "verdict"]
        "Packets by interface and verdict. Direction in counts each packet once, where it arrived; out counts it where it left. Interface unknown: devices that carry the program and are not the gateway's, such as ports of a bond.";
    BYTES = Counter "gateway_bytes_total" ["interface", "direction", "verdict"]
        "Bytes of the packets of gateway_packets_total: whole Ethernet frames, as they arrived.";
    DROPS = Counter "gateway_drops_total" ["reason"]
        "Packets dropped, by the one reason each of them has. The sum equals verdict drop of gateway_packets_total.";
    DROP_BYTES = Counter "gateway_drop_bytes_total" ["reason"]
        "Bytes of the packets of gateway_drops_total: whole Ethernet frames.";
    ROUTES = Gauge "gateway_routes" ["table", "family"]
        "Routes of the table.";
    TABLE_PACKETS = Counter "gateway_table_packets_total" ["table", "target"]
        "Packets that a route of the table decided, by the kind of its target, routes deleted since included.";
    TABLE_BYTES = Counter "gateway_table_bytes_total" ["table", "target"]
        "Bytes of the packets of gateway_table_packets_total.";
    SESSIONS = Gauge "gateway_sessions" ["proto"]
        "Sessions open.";
    SESSION_CAPACITY = Gauge "gateway_session_capacity" []
        "Sessions of each address family that fit; beyond it new flows are dropped with session_table_full.";
    SESSION_EVENTS = Counter "gateway_session_events_total" ["event"]
        "Sessions created, closed by both sides, expired when idle, and killed by an operator or a change of routes.";
    POOL_PORTS_IN_USE = Gauge "gateway_pool_ports_in_use" ["pool", "address"]
        "Ports of the pool address that sessions hold. A port that serves several destinations counts once for each.";
    POOL_PORTS = Gauge "gateway_pool_ports" ["pool", "address"]
        "Ports of the pool address that the pool may use, for each destination and protocol.";
    POOL_SESSIONS = Gauge "gateway_pool_sessions" ["pool", "address"]
        "Sessions that the pool address hides.";
    POOL_CONNECTION_ATTEMPTS = Counter "gateway_pool_connection_attempts_total" ["pool", "address"]
        "New flows that asked the pool address for a port.";
    POOL_CONNECTIONS_ESTABLISHED = Counter "gateway_pool_connections_established_total" ["pool", "address"]
        "New flows through the pool address that the destination answered.";
    POOL_PORT_ALLOCATION_ERRORS = Counter "gateway_pool_port_allocation_errors_total" ["pool", "address"]
        "New flows for which the pool address had no free port: the pool needs more addresses.";
    LIMIT_DROPS = Counter "gateway_limit_drops_total" ["kind", "name"]
        "New flows refused because of a limit: destination_rate and destination_concurrent where every address of the pool of that name was at its limit towards their destination, source_rate and source_concurrent where their client, or all of its prefix, was at the limit of that name.";
    DESTINATION_SATURATION = Gauge "gateway_destination_saturation_ratio" ["pool", "rank"]
        "How full the ten fullest destinations of the pool are, rank 1 the fullest, from 0 to 1: connections of a pool address to a destination, of those that its ports and the limit allow. Ranks that no destination has are absent.";
    POOL_IDLE_TIMEOUTS = Counter "gateway_pool_idle_timeouts_total" ["pool", "address"]
        "Sessions of the pool address that ended because they were idle.";
    PROXY_UP = Gauge "gateway_proxy_up" ["proxy", "host"]
        "1 while the host of the proxy is taken to be up and packets are sent to it, 0 while it is down.";
    PROXY_FLOWS = Gauge "gateway_proxy_flows" ["proxy", "host"]
        "Sessions that go through the host of the proxy.";
    USAGE_PACKETS = Counter "gateway_usage_packets_total" ["source_group", "destination_group", "direction"]
        "IP packets of sessions between two groups of addresses; only pairs of groups that had any. A second late, or later where there are many sessions.";
    USAGE_BYTES = Counter "gateway_usage_bytes_total" ["source_group", "destination_group", "direction"]
        "The same in bytes of IP packets, without Ethernet.";
    USAGE_CONNECTIONS = Counter "gateway_usage_connections_total" ["source_group", "destination_group"]
        "Sessions between two groups of addresses.";
    MAP_ENTRIES = Gauge "gateway_map_entries" ["map"]
        "Elements in use of a map of the data plane.";
    MAP_CAPACITY = Gauge "gateway_map_capacity" ["map"]
        "Elements that a map of the data plane can hold.";
    ACCOUNTING_DRIFT = Gauge "gateway_accounting_drift" ["of"]
        "By how much what is counted differs from what the session table has, as of the last minute: sessions of destinations and of sources, and ports that nobody has and nobody gets. Anything but 0 is an error of the gateway; clients may be refused for it.";
    EVENTS_LOST = Counter "gateway_events_lost_total" []
        "Messages of the data plane to the daemon that found the ring buffer full. No packet depends on them.";
    ACCESS_LOG_RECORDS = Counter "gateway_access_log_records_total" []
        "Records that were written to the access log since the daemon began.";
    ACCESS_LOG_LOST = Counter "gateway_access_log_lost_total" ["cause"]
        "Records that are not in the access log: kernel, the ring buffer was full; queue, the writer had fallen behind; rate, there were more in a second than access_log.max_rate; sink, the file did not take them. kernel counts as long as the data plane lives, the others since the daemon began.";
    SCRAPE_SUCCESS = Gauge "gateway_scrape_success" ["source"]
        "1 if this part of the data plane could be read for this scrape; 0 if not: its metrics are absent and the daemon's log says why.";
}

/// The reference page, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(HEAD);
    for metric in ALL {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(page, "| `{}` | {} | {labels} | {} |", metric.name, metric.kind.name(), metric.help);
    }
    let verdicts = words(Verdict::ALL.iter().map(|verdict| verdict.name()));
    let reasons = words(DropReason::ALL.iter().map(|reason| reason.name()));
    let protocols = words(SessionClass::ALL.iter().map(|class| class.name()));
    let _ = write!(
        page,
        "\n## Labels\n\n\
         | label | values |\n\
         |---|---|\n\
         | `direction` | `in`, `out`; of usage `sent`, by the inside, and `received` |\n\
         | `verdict` | {verdicts} |\n\
         | `reason` | {reasons}; all of them from the start |\n\
         | `proto` | {protocols} |\n\
         | `kind` | `destination_rate`, `destination_concurrent`, `source_rate`, `source_concurrent` |\n\
         | `rank` | `1` to `10` |\n\
         | `event` | `created`, `closed`, `expired`, `killed` |\n\
         | `cause` | `kernel`, `queue`, `rate`, `sink` |\n\
         | `of` | `destinations`, `sources`, `ports` |\n\
         | `family` | `ipv4`, `ipv6` |\n\
         | `role` | `inside`, `outside`, `both` |\n\
         | `mode` | `native`, `generic`, `none` |\n\
         | `target` | `direct`, `pool`, `eip`, `proxy`, `gateway`, `blackhole`, `prohibit`, `host` |\n\
         | `source_group`, `destination_group` | as configured, `other`; of sources also `proxy` |\n\
         | `interface`, `table`, `pool`, `address`, `proxy`, `host`, `map`, `source`, `name` | as configured; never the address of a client or a server |\n\
         \n## The process\n\n\
         | metric | help |\n\
         |---|---|\n"
    );
    for desc in ProcessCollector::for_self().desc() {
        let _ = writeln!(page, "| `{}` | {} |", desc.fq_name, desc.help);
    }
    page
}

const HEAD: &str = "\
# Metrics

<!-- Generated from gateway-user/src/metrics/descriptor.rs; to write it anew:
     UPDATE_REFERENCE=1 cargo test -p gateway-user --lib metrics -->

`gatewayd` serves them as Prometheus text on `GET /metrics` (`--metrics ADDR:PORT`, 127.0.0.1:9464 unless told
otherwise). Values are read from the kernel when they are asked for. `GET /healthz` answers while the daemon
lives; `GET /readyz` answers 200 when the data plane is in force on every configured interface, and 503 with the
reason otherwise.

The data plane outlives the daemon, and so do its counters: they do not start from 0 when the daemon does. Those of
tables (`gateway_table_...`) do, as a restarted counter does in Prometheus.

| metric | type | labels | help |
|---|---|---|---|
";

fn words<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            std::fs::write(path, reference()).expect("the page can be written");
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == reference(),
            "docs/reference/metrics.md is stale: UPDATE_REFERENCE=1 cargo test -p gateway-user --lib metrics"
        );
    }

    #[test]
    fn counters_end_in_total_and_gauges_do_not() {
        for metric in ALL {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("gateway_"), "{}", metric.name);
            assert!(metric.desc().is_ok(), "{}", metric.name);
        }
    }
}
