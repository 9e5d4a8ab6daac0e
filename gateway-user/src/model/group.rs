//! Groups of addresses, between which usage is counted.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The group of addresses that no group has.
pub const OTHER: &str = "other";
/// The source group of all that hosts of proxies send.
pub const PROXY: &str = "proxy";

/// Addresses, of clients or of servers, that are counted together. Of several groups, the longest prefix decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Prefixes, of either family.
    pub prefixes: Vec<IpNet>,
}
