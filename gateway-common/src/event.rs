//! Map `EVENTS`: rare messages from the packet path to the daemon. No packet waits for an answer.

use crate::{family::MappedAddress, pod};

/// A next hop has no MAC address: the daemon asks the kernel to resolve it.
pub const NEIGHBOR: u32 = 1;

/// Bytes of `EVENTS`.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// One record of `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`NEIGHBOR`].
    pub kind: u32,
    /// The interface the event is about.
    pub ifindex: u32,
    /// The address the event is about, see [`crate::family::MappedAddress`].
    pub address: MappedAddress,
}

const _: () = assert!(size_of::<Event>() == 24);

pod!(Event);
