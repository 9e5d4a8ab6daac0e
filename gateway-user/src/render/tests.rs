//! Golden output of every row: the table and the JSON of one and the same list.

use insta::assert_snapshot;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Columns, Grid, Paint, proxy, status};
use crate::api::types::{
    DestinationRow, DropRow, EipRow, InterfaceRow, InterfaceStats, LimitRow, List, MapRow, PoolAddressRow,
    PoolRow, ProxyRow, RouteMatch, RouteRow, SessionCount, SessionRow, Status, TableRow,
};

/// Reads a list as it comes from the daemon, and shows it in both forms.
fn shown<T: Columns + DeserializeOwned + Serialize>(items: &Value) -> String {
    let list: List<T> =
        serde_json::from_value(json!({ "schema": "gateway.test/v1", "revision": 42, "items": items }))
            .expect("a list");
    let table = Grid::new(&list.items).print(true, Paint::new(false));
    let json: Vec<String> =
        list.items.iter().map(|item| serde_json::to_string(item).expect("json")).collect();
    format!("{table}\n{}", json.join("\n"))
}

fn count(packets: u64, bytes: u64) -> Value {
    json!({ "packets": packets, "bytes": bytes })
}

#[test]
fn routes() {
    assert_snapshot!(shown::<RouteRow>(&json!([
        { "table": "main", "prefix": "0.0.0.0/0", "via": "gateway 198.51.100.1 dev eth0", "log": false },
        { "table": "main", "prefix": "192.0.2.53/32", "proto": "udp", "dport": "53", "via": "pool nat",
          "log": true, "comment": "the resolver" },
        { "table": "servers", "prefix": "2001:db8::/32", "proto": "tcp", "dport": "8000-8999",
          "via": "blackhole", "log": false },
    ])));
}

#[test]
fn routes_with_counters() {
    assert_snapshot!(shown::<RouteRow>(&json!([
        { "table": "main", "prefix": "203.0.113.0/24", "via": "pool nat", "log": false, "packets": 1_234_567,
          "bytes": 987_654_321 },
        { "table": "main", "prefix": "203.0.113.7/32", "via": "prohibit", "log": false },
    ])));
}

#[test]
fn the_route_that_decides() {
    let rows = json!([
        { "table": "servers", "prefix": "203.0.113.0/24", "via": "pool nat", "log": false, "why": "decides",
          "binding": { "from": "10.0.2.0/24", "iif": "eth1" },
          "others": [
              { "table": "servers", "prefix": "0.0.0.0/0", "via": "blackhole", "log": false,
                "why": "has a shorter prefix" },
          ] },
    ]);
    let matches: Vec<RouteMatch> = serde_json::from_value(rows).expect("rows");
    assert_snapshot!(super::ruling(&matches).print(true, Paint::new(false)));
}

#[test]
fn tables() {
    assert_snapshot!(shown::<TableRow>(&json!([
        { "name": "main", "kind": "egress", "bindings": [], "routes": 3, "routes_ipv4": 2, "routes_ipv6": 1 },
        { "name": "servers", "kind": "egress", "routes": 100_000, "routes_ipv4": 100_000, "routes_ipv6": 0,
          "bindings": [{ "from": "10.0.2.0/24" }, { "from": "10.0.3.0/24", "iif": "eth1" }] },
    ])));
}

#[test]
fn pools() {
    assert_snapshot!(shown::<PoolRow>(&json!([
        { "name": "nat", "addresses": ["198.51.100.10", "198.51.100.11"], "ports": "1024-65535" },
        { "name": "other", "addresses": ["198.51.100.20"], "ports": "20000-29999" },
    ])));
}

#[test]
fn eips() {
    assert_snapshot!(shown::<EipRow>(&json!([
        { "address": "198.51.100.50", "host": "10.0.1.2" },
        { "address": "2001:db8:100::50", "host": "2001:db8:1::2" },
    ])));
}

#[test]
fn limits() {
    assert_snapshot!(shown::<LimitRow>(&json!([
        { "name": "tenant-a", "from": "10.0.7.0/24", "per": "source", "rate": 200, "burst": 50,
          "concurrent": 1000, "sources": 12, "sessions": 3400, "most": 1000, "admitted": 90_000,
          "over_rate": 12, "over_concurrent": 310 },
        { "name": "trusted", "from": "2001:db8:7::/48", "per": "prefix", "rate": 0, "burst": 0,
          "concurrent": 0, "sources": 1, "sessions": 8, "most": 8, "admitted": 8,
          "over_rate": 0, "over_concurrent": 0 },
    ])));
}

