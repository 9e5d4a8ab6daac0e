//! What goes over the control socket.
//!
//! Requests carry the operator's words (`"203.0.113.0/24"`, `"pool nat"`) as strings: the daemon parses them,
//! so that every client gets the same grammar and an error that names the field. Rows carry values.
//! Enumerations that may grow (targets, verdicts, reasons, states) are strings in rows, so that an older
//! client can show what a newer daemon says. Writes reject unknown fields, reads tolerate them.

mod explain;
mod limit;
mod monitor;
mod observed;
mod proxy;
mod revision;
mod usage;

use std::net::IpAddr;

use gateway_common::counter::Counter;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{AttachMode, Mapping, PortRange, Proto, Refuse, Role, TableKind};

pub use explain::{ExplainLive, ExplainQuery, ExplainRow, ExplainStep};
pub use limit::{LimitRequest, LimitRow};
pub use monitor::{MonitorLine, MonitorQuery};
pub use observed::{
    ConfigStatus, DestinationQuery, DestinationRow, DropRow, Endpoint, Export, MapRow, Notice, SessionCount,
    SessionProxy, SessionQuery, SessionRow, SessionUse, SourceShare, Status, Version, WhohadQuery, WhohadRow,
};

pub use proxy::{ProxyDrainRequest, ProxyHostRow, ProxyRequest, ProxyRow};
pub use revision::{ApplyRequest, ConfirmationRow, DiffRow, RevisionRow, UndoRequest};
pub use usage::{GroupRequest, GroupRow, UsageQuery, UsageRow};

/// The answer to a read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List<T> {
    /// `gateway.NOUN/v1`.
    pub schema: String,
    /// Revision of the state that was read.
    pub revision: u64,
    /// How many items there are, where a limit keeps some of them out of `items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// The items.
    pub items: Vec<T>,
}

/// An item of a [`List`].
pub trait Row {
    /// Schema of the list.
    const SCHEMA: &'static str;
}

impl<T: Row> List<T> {
    /// The list of `items` at `revision`.
    pub fn new(revision: u64, items: Vec<T>) -> Self {
        Self { schema: T::SCHEMA.to_owned(), revision, total: None, items }
    }
}

macro_rules! schemas {
    ($($row:ty => $schema:literal;)+) => { $(impl Row for $row { const SCHEMA: &'static str = $schema; })+ };
}

schemas! {
    RouteRow => "gateway.routes/v1";
    RouteMatch => "gateway.route/v1";
    TableRow => "gateway.tables/v1";
    PoolRow => "gateway.pools/v1";
    EipRow => "gateway.eips/v1";
    ProxyRow => "gateway.proxies/v1";
    LimitRow => "gateway.limits/v1";
    GroupRow => "gateway.groups/v1";
    InterfaceRow => "gateway.interfaces/v1";
    SessionRow => "gateway.sessions/v1";
    SessionCount => "gateway.session_counts/v1";
    WhohadRow => "gateway.whohad/v1";
    Status => "gateway.status/v1";
    DropRow => "gateway.stats.drops/v1";
    PoolAddressRow => "gateway.stats.pools/v1";
    DestinationRow => "gateway.stats.destinations/v1";
    InterfaceStats => "gateway.stats.interfaces/v1";
    MapRow => "gateway.stats.maps/v1";
    UsageRow => "gateway.stats.usage/v1";
    ExplainRow => "gateway.explain/v1";
    Export => "gateway.export/v1";
    ConfirmationRow => "gateway.confirmation/v1";
    RevisionRow => "gateway.history/v1";
    DiffRow => "gateway.diff/v1";
    Version => "gateway.version/v1";
}

/// The answer to a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Revision in force.
    pub revision: u64,
    /// `false` where things were as asked already; the revision did not move then.
    pub changed: bool,
    /// What follows from the change and may surprise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Change {
    /// Nothing about it may surprise.
    pub fn new(revision: u64, changed: bool) -> Self {
        Self { revision, changed, warnings: Vec::new() }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl From<Counter> for Count {
    fn from(counter: Counter) -> Self {
        Self { packets: counter.packets, bytes: counter.bytes }
    }
}

// ---- routes -------------------------------------------------------------------------------------------

/// `route add` and `route replace`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRequest {
    /// Destination: prefix, address (a prefix of full length) or `default` (`0.0.0.0/0`).
    pub prefix: String,
    /// Target, as in `direct`, `pool NAME`, `gateway ADDR [dev IF]`.
    pub via: String,
    /// Table; `main` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Destination port or `LOW-HIGH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<String>,
    /// Refused as unsupported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Whether sessions of the route are logged.
    #[serde(default)]
    pub log: bool,
    /// The operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// `route del`: names exactly one route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSelector {
    /// Destination, as in [`RouteRequest::prefix`].
    pub prefix: String,
    /// Table; `main` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Protocol of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Destination ports of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<String>,
}

/// `route import`: the query; the body is text with a prefix a line, where `#` begins a remark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteImport {
    /// Target of all prefixes, as in [`RouteRequest::via`].
    pub via: String,
    /// Table; `main` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Whether other routes of the table with this target, and without `proto` and `dport`, are removed.
    #[serde(default)]
    pub prune: bool,
}

/// `route flush`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFlush {
    /// Table that loses all its routes.
    pub table: String,
}

/// `route show`: at most one of `prefix`, `in` and `for`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteQuery {
    /// Routes of exactly this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Routes of this prefix and of those inside it.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Routes that cover this address, the one that wins first.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub covering: Option<String>,
    /// Only this table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Whether rows carry counters.
    #[serde(default)]
    pub counters: bool,
}

