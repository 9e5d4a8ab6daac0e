//! What a scrape says about a known data plane.

use std::{collections::BTreeMap, net::IpAddr, process::Stdio, sync::Arc};

use gateway_common::{
    DropReason, Verdict,
    counter::{Counter, SessionCounters},
    pool::PoolCounters,
    source::LimitCounters,
    usage::Usage,
};

use super::*;
use crate::{
    control::{self, Base, Store},
    dataplane::{DestinationStats, Host, LimitStats, Link, Traffic, UsageStats, memory::Memory},
    model::{
        AttachMode, Interface, Pool, PortRange, Proxy, ProxyHost, Role, Route, RouteKey, Selector, Snapshot,
        Table, TableKind, Target,
    },
};

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 10));

/// A gateway in memory: two packets translated, one answered, one dropped.
pub(super) async fn gateway() -> (Memory, Metrics) {
    let memory = Memory::default();
    {
        let mut state = memory.state();
        state.traffic = vec![
            cell("eth1", Some("eth0"), Verdict::Snat, Counter { packets: 2, bytes: 200 }),
            cell("eth1", None, Verdict::Drop, Counter { packets: 1, bytes: 60 }),
            cell("eth0", Some("eth1"), Verdict::Reply, Counter { packets: 1, bytes: 90 }),
        ];
        state.drops = BTreeMap::from([(DropReason::NoRoute as u8, Counter { packets: 1, bytes: 60 })]);
        state.tables = BTreeMap::from([(("main".to_owned(), "pool"), Counter { packets: 2, bytes: 200 })]);
        state.pools = BTreeMap::from([(
            ADDRESS,
            PoolCounters {
                attempts: 9,
                established: 4,
                allocation_errors: 1,
                over_rate: 6,
                over_concurrent: 5,
                idle_timeouts: 2,
                opened: 8,
                closed: 5,
            },
        )]);
        state.destinations = vec![destination(443, 3)];
        let counter = |packets, bytes| Counter { packets, bytes };
        let usage = Usage { sent: counter(3, 300), received: counter(4, 4_000), connections: 2 };
        state.usage = vec![UsageStats { source: "payments".into(), destination: "other".into(), usage }];
        state.session_counters[0] =
            SessionCounters { created: 8, closed: 3, expired: 1, killed: 1, ..SessionCounters::default() };
        state.session_counters[1] =
            SessionCounters { created: 2, closed: 0, expired: 1, killed: 0, ..SessionCounters::default() };
    }
    let link = |index| Link {
        index,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        up: true,
        veth: false,
        addresses: Vec::new(),
    };
    let host = Host { links: BTreeMap::from([("eth1".to_owned(), link(2)), ("eth0".to_owned(), link(3))]) };
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path()).expect("a store");
    let base = Base { snapshot: Arc::new(snapshot()), fingerprint: String::new() };
    let (handle, _) =
        control::start(Box::new(memory.clone()), host, base, store).await.expect("a control plane");
    (memory, Metrics::new(handle, Arc::default()).expect("metrics register"))
}

/// Two interfaces, one pool, one route.
fn snapshot() -> Snapshot {
    let interface = |name: &str, role| {
        (name.to_owned(), Interface { name: name.to_owned(), role, mode: AttachMode::Auto })
    };
    let mut main = Table::new("main", TableKind::Egress);
    main.routes.insert(
        RouteKey { prefix: "203.0.113.0/24".parse().expect("a prefix"), selector: Selector::default() },
        Route { target: Target::Pool("nat".to_owned()), log: false, comment: None },
    );
    let nat = Pool::new("nat", vec![ADDRESS], PortRange::POOL);
    let squid = Proxy::new("squid", [2, 3].map(|last| ProxyHost::new([10, 0, 1, last].into())).into());
    Snapshot {
        active: true,
        interfaces: BTreeMap::from([interface("eth1", Role::Inside), interface("eth0", Role::Outside)]),
        pools: BTreeMap::from([("nat".to_owned(), nat)]),
        proxies: BTreeMap::from([("squid".to_owned(), squid)]),
        tables: BTreeMap::from([("main".to_owned(), Arc::new(main))]),
        ..Snapshot::default()
    }
}

