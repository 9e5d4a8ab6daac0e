//! What is read and cannot be configured: sessions, the state of everything, statistics.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Count, InterfaceRow, PoolAddressRow, ProxyRow, TableRow};

// ---- sessions -----------------------------------------------------------------------------------------

/// Which sessions `session show` and `session count` look at: those that match every field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionQuery {
    /// Source prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Destination prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Protocol: `tcp`, `udp`, `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Proxy, whichever host of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// State, see [`SessionRow::state`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// `session show`: largest first, by `bytes`, `packets` or `age`. In the order of the table if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    /// `session show`: at most that many; [`SessionQuery::DEFAULT_LIMIT`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// `session count`: `pool`, `route`, `proto`, `source` or `destination`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

impl SessionQuery {
    /// Sessions shown when no limit is given: what fits a screen buffer, not a million.
    pub const DEFAULT_LIMIT: u64 = 1_000;
    /// The largest limit: what the daemon holds in memory for one answer.
    pub const MAX_LIMIT: u64 = 100_000;
}

/// One end of a session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Port; the identifier of an ICMP query, 0 on its answering side.
    pub port: u16,
}

/// What a session goes through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionProxy {
    /// Proxy.
    pub name: String,
    /// The host of it.
    pub host: IpAddr,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    /// `tcp`, `udp`, `icmp`, or the protocol number.
    pub proto: String,
    /// The inside host.
    pub source: Endpoint,
    /// What the outside sees of it.
    pub translated: Endpoint,
    /// The server.
    pub destination: Endpoint,
    /// Pool of the translated address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The proxy that it goes through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<SessionProxy>,
    /// Table of the route that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Prefix of the route that allowed it; absent once the route is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<IpNet>,
    /// `opening`, `established`, `closing`, `closed` for TCP; `active` or `replied` otherwise.
    pub state: String,
    /// Seconds since it began.
    pub age: f64,
    /// Seconds since its last packet.
    pub idle: f64,
    /// From the inside.
    pub sent: Count,
    /// From the outside.
    pub received: Count,
}

/// What `session whohad` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhohadQuery {
    /// Address of a pool.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol: `tcp`, `udp`, `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// When, RFC 3339.
    pub at: String,
}

/// A session that had an address and a port of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhohadRow {
    /// `tcp`, `udp`, `icmp`, or the protocol number.
    pub proto: String,
    /// The inside host.
    pub source: Endpoint,
    /// What the outside saw of it.
    pub translated: Endpoint,
    /// The server.
    pub destination: Endpoint,
    /// When it began, RFC 3339, UTC.
    pub start: String,
    /// When it was removed; absent where it is there, or its end was not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Whether it is there.
    pub live: bool,
    /// Table of the route that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The route that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A number of sessions, with the key of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCount {
    /// Group `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Group `route`: its table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Group `route`: its prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<IpNet>,
    /// Group `proto`, and part of group `destination`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Group `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Group `destination`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Endpoint>,
    /// How many.
    pub count: u64,
}

// ---- state and statistics -----------------------------------------------------------------------------

/// `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the gateway.
    pub name: String,
    /// Version of the daemon.
    pub version: String,
    /// Whether what no route allows is dropped.
    pub active: bool,
    /// Whether everything is as it should be: no [`Status::problems`].
    pub healthy: bool,
    /// What is wrong now. Not empty: exit code 9.
    pub problems: Vec<Notice>,
    /// What is worth knowing and does no harm now.
    pub warnings: Vec<Notice>,
    /// Seconds since the daemon started.
    pub uptime: f64,
    /// Process id of the daemon.
    pub pid: u32,
    /// The configuration file.
    pub config: ConfigStatus,
    /// Interfaces.
    pub interfaces: Vec<InterfaceRow>,
    /// Tables.
    pub tables: Vec<TableRow>,
    /// Addresses of pools.
    pub pools: Vec<PoolAddressRow>,
    /// Proxies, and how their hosts are.
    #[serde(default)]
    pub proxies: Vec<ProxyRow>,
    /// Sessions.
    pub sessions: SessionUse,
    /// Drops since the data plane was made; only reasons that were seen.
    pub drops: Vec<DropRow>,
}

/// Something an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// One lower-case sentence.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How the running state relates to the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Path.
    pub file: String,
    /// Whether the running state differs from what the file said when the daemon started.
    pub differs: bool,
    /// Whether the file has changed since run-time state began to win over it.
    pub changed: bool,
    /// Whether the last change could be put in force.
    pub last_apply_success: bool,
}

/// How many sessions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUse {
    /// All of them.
    pub total: u64,
    /// TCP.
    pub tcp: u64,
    /// UDP.
    pub udp: u64,
    /// ICMP queries.
    pub icmp: u64,
    /// Other protocols.
    pub other: u64,
    /// How many there may be of each family.
    pub capacity: u64,
}

/// Drops of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// Reason, `snake_case`.
    pub reason: String,
    /// `policy`, `resource`, `limit`, `packet`, `network` or `internal`.
    pub class: String,
    /// How many.
    #[serde(flatten)]
    pub count: Count,
    /// One sentence for the operator.
    pub help: String,
}

/// `stats destinations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationQuery {
    /// Rows at most; if absent, 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Sources of each row at most; if absent, 3. 0 spares the walk through the session table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<u32>,
}

impl DestinationQuery {
    /// Sources shown when no number is given.
    pub const DEFAULT_SOURCES: u32 = 3;
    /// Destinations shown when no limit is given.
    pub const DEFAULT_LIMIT: u32 = 20;
}

/// What an address of a pool has opened towards a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRow {
    /// Pool.
    pub pool: String,
    /// Address of the pool.
    pub address: IpAddr,
    /// `tcp`, `udp`, `icmp`, or the protocol number.
    pub proto: String,
    /// Server address, and port, where the protocol has any.
    pub destination: Endpoint,
    /// Sessions there are.
    pub sessions: u64,
    /// Sessions there may be: as many as the address has ports, or as `concurrent` of the pool says.
    pub room: u64,
    /// Sessions that may be opened beside them.
    #[serde(default)]
    pub headroom: u64,
    /// Connections admitted in the last second.
    #[serde(default)]
    pub connections_per_second: u64,
    /// Seconds until there is no room, if sessions become more as they did in the last second; absent where they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exhausted_in: Option<u64>,
    /// Connections that may be opened at once, right now; absent where the pool has no rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Connections admitted since the destination was last without any.
    pub admitted: u64,
    /// Connections refused by this address because of the rate; another one may have admitted them.
    pub over_rate: u64,
    /// Connections refused by this address because there were too many at a time.
    pub over_concurrent: u64,
    /// The sources with most of the sessions.
    #[serde(default)]
    pub sources: Vec<SourceShare>,
}

/// What a source has of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceShare {
    /// Inside address.
    pub address: IpAddr,
    /// Its sessions.
    pub sessions: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRow {
    /// Name.
    pub name: String,
    /// Elements in use.
    pub entries: u64,
    /// Elements it can hold.
    pub capacity: u64,
}

/// `export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The running state as a configuration file (TOML).
    pub config: String,
}

/// `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the daemon.
    pub version: String,
    /// Version of the map layouts.
    pub abi: u32,
}
