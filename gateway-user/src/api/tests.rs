//! The API over a real Unix socket.

use std::{path::PathBuf, sync::Arc, time::Instant};

use gateway_common::{
    DropReason, Verdict,
    counter::{Counter, SessionCounters},
    pool::PoolCounters,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::UnixStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    control::{self, Base, Control, Handle, Store},
    dataplane::{Host, Link, SessionRow, Traffic, memory::Memory},
    health::{HealthState, HostHealth},
    model::{Route, RouteKey, Snapshot, words::parse_route_line},
    netlink::Sysctls,
};

/// A daemon without packets: control plane, API and a data plane in memory.
struct Daemon {
    directory: tempfile::TempDir,
    memory: Memory,
    handle: Handle,
    control: Control,
    stop: CancellationToken,
    server: JoinHandle<anyhow::Result<()>>,
}

impl Daemon {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let memory = Memory::default();
        let link = |index| Link {
            index,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            veth: false,
            addresses: Vec::new(),
        };
        let host = Host { links: [("eth0".to_owned(), link(2)), ("eth1".to_owned(), link(3))].into() };
        let base = Base { snapshot: Arc::new(Snapshot::default()), fingerprint: "one".to_owned() };
        let store = Store::open(directory.path()).expect("a store");
        let (handle, control) =
            control::start(Box::new(memory.clone()), host, base, store).await.expect("starts");
        let context = Context {
            control: handle.clone(),
            config_file: PathBuf::from("/etc/gateway/gateway.toml"),
            metrics: None,
            started: Instant::now(),
            inspect: Arc::new(|_| Sysctls::default()),
            monitor: crate::monitor::Hub::default(),
            usage: Arc::default(),
        };
        let stop = CancellationToken::new();
        let listener = listen(&directory.path().join("gateway.sock")).expect("listens");
        let server = tokio::spawn(serve(listener, context, stop.clone()));
        Self { directory, memory, handle, control, stop, server }
    }

    async fn call(&self, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        let stream = UnixStream::connect(self.directory.path().join("gateway.sock")).await.expect("connects");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "gw")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).expect("JSON"))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    /// Makes a change that has to succeed.
    async fn make(&self, method: Method, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, value) = self.call(method, path, &body).await;
        assert_eq!(status, StatusCode::OK, "{path} {body}: {value}");
        value
    }

    async fn filled() -> Self {
        let daemon = Self::start().await;
        daemon.make(Method::POST, "/v1/interfaces/eth1", json!({"role": "inside"})).await;
        daemon.make(Method::POST, "/v1/interfaces/eth0", json!({"role": "outside", "mode": "generic"})).await;
        let pool = json!({"addresses": ["198.51.100.10", "198.51.100.11"]});
        daemon.make(Method::POST, "/v1/pools/nat", pool).await;
        daemon.make(Method::POST, "/v1/tables/servers", Value::Null).await;
        daemon.make(Method::POST, "/v1/tables/servers/bindings", json!({"from": "10.0.2.0/24"})).await;
        for (table, prefix, via) in [
            ("main", "203.0.113.0/24", "pool nat"),
            ("main", "203.0.113.128/25", "blackhole"),
            ("main", "2001:db8::/32", "direct"),
            ("servers", "203.0.113.0/24", "gateway 10.0.1.2 dev eth1"),
        ] {
            let route = json!({"table": table, "prefix": prefix, "via": via});
            daemon.make(Method::POST, "/v1/routes", route).await;
        }
        let dns = json!({"prefix": "203.0.113.7", "via": "prohibit", "proto": "udp", "dport": "53", "comment": "not here"});
        daemon.make(Method::POST, "/v1/routes", dns).await;
        daemon
    }

    /// Has checks find out something of a host.
    async fn set_health(&self, proxy: &str, host: [u8; 4], state: HealthState, error: Option<&str>) {
        let mut health = (*self.handle.health()).clone();
        let known = HostHealth { state, since: Instant::now(), error: error.map(str::to_owned) };
        health.insert((proxy.to_owned(), host.into()), known);
        self.handle.health_changed(health.clone()).await;
        while *self.handle.health() != health {
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.server.await.expect("ends").expect("ends well");
        self.control.stop(false).await.expect("stops");
    }
}