fn cell(ingress: &str, egress: Option<&str>, verdict: Verdict, counter: Counter) -> Traffic {
    Traffic { ingress: ingress.to_owned(), egress: egress.map(str::to_owned), verdict, counter }
}

/// A destination with so many sessions of 200.
fn destination(port: u16, sessions: u32) -> DestinationStats {
    DestinationStats {
        pool: "nat".to_owned(),
        address: ADDRESS,
        destination: [203, 0, 113, 10].into(),
        port,
        proto: 6,
        sessions,
        room: 200,
        tokens: None,
        admitted: 0,
        over_rate: 0,
        over_concurrent: 0,
    }
}

async fn scrape() -> String {
    gateway().await.1.render().expect("metrics render")
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|at| at == line), "no line `{line}` in:\n{text}");
}

/// Sum of the series of `name` whose labels contain `label`.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label))
        .map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number"))
        .sum()
}

#[tokio::test]
async fn a_scrape_reports_the_state_in_force() {
    let text = scrape().await;
    has(&text, "gateway_active 1");
    has(&text, "gateway_config_revision 1");
    has(&text, "gateway_config_last_apply_success 1");
    let version = env!("CARGO_PKG_VERSION");
    has(
        &text,
        &format!(r#"gateway_build_info{{version="{version}",abi="{}"}} 1"#, gateway_common::ABI_VERSION),
    );
    has(&text, r#"gateway_routes{table="main",family="ipv4"} 1"#);
    has(&text, r#"gateway_routes{table="main",family="ipv6"} 0"#);
    has(&text, "gateway_session_capacity 1048576");
    has(&text, r#"gateway_interface_attached{interface="eth1",role="inside",mode="native"} 1"#);
    has(&text, r#"gateway_map_capacity{map="SESSIONS_V4"} 1048576"#);
    has(&text, "gateway_events_lost_total 0");
    has(&text, r#"gateway_table_packets_total{table="main",target="pool"} 2"#);
    assert!(text.contains("\nprocess_open_fds "), "{text}");
}

#[tokio::test]
async fn packets_in_are_counted_once_and_packets_out_where_they_left() {
    let text = scrape().await;
    has(&text, r#"gateway_packets_total{interface="eth1",direction="in",verdict="snat"} 2"#);
    has(&text, r#"gateway_packets_total{interface="eth0",direction="out",verdict="snat"} 2"#);
    has(&text, r#"gateway_bytes_total{interface="eth1",direction="out",verdict="reply"} 90"#);
    has(&text, r#"gateway_packets_total{interface="eth1",direction="in",verdict="drop"} 1"#);
    has(&text, r#"gateway_packets_total{interface="eth0",direction="in",verdict="direct"} 0"#);
    assert!((sum(&text, "gateway_packets_total", r#"direction="in""#) - 4.0).abs() < f64::EPSILON);
    assert!((sum(&text, "gateway_packets_total", r#"direction="out""#) - 3.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn every_drop_reason_is_there_from_the_start() {
    let text = scrape().await;
    has(&text, r#"gateway_drops_total{reason="no_route"} 1"#);
    for reason in DropReason::ALL {
        assert!(text.contains(&format!(r#"gateway_drop_bytes_total{{reason="{}"}} "#, reason.name())));
    }
}

#[tokio::test]
async fn sessions_and_ports_in_use_are_what_was_opened_and_not_closed() {
    let text = scrape().await;
    has(&text, r#"gateway_sessions{proto="tcp"} 3"#);
    has(&text, r#"gateway_sessions{proto="icmp"} 0"#);
    has(&text, r#"gateway_session_events_total{event="created"} 10"#);
    has(&text, r#"gateway_session_events_total{event="expired"} 2"#);
    has(&text, r#"gateway_pool_ports_in_use{pool="nat",address="198.51.100.10"} 3"#);
    has(&text, r#"gateway_pool_ports{pool="nat",address="198.51.100.10"} 64512"#);
    has(&text, r#"gateway_pool_connection_attempts_total{pool="nat",address="198.51.100.10"} 9"#);
}

#[tokio::test]
async fn hosts_of_proxies_say_whether_they_are_up_and_how_many_flows_they_have() {
    let (memory, metrics) = gateway().await;
    let host = IpAddr::from([10, 0, 1, 2]);
    memory.state().flows.insert(host, 3);
    has(&metrics.render().expect("metrics render"), r#"gateway_proxy_up{proxy="squid",host="10.0.1.2"} 1"#);
    memory.state().health.insert(("squid".to_owned(), host), false);
    let text = metrics.render().expect("metrics render");
    has(&text, r#"gateway_proxy_up{proxy="squid",host="10.0.1.2"} 0"#);
    has(&text, r#"gateway_proxy_up{proxy="squid",host="10.0.1.3"} 1"#);
    has(&text, r#"gateway_proxy_flows{proxy="squid",host="10.0.1.2"} 3"#);
    has(&text, r#"gateway_proxy_flows{proxy="squid",host="10.0.1.3"} 0"#);
}

#[tokio::test]
async fn an_interface_that_is_not_attached_says_so() {
    let (memory, metrics) = gateway().await;
    memory.state().host.links.remove("eth0");
    let text = metrics.render().expect("metrics render");
    has(&text, r#"gateway_interface_attached{interface="eth1",role="inside",mode="native"} 1"#);
    has(&text, r#"gateway_interface_attached{interface="eth0",role="outside",mode="none"} 0"#);
}

#[tokio::test]
async fn what_cannot_be_read_is_absent_and_named() {
    let (memory, metrics) = gateway().await;
    memory.state().unreadable = true;
    let text = metrics.render().expect("metrics render");
    has(&text, r#"gateway_scrape_success{source="drops"} 0"#);
    has(&text, "gateway_active 1");
    assert!(!text.contains("gateway_drops_total"), "{text}");
}

#[tokio::test]
async fn every_metric_of_the_table_is_served() {
    let text = scrape().await;
    for metric in descriptor::ALL {
        has(&text, &format!("# TYPE {} {}", metric.name, metric.kind.name()));
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE gateway_")) {
        let name = line.split(' ').nth(2).expect("a name");
        assert!(descriptor::ALL.iter().any(|metric| metric.name == name), "{name} is not in the table");
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    use std::io::Write as _;
    let mut command = std::process::Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = match command.spawn() {
        Ok(promtool) => promtool,
        Err(error) => {
            // An extra check where Prometheus happens to be installed.
            gateway_lab::skip(&format!("promtool cannot be run: {error}"));
            return;
        }
    };
    let text = scrape().await;
    promtool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[tokio::test]
async fn usage_is_told_by_groups_and_direction() {
    let text = scrape().await;
    let pair = r#"source_group="payments",destination_group="other""#;
    has(&text, &format!("gateway_usage_packets_total{{{pair},direction=\"sent\"}} 3"));
    has(&text, &format!("gateway_usage_bytes_total{{{pair},direction=\"sent\"}} 300"));
    has(&text, &format!("gateway_usage_bytes_total{{{pair},direction=\"received\"}} 4000"));
    has(&text, &format!("gateway_usage_connections_total{{{pair}}} 2"));
}

#[tokio::test]
async fn limits_of_clients_and_the_fullest_destinations_are_told() {
    let (memory, metrics) = gateway().await;
    {
        let mut state = memory.state();
        let counters = LimitCounters { admitted: 7, over_rate: 3, over_concurrent: 2 };
        state.limits = vec![LimitStats { name: "tenant-a".to_owned(), counters, ..LimitStats::default() }];
        state.destinations = (1..=12).map(|port| destination(port, u32::from(port) * 10)).collect();
    }
    let text = metrics.render().expect("metrics render");
    has(&text, "gateway_limit_drops_total{kind=\"source_rate\",name=\"tenant-a\"} 3");
    has(&text, "gateway_limit_drops_total{kind=\"source_concurrent\",name=\"tenant-a\"} 2");
    has(&text, "gateway_destination_saturation_ratio{pool=\"nat\",rank=\"1\"} 0.6");
    has(&text, "gateway_destination_saturation_ratio{pool=\"nat\",rank=\"10\"} 0.15");
    assert!(!text.contains("rank=\"11\""), "{text}");
}
