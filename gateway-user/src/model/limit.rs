//! Limits of sources: what clients may open.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{LimitChange, PerDestination, error::ValueError};

/// Who shares a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Nobody: each client of the prefix has it for itself.
    #[default]
    Source,
    /// All clients of the prefix together.
    Prefix,
}

impl Per {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Prefix => "prefix",
        }
    }
}

impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Per {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [Self::Source, Self::Prefix].into_iter().find(|per| per.name() == text).ok_or_else(|| {
            ValueError::invalid("per", format!("`{text}` is nothing that a limit can be for"))
                .hint("write `source`, for each client, or `prefix`, for all of them together")
        })
    }
}

/// What the clients of a prefix may open, unless a longer prefix has a limit of its own. 0 stands for "no limit".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Name.
    pub name: String,
    /// Clients.
    pub from: IpNet,
    /// Who shares it.
    #[serde(default)]
    pub per: Per,
    /// New connections per second.
    pub rate: u32,
    /// How many of them may come at once; `None`: those of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Connections at a time.
    pub concurrent: u32,
}

impl Limit {
    /// A limit that lets everything pass.
    pub fn new(name: impl Into<String>, from: IpNet) -> Self {
        Self { name: name.into(), from, per: Per::default(), rate: 0, burst: None, concurrent: 0 }
    }

    /// How many connections may come at once.
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.rate)
    }

    /// Changes what is named.
    pub fn change(&mut self, change: &LimitChange) {
        let Self { rate, burst, concurrent, .. } = *self;
        let next = change.over(PerDestination { rate, burst, concurrent });
        (self.rate, self.burst, self.concurrent) = (next.rate, next.burst, next.concurrent);
    }
}
