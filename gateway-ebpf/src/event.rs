//! Map `EVENTS`: rare messages to the daemon.

use aya_ebpf::{
    btf_maps::{PerCpuArray, RingBuf},
    macros::btf_map,
};
use gateway_common::{
    event::{EVENTS_BYTES, Event, NEIGHBOR},
    family::MappedAddress,
};

#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

#[btf_map]
static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Asks the daemon to have `address` resolved on `ifindex`.
#[inline(always)]
pub(crate) fn unresolved(ifindex: u32, address: MappedAddress) {
    let event = Event { kind: NEIGHBOR, ifindex, address };
    if EVENTS.output(event, 0).is_err()
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: the element is this CPU's own.
        unsafe { *lost += 1 };
    }
}
