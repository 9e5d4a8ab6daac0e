//! Pools of outside addresses.

use std::{fmt, net::IpAddr, str::FromStr};

use gateway_common::pool::{FIRST_PORT, LAST_PORT};
use serde::{Deserialize, Serialize};

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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let port = |word: &str| {
            word.trim().parse::<u16>().map_err(|_| format!("`{word}` is not a port between 0 and 65535"))
        };
        let range = Self { low: port(low)?, high: port(high)? };
        if range.low > range.high {
            return Err(format!("port range `{text}` ends before it begins"));
        }
        Ok(range)
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// A set of outside addresses that hide inside sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Addresses, in the order given; never empty.
    pub addresses: Vec<IpAddr>,
    /// Ports used on each address.
    pub ports: PortRange,
}