/// `route get`: which route decides a packet. Routes with selectors match only what is given here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteGet {
    /// Destination address.
    pub address: String,
    /// Source address, which selects the table; table `main` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Table.
    pub table: String,
    /// Destination.
    pub prefix: IpNet,
    /// Protocol, if the route is for one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// Destination ports, if the route is for some only: `"443"` or `"8000-8999"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<PortRange>,
    /// Target, as the operator writes it.
    pub via: String,
    /// Whether sessions of the route are logged.
    pub log: bool,
    /// The operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Packets, where counters were asked for and the route has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Bytes, as [`RouteRow::packets`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Whether counters were asked for and the route shares its own with others of the table and kind of target: there
    /// are more routes than counters. `table show` has the sums.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_counter: bool,
    /// Whether it is a system route: there as long as an inside interface has an address in the subnet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub system: bool,
    /// Why it decides, or does not; for `route show for` and `route get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The route that decides, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteMatch {
    /// The route.
    #[serde(flatten)]
    pub route: RouteRow,
    /// The binding that selected the table; absent where it is `main` for want of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<BindingRow>,
    /// The other routes of the table that cover the address, in the order in which they are asked.
    #[serde(default)]
    pub others: Vec<RouteRow>,
}

// ---- tables -------------------------------------------------------------------------------------------

/// `table add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRequest {
    /// `egress` (if absent) or `border`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// `table bind` and `table unbind`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingRequest {
    /// Source prefix.
    pub from: String,
    /// Inside interface, if only that one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRow {
    /// Name.
    pub name: String,
    /// What it decides.
    pub kind: TableKind,
    /// Sources it serves.
    pub bindings: Vec<BindingRow>,
    /// Routes of both families.
    pub routes: u64,
    /// IPv4 routes.
    pub routes_ipv4: u64,
    /// IPv6 routes.
    pub routes_ipv6: u64,
    /// Packets that its routes decided, deleted ones included.
    #[serde(default)]
    pub packets: u64,
    /// Bytes of those packets.
    #[serde(default)]
    pub bytes: u64,
}

/// A binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingRow {
    /// Source prefix.
    pub from: IpNet,
    /// Inside interface, if only that one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
}

// ---- pools --------------------------------------------------------------------------------------------

