//! Map `EVENTS`: rare messages to the daemon.

use aya_ebpf::{
    btf_maps::{PerCpuArray, RingBuf},
    macros::btf_map,
};
use gateway_common::{
    config::Config,
    event::{EVENTS_BYTES, Event, NEIGHBOR},
    family::MappedAddress,
};

use crate::config;

#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

#[btf_map]
static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Messages that one CPU sends in one tick (about 130 ms). Whoever sends to many unknown neighbours does not keep the
/// daemon busy; the neighbours are asked for again with their next packet.
const PER_TICK: u32 = 64;

/// Tick and number of messages in it.
#[btf_map]
static EVENT_RATE: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// Asks the daemon to have `address` resolved on `ifindex`.
#[inline(always)]
pub(crate) fn unresolved(config: &Config, ifindex: u32, address: MappedAddress) {
    let Some(rate) = EVENT_RATE.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's own.
    let [tick, count] = unsafe { &mut *rate };
    let now = config::now(config);
    if *tick != now {
        *tick = now;
        *count = 0;
    }
    *count += 1;
    if *count > PER_TICK {
        return;
    }
    let event = Event { kind: NEIGHBOR, ifindex, address };
    if EVENTS.output(event, 0).is_err()
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: the element is this CPU's own.
        unsafe { *lost += 1 };
    }
}
