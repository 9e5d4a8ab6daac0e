//! Types of `explain`.

use serde::{Deserialize, Serialize};

use super::Endpoint;

/// `explain`: what becomes of the first packet of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// Destination, `ADDR` or `ADDR:PORT`.
    pub to: String,
    /// Source, `ADDR` or `ADDR:PORT`.
    pub from: String,
    /// Protocol; TCP if absent, and ICMP where the destination has no port either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Interface it arrives on; the one that its source is behind if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Ask the loaded programs, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
}

/// What becomes of a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRow {
    /// The packet in words.
    pub packet: String,
    /// Interface it arrives on, if that could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// What was looked at, in order.
    pub steps: Vec<ExplainStep>,
    /// What becomes of it; absent where only the programs can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Why it is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the loaded programs do with it, if they were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<ExplainLive>,
    /// Whether the programs do what the steps say; absent where the steps leave it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agrees: Option<bool>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainStep {
    /// The stage of the packet path.
    pub stage: String,
    /// What was found.
    pub found: String,
    /// What else is worth knowing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the loaded programs do with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainLive {
    /// What becomes of it.
    pub verdict: String,
    /// Why it is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Interface it leaves through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
    /// MAC address that it is sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// Source as it leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Endpoint>,
    /// Destination as it leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Endpoint>,
    /// Whether it would open a session.
    pub opens_session: bool,
    /// Routes that it counts on: table, prefix and selectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
}
