//! Limits of sources.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::Per;

/// `limit add`, which needs `from`, and `limit set`, where what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitRequest {
    /// Prefix of the clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `source` (the default): for each client; `prefix`: for all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<String>,
    /// New connections per second; 0: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// How many of them may come at once; if absent: those of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Connections at a time; 0: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
}

/// A limit of sources, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRow {
    /// Name.
    pub name: String,
    /// Prefix of the clients.
    pub from: IpNet,
    /// `source`: for each client; `prefix`: for all of them together.
    pub per: Per,
    /// New connections per second; 0: any number.
    pub rate: u32,
    /// How many of them may come at once.
    pub burst: u32,
    /// Connections at a time; 0: any number.
    pub concurrent: u32,
    /// Clients that have connections, or had some a moment ago; with `per` `prefix`, 1 for all of them.
    pub sources: u64,
    /// Connections of all of them.
    pub sessions: u64,
    /// Connections of the one that has most.
    pub most: u64,
    /// Connections admitted.
    pub admitted: u64,
    /// Connections refused because of the rate.
    pub over_rate: u64,
    /// Connections refused because there were too many at a time.
    pub over_concurrent: u64,
}