#[test]
fn destinations() {
    assert_snapshot!(shown::<DestinationRow>(&json!([
        { "pool": "nat", "address": "198.51.100.10", "proto": "tcp",
          "destination": { "address": "203.0.113.10", "port": 443 }, "sessions": 54_000, "room": 55_000,
          "headroom": 1_000, "connections_per_second": 870, "exhausted_in": 83,
          "sources": [{ "address": "10.0.1.2", "sessions": 41_000 }, { "address": "10.0.1.9", "sessions": 700 }],
          "tokens": 0, "admitted": 120_000, "over_rate": 310, "over_concurrent": 0 },
        { "pool": "nat", "address": "198.51.100.11", "proto": "udp",
          "destination": { "address": "2001:db8:f::1", "port": 53 }, "sessions": 12, "room": 64_512,
          "admitted": 40, "over_rate": 0, "over_concurrent": 0 },
    ])));
}

fn pool_addresses() -> Value {
    json!([
        { "pool": "nat", "address": "198.51.100.10", "ports": 64512, "sessions": 1200,
          "connection_attempts": 90_000, "connections_established": 89_000, "port_allocation_errors": 0,
          "idle_timeouts": 450 },
        { "pool": "nat", "address": "198.51.100.11", "ports": 64512, "sessions": 64512,
          "connection_attempts": 190_000, "connections_established": 180_000,
          "port_allocation_errors": 17, "idle_timeouts": 12 },
    ])
}

#[test]
fn pool_statistics() {
    assert_snapshot!(shown::<PoolAddressRow>(&pool_addresses()));
}

fn attached() -> Value {
    json!([
        { "name": "eth0", "role": "outside", "mode": "auto", "attached": "native", "index": 2 },
        { "name": "eth1", "role": "inside", "mode": "generic", "attached": "generic", "index": 3 },
        { "name": "eth2", "role": "both", "mode": "native", "index": 4 },
        { "name": "eth9", "role": "inside", "mode": "auto" },
    ])
}

#[test]
fn interfaces() {
    assert_snapshot!(shown::<InterfaceRow>(&attached()));
}

#[test]
fn interface_statistics() {
    assert_snapshot!(shown::<InterfaceStats>(&json!([
        { "name": "eth0", "received": count(980, 1_400_000), "sent": count(1000, 80_000), "verdicts": [
            { "direction": "in", "verdict": "reply", "packets": 970, "bytes": 1_390_000 },
            { "direction": "in", "verdict": "drop", "packets": 10, "bytes": 10_000 },
            { "direction": "out", "verdict": "snat", "packets": 1000, "bytes": 80_000 },
        ] },
        { "name": "eth1", "received": count(0, 0), "sent": count(0, 0), "verdicts": [] },
    ])));
}

#[test]
fn sessions() {
    assert_snapshot!(shown::<SessionRow>(&json!([
        { "proto": "tcp", "source": { "address": "10.0.1.2", "port": 40000 },
          "translated": { "address": "198.51.100.10", "port": 40000 },
          "destination": { "address": "203.0.113.7", "port": 443 }, "pool": "nat", "table": "main",
          "route": "203.0.113.0/24", "state": "established", "age": 7441.5, "idle": 0.25,
          "sent": count(10, 1400), "received": count(2000, 3_000_000) },
        { "proto": "icmp", "source": { "address": "2001:db8::2", "port": 7 },
          "translated": { "address": "2001:db8:1::1", "port": 7 },
          "destination": { "address": "2001:db8:2::3", "port": 0 }, "state": "active",
          "proxy": { "name": "squid", "host": "10.0.3.2" }, "age": 3.0, "idle": 3.0,
          "sent": count(1, 98), "received": count(0, 0) },
    ])));
}

#[test]
fn session_counts() {
    let total = shown::<SessionCount>(&json!([{ "count": 12 }]));
    let by_route = shown::<SessionCount>(&json!([
        { "table": "main", "route": "203.0.113.0/24", "count": 10 },
        { "table": "main", "route": "192.0.2.0/24", "count": 2 },
    ]));
    let by_destination = shown::<SessionCount>(&json!([
        { "proto": "tcp", "destination": { "address": "203.0.113.7", "port": 443 }, "count": 12 },
    ]));
    assert_snapshot!([total, by_route, by_destination].join("\n\n"));
}

