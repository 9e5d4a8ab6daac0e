//! EIPs: outside addresses that belong to one inside host each.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An outside address, mapped 1:1 to an inside host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eip {
    /// Outside address.
    pub address: IpAddr,
    /// The inside host that it stands for, of the same family.
    pub host: IpAddr,
}
