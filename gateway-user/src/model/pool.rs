//! Pools of outside addresses.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use gateway_common::pool::{FIRST_PORT, LAST_PORT, MAX_ADDRESSES_PER_POOL, MAX_MSS, MIN_MSS};
use serde::{Deserialize, Serialize};

use super::{
    error::ValueError,
    prefix::{parse_address, parse_prefix},
};

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// Lowest port.
    pub low: u16,
    /// Highest port.
    pub high: u16,
}

impl PortRange {
    /// What a pool uses when it is not told otherwise.
    pub const POOL: Self = Self { low: FIRST_PORT, high: LAST_PORT };

    /// Every port there is.
    pub const ALL: Self = Self { low: 0, high: u16::MAX };

    /// Whether `port` is in the range.
    pub fn contains(self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }

    /// Number of ports.
    pub fn count(self) -> u32 {
        u32::from(self.high) - u32::from(self.low) + 1
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high {
            write!(f, "{}", self.low)
        } else {
            write!(f, "{}-{}", self.low, self.high)
        }
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let port = |word: &str| {
            word.trim().parse::<u16>().map_err(|_| {
                ValueError::invalid("ports", format!("`{word}` is not a port from 0 to 65535"))
                    .hint("write one port, `443`, or a range, `8000-8999`")
            })
        };
        let range = Self { low: port(low)?, high: port(high)? };
        if range.low > range.high {
            return Err(ValueError::invalid("ports", format!("port range `{text}` ends before it begins"))
                .hint(format!("write {}-{}", range.high, range.low)));
        }
        Ok(range)
    }
}

impl TryFrom<String> for PortRange {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// What an inside host's address and port are translated to (RFC 4787 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// For each outside host and port something of its own; only that one can answer.
    #[default]
    EndpointDependent,
    /// The same for all, and all can answer.
    EndpointIndependent,
}

impl Mapping {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndpointDependent => "endpoint-dependent",
            Self::EndpointIndependent => "endpoint-independent",
        }
    }

    /// Whether it is the one that pools have unless told otherwise.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mapping {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [Self::EndpointDependent, Self::EndpointIndependent]
            .into_iter()
            .find(|mapping| mapping.name() == text)
            .ok_or_else(|| {
                ValueError::invalid("mapping", format!("`{text}` is not a mapping"))
                    .hint("write `endpoint-dependent` or `endpoint-independent`")
            })
    }
}

/// What a client is told whose new flow the pool cannot take: no port is free, there is no room for its session, or a
/// limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refuse {
    /// Nothing: a TCP client tries again by itself.
    #[default]
    Drop,
    /// A TCP client by a reset, any other by an ICMP error.
    Reset,
    /// An ICMP error: administratively prohibited.
    Icmp,
}

impl Refuse {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reset => "reset",
            Self::Icmp => "icmp",
        }
    }

    /// Whether it is what pools do unless told otherwise.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Refuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Refuse {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [Self::Drop, Self::Reset, Self::Icmp].into_iter().find(|word| word.name() == text).ok_or_else(|| {
            ValueError::invalid("refuse", format!("`{text}` is no way to refuse a connection"))
                .hint("write `drop`, `reset` or `icmp`")
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_automatic(mss: &u16) -> bool {
    *mss == 0
}

/// A set of outside addresses that hide inside sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Addresses, in the order given; never empty.
    pub addresses: Vec<IpAddr>,
    /// Ports used on each address.
    pub ports: PortRange,
    /// Those of the addresses that take no new sessions.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<IpAddr>,
    /// Mapping of new flows.
    #[serde(default, skip_serializing_if = "Mapping::is_default")]
    pub mapping: Mapping,
    /// Largest TCP segment that its connections announce, bytes; 0: what fits the links of both sides.
    #[serde(default, skip_serializing_if = "is_automatic")]
    pub mss: u16,
    /// What clients are told whose flows it cannot take.
    #[serde(default, skip_serializing_if = "Refuse::is_default")]
    pub refuse: Refuse,
    /// What each address may open towards each destination.
    #[serde(default)]
    pub per_destination: PerDestination,
}

