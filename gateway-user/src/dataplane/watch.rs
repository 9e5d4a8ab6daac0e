//! Packets that somebody wants to see, as long as somebody does.

use gateway_common::{DropReason, Verdict, watch::MAX_WATCHERS};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::model::Proto;

/// Which packets somebody wants to see. All but verdict and reason is asked of a packet as it has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// From this prefix.
    pub from: Option<IpNet>,
    /// To this prefix.
    pub to: Option<IpNet>,
    /// Of this protocol.
    pub proto: Option<Proto>,
    /// To this port.
    pub dport: Option<u16>,
    /// Ifindex of the interface that they came in through.
    pub ingress: Option<u32>,
    /// With these verdicts.
    pub verdicts: Vec<Verdict>,
    /// Of those that were dropped, with these reasons.
    pub reasons: Vec<DropReason>,
    /// Bytes of a packet that are wanted, at most [`gateway_common::watch::MAX_SNAPLEN`].
    pub snaplen: u32,
    /// Packets that each CPU tells of in a second.
    pub rate: u32,
}

/// A packet, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it arrived.
    pub time: Timestamp,
    /// Interface that it came in through.
    pub ingress: String,
    /// Interface that it left through, if it did.
    pub egress: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was dropped, if it was.
    pub reason: Option<DropReason>,
    /// Length of the frame, bytes.
    pub length: u32,
    /// The beginning of the frame as it arrived.
    pub bytes: Vec<u8>,
}

/// So many may watch at a time.
pub const MOST: usize = MAX_WATCHERS as usize;

/// The packet path's side of watching. There is to be one reader.
pub trait Watchers: Send {
    /// Says who watches what. Nobody does for longer than some seconds after it was last said.
    ///
    /// # Errors
    /// The maps cannot be written.
    fn set(&mut self, filters: &[Option<Filter>; MOST]) -> anyhow::Result<()>;

    /// Adds packets that somebody wants to see to `into`, at most `most` of them, and does not wait for any. Bit n says
    /// that watcher n is to see it. Returns how many there were.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn read(&mut self, most: usize, into: &mut Vec<(u32, Seen)>) -> anyhow::Result<usize>;

    /// Packets that each watcher should have seen and does not, of all who have had its number.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn lost(&self) -> anyhow::Result<[u64; MOST]>;
}
