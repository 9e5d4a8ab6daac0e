//! Groups, and what the sessions between them have carried.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Count;

/// `group add` and `group set`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// Prefixes of the group, all of them.
    pub prefixes: Vec<String>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Name.
    pub name: String,
    /// Prefixes.
    pub prefixes: Vec<IpNet>,
}

/// `stats usage`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    /// Of so many seconds; of all the time if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<f64>,
}

/// What the sessions between two groups have carried. Bytes are those of IP packets, without Ethernet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Group of the inside hosts; `other`: none, `proxy`: what hosts of proxies have sent.
    pub source: String,
    /// Group of the servers; `other`: none.
    pub destination: String,
    /// Sessions.
    pub connections: u64,
    /// From the inside.
    pub sent: Count,
    /// From the outside.
    pub received: Count,
    /// With [`UsageQuery::since`], from when on this is, RFC 3339, UTC: what is known reaches back to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}