#[tokio::test]
async fn a_gateway_is_built_shown_and_taken_apart() {
    let daemon = Daemon::filled().await;
    insta::assert_json_snapshot!("routes", daemon.get("/v1/routes").await);
    insta::assert_json_snapshot!("tables", daemon.get("/v1/tables").await);
    insta::assert_json_snapshot!("pools", daemon.get("/v1/pools").await);
    insta::assert_json_snapshot!("interfaces", daemon.get("/v1/interfaces").await);
    let change = daemon.make(Method::POST, "/v1/activate", Value::Null).await;
    assert_eq!(change, json!({"revision": 12, "changed": true}));
    let change = daemon.make(Method::POST, "/v1/activate", Value::Null).await;
    assert_eq!(change, json!({"revision": 12, "changed": false}));
    assert!(daemon.memory.state().applied.as_ref().expect("a state").active);

    let replaced = json!({"prefix": "203.0.113.128/25", "via": "host"});
    daemon.make(Method::PUT, "/v1/routes", replaced).await;
    daemon.make(Method::PATCH, "/v1/pools/nat", json!({"ports": "2000-3000"})).await;
    assert_eq!(daemon.get("/v1/pools/nat").await["items"][0]["ports"], "2000-3000");
    for path in [
        "/v1/routes?prefix=203.0.113.7&proto=udp&dport=53",
        "/v1/routes?prefix=203.0.113.0/24&table=servers",
        "/v1/tables/servers/bindings?from=10.0.2.0/24",
        "/v1/tables/servers",
    ] {
        daemon.make(Method::DELETE, path, Value::Null).await;
    }
    daemon.make(Method::POST, "/v1/routes/flush", json!({"table": "main"})).await;
    let six = json!({"host": "2001:db8:1::2"});
    daemon.make(Method::POST, "/v1/eips/198.51.100.50", json!({"host": "10.0.1.2"})).await;
    daemon.make(Method::POST, "/v1/eips/2001%3Adb8%3A%3A50", six).await;
    daemon.make(Method::POST, "/v1/routes", json!({"prefix": "default", "via": "eip"})).await;
    insta::assert_json_snapshot!("eips", daemon.get("/v1/eips").await);
    assert_eq!(daemon.memory.state().applied.as_ref().expect("a state").eips.len(), 2);
    daemon.make(Method::DELETE, "/v1/routes?prefix=default", Value::Null).await;
    for path in ["/v1/eips/198.51.100.50", "/v1/eips/2001:db8:0:0::50"] {
        daemon.make(Method::DELETE, path, Value::Null).await;
    }
    let limit = json!({"from": "10.0.7.0/24", "rate": 200, "concurrent": 1000});
    daemon.make(Method::POST, "/v1/limits/tenant-a", limit).await;
    daemon.make(Method::PATCH, "/v1/limits/tenant-a", json!({"burst": 50, "concurrent": 0})).await;
    daemon.make(Method::POST, "/v1/limits/office", json!({"from": "2001:db8::/48", "per": "prefix"})).await;
    insta::assert_json_snapshot!("limits", daemon.get("/v1/limits").await);
    for path in ["/v1/limits/tenant-a", "/v1/limits/office"] {
        daemon.make(Method::DELETE, path, Value::Null).await;
    }
    for path in ["/v1/pools/nat", "/v1/interfaces/eth0", "/v1/interfaces/eth1"] {
        daemon.make(Method::DELETE, path, Value::Null).await;
    }
    daemon.make(Method::POST, "/v1/deactivate", Value::Null).await;
    assert_eq!(daemon.memory.state().applied, Some(Snapshot::default()));
    daemon.stop().await;
}

