//! What the gateway is told to be: plain, serialisable, compared by value. No kernel, no sockets.

pub mod access_log;
pub mod eip;
pub mod error;
pub mod group;
pub mod interface;
pub mod limit;
pub mod pool;
pub mod prefix;
pub mod proxy;
#[cfg(test)]
mod reference;
pub mod route;
pub mod routes;
pub mod table;
pub mod validate;
pub mod words;

use std::{collections::BTreeMap, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use access_log::{AccessLog, Fsync, Sink};
pub use eip::Eip;
pub use error::{Fault, ValueError};
pub use group::Group;
pub use interface::{AttachMode, Interface, Role};
pub use limit::{Limit, Per};
pub use pool::{LimitChange, Mapping, PerDestination, Pool, PortRange, Refuse};
pub use proxy::{Check, Fail, Proxy, ProxyHost, ProxyMode};
pub use route::{Proto, Route, RouteKey, RouteWords, Selector, Target};
pub use routes::{Difference, Routes};
pub use table::{Binding, Table, TableKind};
pub use validate::{Subject, Violation, validate, validate_change};

/// The table that serves a source without a binding.
pub const MAIN_TABLE: &str = "main";

/// The whole desired state. Immutable once shared; a change makes a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Name of this gateway, for logs and metrics.
    pub name: String,
    /// Whether what no route allows is dropped.
    pub active: bool,
    /// Sizes fixed when the maps are made.
    pub capacity: Capacity,
    /// Idle times.
    pub timeouts: Timeouts,
    /// What clients get for TCP segments that belong to no session.
    #[serde(default)]
    pub no_session: NoSession,
    /// Interfaces by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// EIPs by outside address.
    #[serde(default)]
    pub eips: BTreeMap<IpAddr, Eip>,
    /// Proxies by name.
    #[serde(default)]
    pub proxies: BTreeMap<String, Proxy>,
    /// Limits of sources by name.
    #[serde(default)]
    pub limits: BTreeMap<String, Limit>,
    /// Groups of usage by name.
    #[serde(default)]
    pub groups: BTreeMap<String, Group>,
    /// The access log, if there is one.
    #[serde(default)]
    pub access_log: Option<AccessLog>,
    /// Tables by name; [`MAIN_TABLE`] always exists.
    pub tables: BTreeMap<String, Arc<Table>>,
}

/// Sizes fixed when the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Sessions of each family.
    pub sessions: u32,
    /// Prefixes of each table and family.
    pub routes: u32,
    /// TCP sessions of both families that are not established; `None`: a quarter of `sessions`. The only one
    /// that may change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open: Option<u32>,
}

impl Capacity {
    /// How many TCP sessions of both families may be half open.
    pub fn half_open(&self) -> u32 {
        self.half_open.unwrap_or_else(|| self.sessions.div_ceil(4))
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self { sessions: 1_048_576, routes: 1_048_576, half_open: None }
    }
}

/// What becomes of a client's TCP segment that belongs to no session and opens none. Whoever sends one from outside
/// gets nothing in any case: its source address may be anybody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoSession {
    /// The client is told by a reset, and begins anew at once.
    #[default]
    Reset,
    /// Dropped in silence.
    Drop,
}

impl NoSession {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Drop => "drop",
        }
    }
}

impl FromStr for NoSession {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [Self::Reset, Self::Drop].into_iter().find(|word| word.name() == text).ok_or_else(|| {
            ValueError::invalid("no_session", format!("`{text}` is no answer to segments without a session"))
                .hint("write `reset` or `drop`")
        })
    }
}

/// Idle times after which a session is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// TCP, established (RFC 5382 REQ-5: not below 2 h 4 min).
    pub tcp_established: Duration,
    /// TCP, not established yet (RFC 5382 REQ-5: not below 4 min; RFC 7857 2.1 allows less).
    pub tcp_opening: Duration,
    /// TCP, closed by both sides or reset (RFC 5382 REQ-5: not below 4 min).
    pub tcp_closing: Duration,
    /// UDP (RFC 4787 REQ-5: not below 2 min).
    pub udp: Duration,
    /// UDP to port 53, the DNS (RFC 4787 REQ-5a allows less).
    pub udp_dns: Duration,
    /// ICMP queries (RFC 5508 REQ-2: not below 60 s).
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_mins(124),
            tcp_opening: Duration::from_mins(4),
            tcp_closing: Duration::from_mins(4),
            udp: Duration::from_mins(5),
            udp_dns: Duration::from_secs(30),
            icmp: Duration::from_mins(1),
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        let main = Table::new(MAIN_TABLE, TableKind::Egress);
        Self {
            name: "gateway".to_owned(),
            active: false,
            capacity: Capacity::default(),
            timeouts: Timeouts::default(),
            no_session: NoSession::default(),
            interfaces: BTreeMap::new(),
            pools: BTreeMap::new(),
            eips: BTreeMap::new(),
            proxies: BTreeMap::new(),
            limits: BTreeMap::new(),
            groups: BTreeMap::new(),
            access_log: None,
            tables: BTreeMap::from([(MAIN_TABLE.to_owned(), Arc::new(main))]),
        }
    }
}

impl Snapshot {
    /// The table that serves `source`, and the binding that says so; `None`: no binding does, and table
    /// `main` serves it. A binding that names the interface beats one that does not; then the longest
    /// source prefix wins.
    pub fn table_of(&self, source: IpAddr, iif: Option<&str>) -> Option<(&Table, &Binding)> {
        self.tables
            .values()
            .flat_map(|table| table.bindings.iter().map(move |binding| (&**table, binding)))
            .filter(|(_, binding)| binding.source.contains(&source))
            .filter(|(_, binding)| binding.iif.is_none() || binding.iif.as_deref() == iif)
            .max_by_key(|(_, binding)| (binding.iif.is_some(), binding.source.prefix_len()))
    }

    /// What has to be said of routes that are to be recorded where nothing is.
    pub fn unrecorded(&self) -> Option<String> {
        if self.access_log.is_some() {
            return None;
        }
        let table = self.tables.values().find(|table| table.routes.iter().any(|(_, route)| route.log))?;
        Some(format!(
            "routes of table `{}` say `log`, and there is no access log: nothing is recorded; add a section \
             `[access_log]` to the configuration file",
            table.name
        ))
    }

    /// Table `main`.
    pub fn main(&self) -> Option<&Table> {
        self.tables.get(MAIN_TABLE).map(|table| &**table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_times_are_those_that_the_rfcs_ask_for() {
        let minutes = |minutes: u64| Duration::from_mins(minutes);
        let timeouts = Timeouts::default();
        // RFC 5382 REQ-5.
        assert_eq!(timeouts.tcp_established, minutes(2 * 60 + 4));
        assert_eq!((timeouts.tcp_opening, timeouts.tcp_closing), (minutes(4), minutes(4)));
        // RFC 4787 REQ-5c, which lets those of well-known ports be shorter (REQ-5a).
        assert_eq!(timeouts.udp, minutes(5));
        assert!(timeouts.udp_dns < minutes(2));
        // RFC 5508 REQ-2.
        assert_eq!(timeouts.icmp, minutes(1));
    }
}
