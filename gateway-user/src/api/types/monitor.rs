//! Types of `monitor` and `capture`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Count, Endpoint};

/// `monitor`, `capture`: what is to be seen. What is asked of a packet is asked of it as it has arrived, and of a session as
/// its client sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorQuery {
    /// `monitor`: `drop`, `limit`, `route` and `session`, with commas between them; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// Only from this address or prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Only to this address or prefix; of routes, only those within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Only this protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Only to this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Only what came in through this interface, and sessions of clients behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Only what was dropped for this reason, or sessions that end with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `capture`: only packets with this verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// End after so many events or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// End after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<u64>,
    /// Packets that each CPU shows in a second, and sessions that are shown in one; if absent, 1000, of `capture` 10000. The others are counted as lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// `capture`: bytes that are kept of a packet; if absent, 4096, and not more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
}

/// One line of `monitor`. Fields that do not apply are absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorLine {
    /// [`MonitorLine::SCHEMA`].
    pub schema: String,
    /// `drop` or `limit`: a packet was dropped, with `limit` for want of what a limit allows. `route`: a route was changed.
    /// `session`: a session has opened or ended. `lost`: events are missing here.
    pub event: String,
    /// When.
    pub time: Timestamp,
    /// Why a packet was dropped, or how a session ended: `idle`, `fin`, `rst`, `refused`, `killed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Interface that it came in through, or that the client of a session is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `tcp`, `udp`, `icmp`, the number of another IP protocol, or `arp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Where it is from; absent where it is not an IP packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Endpoint>,
    /// What the outside sees of the client of a session, where anything is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated: Option<Endpoint>,
    /// Where it is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Endpoint>,
    /// Flags of a TCP segment: `S`, `A`, `F`, `R`, `P`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Bytes of the frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// What was done to a route: `add`, `replace` or `del`. What a session did: `open` or `close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// Its table; of a session, that of the route that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Prefix and selectors of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Where it leads; of a deleted one, where it led. Of a session, the pool or the proxy that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The revision with which it came into force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Seconds for which a session that ended has lived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<f64>,
    /// What came from the inside in its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Count>,
    /// What came from the outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Count>,
    /// How many events are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

impl MonitorLine {
    /// What every line names as its form. Fields are only ever added.
    pub const SCHEMA: &'static str = "gateway.monitor/v1";

    /// A line of which only that is known.
    pub fn new(event: &str, time: Timestamp) -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            event: event.to_owned(),
            time,
            reason: None,
            interface: None,
            proto: None,
            source: None,
            translated: None,
            destination: None,
            flags: None,
            length: None,
            change: None,
            table: None,
            route: None,
            target: None,
            revision: None,
            age: None,
            sent: None,
            received: None,
            lost: None,
        }
    }
}
