//! Trials: what the loaded programs would do with a frame, without a trace left anywhere.

use gateway_common::{DropReason, Verdict};

use crate::model::RouteKey;

/// A frame to try.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// Ifindex of the interface that it is to arrive on.
    pub ifindex: u32,
    /// The frame, from its Ethernet header on.
    pub frame: &'a [u8],
    /// Try it as if the gateway were active.
    pub as_active: bool,
}

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Why it is dropped, if it is.
    pub reason: Option<DropReason>,
    /// Interface that a frame leaves through: the packet, or for one that is dropped, what its sender is told.
    pub egress: Option<String>,
    /// The frame that leaves, or as it is left to the host.
    pub frame: Vec<u8>,
    /// The routes that the packet counts on, by table.
    pub routes: Vec<(String, RouteKey)>,
    /// Whether the packet would open a session.
    pub opens: bool,
}