/// What an address of a pool may open towards a destination (address, port and protocol of a server). 0 stands for
/// "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerDestination {
    /// New connections per second.
    pub rate: u32,
    /// How many of them may come at once; `None`: those of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Connections at a time.
    pub concurrent: u32,
}

impl PerDestination {
    /// No limits.
    pub const UNLIMITED: Self = Self { rate: 0, burst: None, concurrent: 0 };

    /// How many connections may come at once.
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.rate)
    }
}

impl Default for PerDestination {
    /// What the NAT gateways of clouds do.
    fn default() -> Self {
        Self { rate: 900, burst: None, concurrent: 55_000 }
    }
}

/// A change of a pool's limits towards each destination; what is absent stays. 0 stands for "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitChange {
    /// New connections per second.
    pub rate: Option<u32>,
    /// How many of them may come at once.
    pub burst: Option<u32>,
    /// Connections at a time.
    pub concurrent: Option<u32>,
}

impl LimitChange {
    /// The change from the defaults to `limits`.
    pub fn of(limits: PerDestination) -> Self {
        let default = PerDestination::default();
        let changed = |value, default| (value != default).then_some(value);
        Self {
            rate: changed(limits.rate, default.rate),
            burst: limits.burst,
            concurrent: changed(limits.concurrent, default.concurrent),
        }
    }

    /// What `limits` become.
    pub fn over(self, limits: PerDestination) -> PerDestination {
        PerDestination {
            rate: self.rate.unwrap_or(limits.rate),
            burst: self.burst.or(limits.burst),
            concurrent: self.concurrent.unwrap_or(limits.concurrent),
        }
    }
}

impl fmt::Display for LimitChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, value) in [("rate", self.rate), ("burst", self.burst), ("concurrent", self.concurrent)] {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        Ok(())
    }
}

impl Pool {
    /// A pool none of whose addresses is drained, with the default mapping and the segment size of its links.
    pub fn new(name: impl Into<String>, addresses: Vec<IpAddr>, ports: PortRange) -> Self {
        Self {
            name: name.into(),
            addresses,
            ports,
            drained: BTreeSet::new(),
            mapping: Mapping::default(),
            mss: 0,
            refuse: Refuse::default(),
            per_destination: PerDestination::default(),
        }
    }

    /// Reads a maximum segment size, whose bounds depend on the addresses and are looked at later.
    pub fn mss(number: i64) -> Result<u16, ValueError> {
        u16::try_from(number).map_err(|_| Self::bad_mss(&number.to_string(), MIN_MSS))
    }

    /// The error of a maximum segment size that is not between `least` and the largest.
    pub(super) fn bad_mss(number: &str, least: u16) -> ValueError {
        ValueError::invalid("mss", format!("a maximum segment size of {number} bytes is not possible"))
            .hint(format!("between {least} and {MAX_MSS}, or 0 for what fits the links"))
    }

    /// Reads one entry of an address list: an address, or a prefix that stands for all its addresses
    /// (those of a pool are not hosts of a subnet, so that the first and the last count too).
    pub fn parse_addresses(text: &str) -> Result<Vec<IpAddr>, ValueError> {
        if !text.contains('/') {
            return Ok(vec![parse_address("addresses", text)?]);
        }
        let prefix = parse_prefix("addresses", text)?;
        let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
        if u128::from(MAX_ADDRESSES_PER_POOL).checked_shr(u32::from(host_bits)).unwrap_or(0) == 0 {
            return Err(ValueError::full(
                "addresses",
                format!("prefix `{text}` has more than the {MAX_ADDRESSES_PER_POOL} addresses of a pool"),
            )
            .hint("name the addresses, or a longer prefix"));
        }
        // `hosts` would leave out network and broadcast address.
        let all = prefix.subnets(prefix.max_prefix_len()).into_iter().flatten();
        Ok(all.map(|host| host.addr()).collect())
    }
}