/// `pool add`, which needs `addresses`, and `pool set`, where what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRequest {
    /// Addresses or prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    /// Ports of each address, `LOW-HIGH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// New connections per second of each address to each destination; 0: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// How many of them may come at once; if absent: those of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Connections at a time of each address to each destination; 0: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// `endpoint-dependent` (the default) or `endpoint-independent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<String>,
    /// Largest TCP segment that its connections announce, bytes; 0: what fits the links of both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss: Option<u32>,
    /// What a client is told whose connection it cannot take: `drop` (the default: nothing), `reset` or `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

/// `pool drain`, `pool undrain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Addresses or prefixes, separated by commas.
    pub address: String,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Name.
    pub name: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of each address: `"1024-65535"`.
    pub ports: PortRange,
    /// Those of the addresses that take no new sessions.
    #[serde(default)]
    pub drained: Vec<IpAddr>,
    /// Mapping of new flows: `endpoint-dependent` or `endpoint-independent`.
    #[serde(default)]
    pub mapping: Mapping,
    /// Largest TCP segment that its connections announce, bytes; 0: what fits the links of both sides.
    #[serde(default)]
    pub mss: u16,
    /// What a client is told whose connection it cannot take: `drop`, `reset` or `icmp`.
    #[serde(default)]
    pub refuse: Refuse,
    /// New connections per second of each address to each destination; 0: any number.
    #[serde(default)]
    pub rate: u32,
    /// How many of them may come at once.
    #[serde(default)]
    pub burst: u32,
    /// Connections at a time of each address to each destination; 0: any number.
    #[serde(default)]
    pub concurrent: u32,
}

/// An address of a pool, and how much of it is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddressRow {
    /// Pool.
    pub pool: String,
    /// Address.
    pub address: IpAddr,
    /// Ports the pool may use on it, for every destination.
    pub ports: u64,
    /// Sessions that hold a port of it.
    pub sessions: u64,
    /// New flows that asked for a port.
    pub connection_attempts: u64,
    /// New flows that were answered by the destination.
    pub connections_established: u64,
    /// New flows for which no port was free.
    pub port_allocation_errors: u64,
    /// New flows refused because every address of the pool had opened too many too fast towards their destination.
    #[serde(default)]
    pub over_rate: u64,
    /// New flows refused because every address of the pool had too many at a time towards their destination.
    #[serde(default)]
    pub over_concurrent: u64,
    /// Sessions removed because they were idle.
    pub idle_timeouts: u64,
    /// Whether it takes no new sessions.
    #[serde(default)]
    pub drained: bool,
}

// ---- EIPs ---------------------------------------------------------------------------------------------

/// `eip add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EipRequest {
    /// The inside host that gets the address.
    pub host: String,
}

/// An EIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EipRow {
    /// Outside address.
    pub address: IpAddr,
    /// The inside host it is mapped to.
    pub host: IpAddr,
}

// ---- interfaces ---------------------------------------------------------------------------------------

/// `interface add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceRequest {
    /// `inside`, `outside` or `both`.
    pub role: String,
    /// `auto` (if absent), `native` or `generic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRow {
    /// Device name.
    pub name: String,
    /// What it faces.
    pub role: Role,
    /// How it should be attached.
    pub mode: AttachMode,
    /// How it is attached: `native` or `generic`; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<String>,
    /// Ifindex; absent while there is no such device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
}

/// Traffic of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStats {
    /// Device name.
    pub name: String,
    /// What came in: the sum of the verdicts with direction `in`.
    pub received: Count,
    /// What the gateway sent out of it: the sum of the verdicts with direction `out`.
    pub sent: Count,
    /// What became of it, by direction and verdict; only what was seen.
    pub verdicts: Vec<VerdictRow>,
}

/// Packets of one direction and verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRow {
    /// `in`: packets that came in here; `out`: packets that left here.
    pub direction: String,
    /// What became of them.
    pub verdict: String,
    /// How many.
    #[serde(flatten)]
    pub count: Count,
}