fn dropped() -> Value {
    json!([
        { "reason": "no_route", "class": "policy", "packets": 17, "bytes": 1462,
          "help": "The gateway is active and no route of the source's table covers the destination." },
        { "reason": "pool_exhausted", "class": "resource", "packets": 3, "bytes": 180,
          "help": "No port of any address of the pool is free for this destination: add addresses to the pool." },
    ])
}

#[test]
fn proxies() {
    let list: List<ProxyRow> =
        serde_json::from_value(json!({ "schema": "gateway.proxies/v1", "revision": 42, "items": proxied() }))
            .expect("a list");
    assert_snapshot!(proxy::grid(&list.items).print(true, Paint::new(false)));
}

fn proxied() -> Value {
    json!([
        { "name": "squid", "mode": "l2", "check": "tcp:3129", "interval": 1.0, "fail": "pool nat", "hosts": [
            { "address": "10.0.1.2", "weight": 1, "drained": false, "state": "up", "age": 7441.0, "up": true,
              "flows": 1200 },
            { "address": "10.0.1.3", "weight": 2, "drained": true, "state": "unknown", "age": 0.0, "up": true,
              "flows": 3 },
            { "address": "10.0.1.4", "weight": 2, "drained": false, "state": "down", "age": 3.0, "up": false,
              "error": "tcp port 3129: connection refused", "flows": 0 },
        ] },
        { "name": "open", "mode": "vxlan", "vni": 7, "check": "none", "interval": 1.0, "fail": "closed", "hosts": [
            { "address": "2001:db8::9", "weight": 1, "drained": false, "state": "unchecked", "up": true,
              "flows": 0 },
        ] },
    ])
}

#[test]
fn drops() {
    assert_snapshot!(shown::<DropRow>(&dropped()));
}

#[test]
fn maps() {
    assert_snapshot!(shown::<MapRow>(&json!([
        { "name": "SESSIONS_V4", "entries": 950_000, "capacity": 1_048_576 },
        { "name": "ROUTES_V4", "entries": 12, "capacity": 1_048_576 },
    ])));
}

/// The status of a gateway with everything an operator could meet.
fn troubled() -> Value {
    json!({
        "name": "gw-1", "version": "0.1.0", "active": true, "healthy": false, "uptime": 273_600.0, "pid": 812,
        "problems": [{ "message": "interface `eth9` does not exist", "hint": "create it, or `gwctl interface del eth9`" }],
        "warnings": [{ "message": "no session can be logged: there is no access log" }],
        "config": { "file": "/etc/gateway/gateway.toml", "differs": true, "changed": true,
                    "last_apply_success": true },
        "interfaces": attached(),
        "tables": [{ "name": "main", "kind": "egress", "bindings": [], "routes": 3, "routes_ipv4": 2,
                     "routes_ipv6": 1 }],
        "pools": pool_addresses(), "proxies": proxied(),
        "sessions": { "total": 65712, "tcp": 60000, "udp": 5700, "icmp": 12, "other": 0, "capacity": 1_048_576 },
        "drops": dropped(),
    })
}

fn fresh() -> Value {
    json!({
        "name": "gateway", "version": "0.1.0", "active": false, "healthy": true, "uptime": 2.0, "pid": 812,
        "problems": [], "warnings": [],
        "config": { "file": "/etc/gateway/gateway.toml", "differs": false, "changed": false,
                    "last_apply_success": true },
        "interfaces": [], "tables": [], "pools": [], "drops": [],
        "sessions": { "total": 0, "tcp": 0, "udp": 0, "icmp": 0, "other": 0, "capacity": 1_048_576 },
    })
}

#[test]
fn the_status_screen() {
    let screens = [troubled(), fresh()].map(|item| {
        let list: List<Status> =
            serde_json::from_value(json!({ "schema": "gateway.status/v1", "revision": 42, "items": [item] }))
                .expect("a status");
        let paint = Paint::new(false);
        let brief = status::brief(&list, &list.items[0], paint);
        format!("{brief}\n{}", status::screen(&list, &list.items[0], paint))
    });
    assert_snapshot!(screens.join("\n----\n"));
}
