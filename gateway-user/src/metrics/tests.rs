//! What a scrape says about a known data plane.

use std::{collections::BTreeMap, net::IpAddr, process::Stdio};

use gateway_common::{
    DropReason, Verdict,
    counter::{Counter, SessionClass, SessionCounters},
    pool::PoolCounters,
};

use super::*;
use crate::{
    dataplane::{AttachedInterface, MapStats, PoolAddressStats, SessionRow, Traffic},
    model::{AttachMode, Interface, Role, Route, RouteKey, Selector, Table, TableKind, Target},
};

/// A data plane and control plane with known values.
#[derive(Clone)]
pub(super) struct Fake {
    /// Whether every read fails.
    pub(super) broken: bool,
    pub(super) interfaces: Vec<AttachedInterface>,
    pub(super) traffic: Vec<Traffic>,
    pub(super) drops: Vec<(DropReason, Counter)>,
    pub(super) snapshot: Snapshot,
}

/// Two interfaces, one pool, one route; two packets translated, one answered, one dropped.
pub(super) fn fake() -> Fake {
    let attached = |name: &str, index, role| AttachedInterface {
        name: name.to_owned(),
        index,
        role,
        mode: Some("native"),
    };
    let cell = |ingress: &str, egress: Option<&str>, verdict, packets, bytes| Traffic {
        ingress: ingress.to_owned(),
        egress: egress.map(str::to_owned),
        verdict,
        counter: Counter { packets, bytes },
    };
    let mut main = Table::new("main", TableKind::Egress);
    main.routes.insert(
        RouteKey { prefix: "203.0.113.0/24".parse().expect("a prefix"), selector: Selector::default() },
        Route { target: Target::Pool("nat".to_owned()), log: false, comment: None },
    );
    let interface = |name: &str, role| {
        (name.to_owned(), Interface { name: name.to_owned(), role, mode: AttachMode::Auto })
    };
    Fake {
        broken: false,
        interfaces: vec![attached("eth1", 2, Role::Inside), attached("eth0", 3, Role::Outside)],
        traffic: vec![
            cell("eth1", Some("eth0"), Verdict::Snat, 2, 200),
            cell("eth1", None, Verdict::Drop, 1, 60),
            cell("eth0", Some("eth1"), Verdict::Reply, 1, 90),
        ],
        drops: vec![(DropReason::NoRoute, Counter { packets: 1, bytes: 60 })],
        snapshot: Snapshot {
            active: true,
            interfaces: BTreeMap::from([interface("eth1", Role::Inside), interface("eth0", Role::Outside)]),
            tables: BTreeMap::from([("main".to_owned(), Arc::new(main))]),
            ..Snapshot::default()
        },
    }
}

impl Fake {
    pub(super) fn metrics(self) -> Metrics {
        let fake = Arc::new(self);
        Metrics::new(Sources { observe: fake.clone(), control: fake }).expect("metrics register")
    }

    fn scrape(self) -> String {
        self.metrics().render().expect("metrics render")
    }

    fn read<T>(&self, value: T) -> anyhow::Result<T> {
        if self.broken { Err(anyhow::anyhow!("map DROPS: bad file descriptor")) } else { Ok(value) }
    }
}

impl Control for Fake {
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        Some(Arc::new(self.snapshot.clone()))
    }
    fn revision(&self) -> u64 {
        7
    }
    fn last_apply_success(&self) -> bool {
        true
    }
}