#[tokio::test]
async fn routes_are_found_by_prefix_by_covering_prefix_and_by_address() {
    let daemon = Daemon::filled().await;
    let prefixes = async |query: &str| -> Vec<String> {
        let rows = daemon.get(&format!("/v1/routes?{query}")).await;
        let rows: types::List<types::RouteRow> = serde_json::from_value(rows).expect("rows");
        rows.items.iter().map(|row| format!("{} {}", row.table, row.prefix)).collect()
    };
    assert_eq!(prefixes("table=main").await.len(), 4);
    assert_eq!(prefixes("prefix=203.0.113.0/24").await, ["main 203.0.113.0/24", "servers 203.0.113.0/24"]);
    assert_eq!(prefixes("in=203.0.113.128/25").await, ["main 203.0.113.128/25"]);
    assert_eq!(
        prefixes("in=203.0.113.0/24&table=main").await,
        ["main 203.0.113.0/24", "main 203.0.113.7/32", "main 203.0.113.128/25"]
    );
    assert_eq!(
        prefixes("for=203.0.113.200&table=main").await,
        ["main 203.0.113.128/25", "main 203.0.113.0/24"]
    );
    assert_eq!(prefixes("prefix=192.0.2.0/24").await, Vec::<String>::new());
    let decided =
        async |query: &str| daemon.get(&format!("/v1/routes/get?{query}")).await["items"][0].clone();
    assert_eq!(decided("address=203.0.113.200").await["via"], "blackhole");
    assert_eq!(decided("address=203.0.113.7&proto=udp&dport=53").await["via"], "prohibit");
    assert_eq!(decided("address=203.0.113.7&proto=tcp&dport=53").await["via"], "pool nat");
    let bound = decided("address=203.0.113.7&from=10.0.2.9").await;
    assert_eq!(bound["via"], "gateway 10.0.1.2 dev eth1");
    assert_eq!(bound["binding"]["from"], "10.0.2.0/24");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_with_code_status_and_remedy() {
    let daemon = Daemon::filled().await;
    let (post, get, delete) = (Method::POST, Method::GET, Method::DELETE);
    let before = daemon.get("/v1/export").await;
    let cases = [
        (&post, "/v1/routes", r#"{"prefix": "203.0.113.0/24", "via": "direct"}"#),
        (&post, "/v1/routes", r#"{"prefix": "203.0.113.9/24", "via": "direct"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24", "via": "direct", "tabel": "main"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24", "via": "direct", "log": "yes"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24", "via": "direct", "log": true}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/33", "via": "direct"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24""#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24", "via": "proxy squid"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24", "via": "pool nat", "domain": "example.com"}"#),
        (&post, "/v1/routes", r#"{"prefix": "192.0.2.0/24", "via": "pool nat", "dport": "53"}"#),
        (&delete, "/v1/routes?prefix=203.0.113.7", ""),
        (&delete, "/v1/routes?prefix=192.0.2.0/24&tabel=main", ""),
        (&get, "/v1/routes?prefix=192.0.2.0/24&for=192.0.2.1", ""),
        (&get, "/v1/routes?table=mian", ""),
        (&get, "/v1/routes/get?address=192.0.2.1", ""),
        (&get, "/v1/routes/get?address=192.0.2.1&from=2001:db8::1", ""),
        (&post, "/v1/tables/return", r#"{"kind": "boarder"}"#),
        (&post, "/v1/pools/two", r#"{"addresses": ["198.51.100.30"], "rate": 4000000000}"#),
        (&post, "/v1/pools/two", "{}"),
        (&post, "/v1/pools/a%20b", r#"{"addresses": ["198.51.100.30"]}"#),
        (&delete, "/v1/pools/nat", ""),
        (&get, "/v1/pools/nta", ""),
        (&post, "/v1/proxies/squid", "{}"),
        (&post, "/v1/proxies/squid", r#"{"hosts": ["10.0.1.2 weight much"]}"#),
        (&post, "/v1/proxies/squid", r#"{"hosts": ["10.0.1.2"], "check": "tcp"}"#),
        (&post, "/v1/proxies/squid", r#"{"hosts": ["10.0.1.2"], "interval": "now and then"}"#),
        (&post, "/v1/proxies/squid", r#"{"hosts": ["10.0.1.2"], "fail": "pool"}"#),
        (&post, "/v1/proxies/squid", r#"{"hosts": ["10.0.1.2"], "mode": "geneve", "vni": 16777216}"#),
        (&Method::PATCH, "/v1/proxies/squid", r#"{"vni": 7}"#),
        (&Method::PATCH, "/v1/proxies/squid", r#"{"fail": "direct"}"#),
        (&post, "/v1/proxies/squid/drained", r#"{"host": "10.0.1"}"#),
        (&get, "/v1/proxies/squid", ""),
        (&post, "/v1/interfaces/eth2", r#"{"role": "insid"}"#),
        (&get, "/v1/sessions?state=open", ""),
        (&get, "/v1/sessions?sort=size", ""),
        (&get, "/v1/sessions?limit=0", ""),
        (&get, "/v1/sessions/count?by=port", ""),
        (&get, "/v1/sessions?from=10.0.0.1/8", ""),
        (&get, "/v1/limits/tenant-b", ""),
        (&post, "/v1/limits/tenant-b", "{}"),
        (&post, "/v1/limits/tenant-b", r#"{"from": "10.0.7.0/24", "per": "host"}"#),
        (&post, "/v1/groups/team", r#"{"prefixes": ["10.1.0.0/8"]}"#),
        (&post, "/v1/groups/proxy", r#"{"prefixes": ["10.1.0.0/16"]}"#),
        (&Method::PATCH, "/v1/groups/team", r#"{"prefix": ["10.1.0.0/16"]}"#),
        (&get, "/v1/groups/team", ""),
        (&get, "/v1/stats/usage?since=-1", ""),
        (&delete, "/v1/status", ""),
    ];
    let mut said = Vec::new();
    for (method, path, body) in cases {
        let (status, error) = daemon.call(method.clone(), path, body).await;
        let typed: ApiError = serde_json::from_value(error.clone()).expect("an error");
        assert_eq!(status.as_u16(), typed.kind().status(), "{error}");
        assert!(typed.hint.is_some(), "{error} has no remedy");
        said.push(json!({"request": format!("{method} {path} {body}"), "status": status.as_u16(), "exit": typed.kind().exit_code(), "error": error}));
    }
    insta::assert_json_snapshot!("refused", said);
    assert_eq!(daemon.get("/v1/export").await, before, "nothing has changed");
    let large = format!(r#"{{"prefix": "192.0.2.0/24", "via": "{}"}}"#, "x".repeat(2 << 20));
    let (status, error) = daemon.call(post, "/v1/routes", &large).await;
    assert_eq!((status.as_u16(), &error["code"]), (413, &json!("request.too_large")));
    daemon.stop().await;
}

#[tokio::test]
async fn proxies_are_shown_with_the_health_of_their_hosts() {
    let daemon = Daemon::filled().await;
    let squid = json!({"hosts": ["10.0.1.2", "10.0.1.3 weight 2", "10.0.1.4"], "check": "tcp:3129",
                       "interval": "500ms", "fail": "pool nat"});
    daemon.make(Method::POST, "/v1/proxies/squid", squid).await;
    daemon.make(Method::POST, "/v1/proxies/open", json!({"hosts": ["2001:db8::9"]})).await;
    daemon.make(Method::POST, "/v1/proxies/squid/drained", json!({"host": "10.0.1.3,10.0.1.4"})).await;
    daemon.make(Method::DELETE, "/v1/proxies/squid/drained?host=10.0.1.4", Value::Null).await;
    daemon.make(Method::POST, "/v1/routes", json!({"prefix": "198.18.0.0/15", "via": "proxy squid"})).await;
    daemon
        .set_health("squid", [10, 0, 1, 2], HealthState::Down, Some("tcp port 3129: connection refused"))
        .await;
    daemon.memory.state().flows.insert([10, 0, 1, 4].into(), 7);
    let redacted =
        |list: Value| insta::assert_json_snapshot!("proxies", list, {".items[].hosts[].age" => "[age]"});
    redacted(daemon.get("/v1/proxies").await);
    let problems = async || daemon.get("/v1/status").await["items"][0]["problems"].clone();
    let status = daemon.get("/v1/status").await["items"][0].clone();
    assert_eq!(status["problems"], json!([]));
    let warning = "host 10.0.1.2 of proxy `squid` is down: tcp port 3129: connection refused";
    let warned =
        status["warnings"].as_array().is_some_and(|all| all.iter().any(|one| one["message"] == warning));
    assert!(warned, "{status}");
    daemon.set_health("squid", [10, 0, 1, 4], HealthState::Down, Some("icmp echo")).await;
    assert_eq!(
        problems().await[0]["message"],
        "proxy `squid` has no host that is up and not drained: its new flows take the way `pool nat`"
    );
    daemon.make(Method::PATCH, "/v1/proxies/squid", json!({"fail": "closed", "check": "icmp"})).await;
    assert_eq!(
        problems().await[0]["message"],
        "proxy `squid` has no host that is up and not drained: its new flows are dropped (proxy_down)"
    );
    assert_eq!(daemon.get("/v1/proxies/squid").await["items"][0]["check"], "icmp");
    daemon.make(Method::DELETE, "/v1/routes?prefix=198.18.0.0/15", Value::Null).await;
    daemon.make(Method::DELETE, "/v1/proxies/squid", Value::Null).await;
    assert_eq!(problems().await, json!([]));
    daemon.stop().await;
}

#[tokio::test]
async fn counters_of_the_data_plane_are_shown() {
    let daemon = Daemon::filled().await;
    {
        let mut state = daemon.memory.state();
        let counter = |packets| Counter { packets, bytes: packets * 100 };
        let cell = |ingress: &str, egress: Option<&str>, verdict, packets| Traffic {
            ingress: ingress.to_owned(),
            egress: egress.map(str::to_owned),
            verdict,
            counter: counter(packets),
        };
        state.traffic = vec![
            cell("eth1", Some("eth0"), Verdict::Snat, 7),
            cell("eth1", None, Verdict::Drop, 2),
            cell("eth0", Some("eth1"), Verdict::Reply, 5),
        ];
        state.drops.insert(DropReason::NoRoute as u8, counter(2));
        let (key, _): (RouteKey, Route) =
            parse_route_line("203.0.113.0/24 via direct").expect("a route").expect("not empty");
        state.routes.insert(("main".to_owned(), key), counter(7));
        let address = "198.51.100.10".parse().expect("an address");
        state
            .pools
            .insert(address, PoolCounters { opened: 9, closed: 4, attempts: 10, ..PoolCounters::default() });
        state.session_counters[0] =
            SessionCounters { created: 9, closed: 3, expired: 1, killed: 0, ..SessionCounters::default() };
    }
    insta::assert_json_snapshot!("stats_interfaces", daemon.get("/v1/stats/interfaces").await);
    insta::assert_json_snapshot!("stats_pools", daemon.get("/v1/stats/pools").await);
    insta::assert_json_snapshot!("stats_routes", daemon.get("/v1/stats/routes?prefix=203.0.113.0/24").await);
    insta::assert_json_snapshot!("stats_maps", daemon.get("/v1/stats/maps").await);
    let drops = daemon.get("/v1/stats/drops").await;
    assert_eq!(drops["items"].as_array().map(Vec::len), Some(DropReason::ALL.len()));
    assert_eq!(drops["items"][0]["packets"], 2);
    let status = daemon.get("/v1/status").await;
    insta::assert_json_snapshot!("status", status, {
        ".items[0].uptime" => "[uptime]", ".items[0].pid" => "[pid]", ".items[0].version" => "[version]"
    });
    daemon.stop().await;
}

#[tokio::test]
async fn an_unhealthy_gateway_says_what_is_wrong() {
    let daemon = Daemon::filled().await;
    daemon.make(Method::POST, "/v1/interfaces/eth7", json!({"role": "inside"})).await;
    let status = daemon.get("/v1/status").await;
    assert_eq!(status["items"][0]["healthy"], false);
    assert_eq!(status["items"][0]["problems"][0]["message"], "interface `eth7` does not exist");
    daemon.memory.state().unreadable = true;
    let status = daemon.get("/v1/status").await;
    let problem = &status["items"][0]["problems"][0]["message"];
    assert_eq!(problem, "the data plane cannot be read: the maps cannot be read");
    let (code, error) = daemon.call(Method::GET, "/v1/stats/drops", "").await;
    assert_eq!((code.as_u16(), &error["code"]), (500, &json!("internal")));
    daemon.stop().await;
}

#[tokio::test]
async fn sessions_are_filtered_sorted_counted_and_cut() {
    let daemon = Daemon::filled().await;
    let session = |number: u8, proto: u8, bytes: u64| SessionRow {
        proto,
        source: [10, 0, 1, number % 3].into(),
        source_port: 4000 + u16::from(number),
        translated: [198, 51, 100, 10].into(),
        translated_port: 5000,
        destination: [203, 0, 113, 1].into(),
        destination_port: if proto == 1 { 0 } else { 443 },
        pool: Some("nat".to_owned()),
        proxy: (number == 5).then(|| ("squid".to_owned(), [10, 0, 3, 2].into())),
        route: parse_route_line("203.0.113.0/24 via direct")
            .expect("a route")
            .map(|(key, _)| ("main".to_owned(), key)),
        state: if proto == 6 { "established" } else { "replied" },
        age: std::time::Duration::from_millis(1500),
        idle: std::time::Duration::from_millis(250),
        sent: Counter { packets: 1, bytes },
        received: Counter { packets: 1, bytes: 1 },
    };
    let protos = [6, 17, 1, 6, 6, 47];
    daemon.memory.state().sessions = protos
        .iter()
        .zip(0u8..)
        .map(|(proto, number)| session(number, *proto, u64::from(number) * 100))
        .collect();
    insta::assert_json_snapshot!("sessions", daemon.get("/v1/sessions?sort=bytes&limit=2").await);
    let ports = async |query: &str| -> Vec<u16> {
        let rows = daemon.get(&format!("/v1/sessions?{query}")).await;
        let rows: types::List<types::SessionRow> = serde_json::from_value(rows).expect("rows");
        rows.items.iter().map(|row| row.source.port).collect()
    };
    assert_eq!(ports("").await, [4000, 4001, 4002, 4003, 4004, 4005]);
    assert_eq!(ports("sort=bytes&limit=3").await, [4005, 4004, 4003]);
    assert_eq!(ports("proto=tcp").await, [4000, 4003, 4004]);
    assert_eq!(ports("from=10.0.1.1&state=established").await, [4004]);
    assert_eq!(ports("to=192.0.2.0/24").await, [0u16; 0]);
    assert_eq!(ports("proxy=squid").await, [4005]);
    assert_eq!(ports("proxy=other").await, [0u16; 0]);
    assert_eq!(ports("dport=443&pool=nat&limit=1").await, [4000]);
    let counts = async |query: &str| daemon.get(&format!("/v1/sessions/count{query}")).await["items"].clone();
    assert_eq!(counts("").await, json!([{"count": 6}]));
    assert_eq!(counts("?proto=icmp").await, json!([{"count": 1}]));
    assert_eq!(counts("?to=192.0.2.0/24").await, json!([{"count": 0}]));
    assert_eq!(
        counts("?by=proto").await,
        json!([{"proto": "tcp", "count": 3}, {"proto": "icmp", "count": 1}, {"proto": "udp", "count": 1}, {"proto": "47", "count": 1}])
    );
    assert_eq!(counts("?by=pool").await, json!([{"pool": "nat", "count": 6}]));
    assert_eq!(counts("?by=route").await, json!([{"table": "main", "route": "203.0.113.0/24", "count": 6}]));
    assert_eq!(counts("?by=source&limit=1").await, json!([{"source": "10.0.1.0", "count": 2}]));
    let destination = &counts("?by=destination").await[0];
    assert_eq!(
        *destination,
        json!({"proto": "tcp", "destination": {"address": "203.0.113.1", "port": 443}, "count": 3})
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_list_of_prefixes_is_one_change() {
    let daemon = Daemon::filled().await;
    let import = |query: &'static str, text: String| {
        let daemon = &daemon;
        async move { daemon.call(Method::POST, &format!("/v1/routes/import?{query}"), &text).await }
    };
    let line = |number| format!("{}/32 # {number}", std::net::Ipv4Addr::from(0xcb00_0000 + number));
    let list = (0..20_000u32).map(line).collect::<Vec<_>>().join("\n");
    let before = daemon.get("/v1/version").await["revision"].as_u64().expect("a revision");
    let (status, change) = import("via=direct&table=servers", list.clone()).await;
    assert_eq!((status, &change), (StatusCode::OK, &json!({"revision": before + 1, "changed": true})));
    assert_eq!(daemon.get("/v1/tables/servers").await["items"][0]["routes_ipv4"], 20_001);
    let (_, change) = import("via=direct&table=servers", list).await;
    assert_eq!(change["changed"], false, "what is there already is no change");

    // The last line is wrong: nothing changes, although all others are right.
    let wrong = "198.51.100.1\n# remark\n198.51.100.7/24\n".to_owned();
    let (status, refused) = import("via=direct&table=servers&prune=true", wrong).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused["message"], "line 3: prefix `198.51.100.7/24` has host bits set");
    assert_eq!(daemon.get("/v1/tables/servers").await["items"][0]["routes_ipv4"], 20_001);

    // Routes with another target stay where the rest goes.
    let (status, _) = import("via=direct&table=servers&prune=true", "192.0.2.0/24".to_owned()).await;
    assert_eq!(status, StatusCode::OK);
    let routes = daemon.get("/v1/routes?table=servers").await;
    let shown: Vec<_> =
        routes["items"].as_array().expect("a list").iter().map(|row| &row["prefix"]).collect();
    assert_eq!(shown, ["192.0.2.0/24", "203.0.113.0/24"]);

    // A pool without an address of that family: named by the prefix.
    let (status, refused) = import("via=pool%20nat", "192.0.2.0/24\n2001:db8:7::/48".to_owned()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let message = "table main, route 2001:db8:7::/48: pool `nat` has no IPv6 address for the IPv6 prefix 2001:db8:7::/48";
    assert_eq!(refused["message"], message);
    let (status, refused) = import("via=nowhere", String::new()).await;
    assert_eq!((status, refused["field"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("via")));
    daemon.stop().await;
}

#[tokio::test]
async fn a_border_table_is_for_replies() {
    let daemon = Daemon::filled().await;
    daemon.make(Method::POST, "/v1/tables/return", json!({"kind": "border"})).await;
    let lead = json!({"table": "return", "prefix": "10.0.2.0/24", "via": "gateway 10.0.1.2 dev eth1"});
    daemon.make(Method::POST, "/v1/routes", lead).await;
    for (path, body, message) in [
        (
            "tables/other",
            json!({"kind": "border"}),
            "table `other` would be a second border table beside `return`",
        ),
        (
            "tables/return/bindings",
            json!({"from": "10.0.2.0/25"}),
            "source 10.0.2.0/25 cannot be bound to border table `return`: it decides replies",
        ),
        (
            "routes",
            json!({"table": "return", "prefix": "10.0.3.0/24", "via": "pool nat"}),
            "target `pool nat` of border table `return` is none for replies",
        ),
        (
            "routes",
            json!({"table": "return", "prefix": "10.0.3.0/24", "via": "direct", "proto": "tcp"}),
            "route 10.0.3.0/24 proto tcp of border table `return` chooses by more than the client's address",
        ),
    ] {
        let (status, refused) = daemon.call(Method::POST, &format!("/v1/{path}"), &body.to_string()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
        let said = refused["message"].as_str().expect("a message");
        assert!(said.contains(message), "{said}");
    }
    daemon.stop().await;
}
