//! Routes: what happens to packets for a destination.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::PortRange;

/// A protocol that routes can select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and `ICMPv6` for IPv6 prefixes.
    Icmp,
}

/// What else than the destination must match. The default matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Protocol.
    pub proto: Option<Proto>,
    /// Destination ports; needs TCP or UDP.
    pub dport: Option<PortRange>,
}

/// What identifies a route within its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination prefix, host bits zero.
    pub prefix: IpNet,
    /// Further conditions.
    pub selector: Selector,
}

/// What a route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Forward, source unchanged.
    Direct,
    /// Translate the source to an address of the pool.
    Pool(String),
    /// Forward to that router.
    Gateway {
        /// The router.
        address: IpAddr,
        /// The interface it is reached through, if the host's routing table is not to decide.
        dev: Option<String>,
    },
    /// Drop.
    Blackhole,
    /// Drop and tell the client.
    Prohibit,
    /// Hand to the host's own stack.
    Host,
}

/// What a route does, and what is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What happens.
    pub target: Target,
    /// Whether sessions of this route are logged.
    pub log: bool,
    /// The operator's words.
    pub comment: Option<String>,
}

impl Target {
    /// The word of the target, without its object: the `target` label of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pool(_) => "pool",
            Self::Gateway { .. } => "gateway",
            Self::Blackhole => "blackhole",
            Self::Prohibit => "prohibit",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct | Self::Blackhole | Self::Prohibit | Self::Host => f.write_str(self.kind()),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Gateway { address, dev: None } => write!(f, "gateway {address}"),
            Self::Gateway { address, dev: Some(dev) } => write!(f, "gateway {address} dev {dev}"),
        }
    }
}

/// Routes as a list, the form they have in files and in the state directory.
pub(super) mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserializer, Serializer};

    use super::{Route, RouteKey};

    pub(in super::super) fn serialize<S: Serializer>(
        _routes: &BTreeMap<RouteKey, Route>,
        _serializer: S,
    ) -> Result<S::Ok, S::Error> {
        todo!()
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        _deserializer: D,
    ) -> Result<BTreeMap<RouteKey, Route>, D::Error> {
        todo!()
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(_: &str) -> Result<Self, String> {
        todo!()
    }
}