impl Observe for Fake {
    fn interfaces(&self) -> anyhow::Result<Vec<AttachedInterface>> {
        self.read(self.interfaces.clone())
    }
    fn traffic(&self) -> anyhow::Result<Vec<Traffic>> {
        self.read(self.traffic.clone())
    }
    fn drops(&self) -> anyhow::Result<Vec<(DropReason, Counter)>> {
        self.read(self.drops.clone())
    }
    fn routes(&self) -> anyhow::Result<BTreeMap<(String, RouteKey), Counter>> {
        self.read(BTreeMap::new())
    }
    fn tables(&self) -> anyhow::Result<BTreeMap<(String, &'static str), Counter>> {
        let counter = Counter { packets: 2, bytes: 200 };
        self.read(BTreeMap::from([(("main".to_owned(), "pool"), counter)]))
    }
    fn pools(&self) -> anyhow::Result<Vec<PoolAddressStats>> {
        self.read(vec![PoolAddressStats {
            pool: "nat".to_owned(),
            address: IpAddr::from([198, 51, 100, 10]),
            ports: 64_512,
            counters: PoolCounters {
                attempts: 9,
                established: 4,
                allocation_errors: 1,
                idle_timeouts: 2,
                opened: 8,
                closed: 5,
            },
        }])
    }
    fn session_counters(&self) -> anyhow::Result<Vec<(SessionClass, SessionCounters)>> {
        let of = |class| match class {
            SessionClass::Tcp => SessionCounters { created: 8, closed: 3, expired: 1, killed: 1 },
            SessionClass::Udp => SessionCounters { created: 2, closed: 0, expired: 1, killed: 0 },
            SessionClass::Icmp | SessionClass::Other => SessionCounters::default(),
        };
        self.read(SessionClass::ALL.iter().map(|&class| (class, of(class))).collect())
    }
    fn sessions(
        &self,
        _filter: &mut dyn FnMut(&SessionRow) -> bool,
        _limit: usize,
    ) -> anyhow::Result<Vec<SessionRow>> {
        self.read(Vec::new())
    }
    fn maps(&self) -> anyhow::Result<Vec<MapStats>> {
        self.read(vec![MapStats { name: "SESSIONS_V4".to_owned(), entries: 12, capacity: 2_097_152 }])
    }
    fn events_lost(&self) -> anyhow::Result<u64> {
        self.read(3)
    }
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

#[test]
fn a_scrape_reports_the_state_in_force() {
    let text = fake().scrape();
    has(&text, "gateway_active 1");
    has(&text, "gateway_config_revision 7");
    has(&text, "gateway_config_last_apply_success 1");
    has(&text, &format!(r#"gateway_build_info{{version="{}",abi="1"}} 1"#, env!("CARGO_PKG_VERSION")));
    has(&text, r#"gateway_routes{table="main",family="ipv4"} 1"#);
    has(&text, r#"gateway_routes{table="main",family="ipv6"} 0"#);
    has(&text, "gateway_session_capacity 1048576");
    has(&text, r#"gateway_interface_attached{interface="eth1",role="inside",mode="native"} 1"#);
    has(&text, r#"gateway_map_entries{map="SESSIONS_V4"} 12"#);
    has(&text, "gateway_events_lost_total 3");
    has(&text, r#"gateway_table_packets_total{table="main",target="pool"} 2"#);
    assert!(text.contains("\nprocess_open_fds "), "{text}");
}

#[test]
fn packets_in_are_counted_once_and_packets_out_where_they_left() {
    let text = fake().scrape();
    has(&text, r#"gateway_packets_total{interface="eth1",direction="in",verdict="snat"} 2"#);
    has(&text, r#"gateway_packets_total{interface="eth0",direction="out",verdict="snat"} 2"#);
    has(&text, r#"gateway_bytes_total{interface="eth1",direction="out",verdict="reply"} 90"#);
    has(&text, r#"gateway_packets_total{interface="eth1",direction="in",verdict="drop"} 1"#);
    has(&text, r#"gateway_packets_total{interface="eth0",direction="in",verdict="direct"} 0"#);
    assert!((sum(&text, "gateway_packets_total", r#"direction="in""#) - 4.0).abs() < f64::EPSILON);
    assert!((sum(&text, "gateway_packets_total", r#"direction="out""#) - 3.0).abs() < f64::EPSILON);
}

#[test]
fn every_drop_reason_is_there_from_the_start() {
    let text = fake().scrape();
    has(&text, r#"gateway_drops_total{reason="no_route"} 1"#);
    for reason in DropReason::ALL {
        assert!(text.contains(&format!(r#"gateway_drop_bytes_total{{reason="{}"}} "#, reason.name())));
    }
}

#[test]
fn sessions_and_ports_in_use_are_what_was_opened_and_not_closed() {
    let text = fake().scrape();
    has(&text, r#"gateway_sessions{proto="tcp"} 3"#);
    has(&text, r#"gateway_sessions{proto="icmp"} 0"#);
    has(&text, r#"gateway_session_events_total{event="created"} 10"#);
    has(&text, r#"gateway_session_events_total{event="expired"} 2"#);
    has(&text, r#"gateway_pool_ports_in_use{pool="nat",address="198.51.100.10"} 3"#);
    has(&text, r#"gateway_pool_ports{pool="nat",address="198.51.100.10"} 64512"#);
    has(&text, r#"gateway_pool_connection_attempts_total{pool="nat",address="198.51.100.10"} 9"#);
}

#[test]
fn an_interface_that_is_not_attached_says_so() {
    let mut fake = fake();
    fake.interfaces.pop();
    fake.interfaces[0].mode = None;
    let text = fake.scrape();
    has(&text, r#"gateway_interface_attached{interface="eth1",role="inside",mode="none"} 0"#);
    has(&text, r#"gateway_interface_attached{interface="eth0",role="outside",mode="none"} 0"#);
}

#[test]
fn what_cannot_be_read_is_absent_and_named() {
    let mut fake = fake();
    fake.broken = true;
    let text = fake.scrape();
    has(&text, r#"gateway_scrape_success{source="drops"} 0"#);
    has(&text, "gateway_active 1");
    assert!(!text.contains("gateway_drops_total"), "{text}");
}

#[test]
fn every_metric_of_the_table_is_served() {
    let text = fake().scrape();
    for metric in descriptor::ALL {
        has(&text, &format!("# TYPE {} {}", metric.name, metric.kind.name()));
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE gateway_")) {
        let name = line.split(' ').nth(2).expect("a name");
        assert!(descriptor::ALL.iter().any(|metric| metric.name == name), "{name} is not in the table");
    }
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    use std::io::Write as _;
    let mut command = std::process::Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = match command.spawn() {
        Ok(promtool) => promtool,
        Err(error) => {
            // An extra check where Prometheus happens to be installed.
            println!("promtool cannot be run: {error}");
            return;
        }
    };
    let text = fake().scrape();
    promtool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
