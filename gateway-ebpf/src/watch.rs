//! Maps `WATCHERS`, `WATCHED`, `WATCH_RATES` and `ARRIVALS`: shows packets to whoever watches, see
//! [`gateway_common::watch`].
//!
//! A packet that arrives while nobody watches costs two looks at a bit of a word that it has read already. Where a daemon
//! has died that watched, it looks at the clock, too.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_load_bytes},
    macros::btf_map,
};
use gateway_common::{
    DropReason, Family as _, V4, V6, Verdict,
    interface::NO_SLOT,
    parse::{self, Bytes as _, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, PROTO_UDP},
    watch::{Ends, MAX_SNAPLEN, MAX_WATCHERS, Told, WATCHED_BYTES, Watched, Watcher},
};

use crate::{config, family::Datapath as _, packet::Frame};

#[btf_map]
static WATCHERS: Array<Watcher, { MAX_WATCHERS as usize }> = Array::new();

#[btf_map]
static WATCHED: RingBuf<Watched, { WATCHED_BYTES as usize }> = RingBuf::new();

#[btf_map]
static WATCH_RATES: PerCpuArray<Told, { MAX_WATCHERS as usize }> = PerCpuArray::new();

/// A packet as it has arrived. All that loops gather is gathered here: what is read back from a map is any value to the
/// verifier, so that it looks at what follows once.
#[repr(C)]
struct Arrival {
    ends: Ends,
    /// Bit n: it may concern watcher n. 0: there is nothing to tell of it.
    may: u32,
    /// Of [`Watched::watchers`], those that are to see it. [`Watched::captured`] is, at first, what they want.
    head: Watched,
    // Behind the head, as in `WATCHED`.
    bytes: [u8; MAX_SNAPLEN as usize],
}

const _: () = assert!(offset_of!(Arrival, bytes) == offset_of!(Arrival, head) + size_of::<Watched>());

/// The packet that the CPU has in hand.
#[btf_map]
static ARRIVALS: PerCpuArray<Arrival, 1> = PerCpuArray::new();

#[inline(always)]
fn arrival() -> Option<&'static mut Arrival> {
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    ARRIVALS.get_ptr_mut(0).map(|arrival| unsafe { &mut *arrival })
}

#[inline(always)]
fn watcher(number: u32) -> Option<&'static Watcher> {
    // SAFETY: elements of arrays live as long as the map; user space may write them at any time.
    WATCHERS.get_ptr(number).map(|watcher| unsafe { &*watcher })
}

/// Keeps the frame if it may concern a watcher. For the first program that a frame meets, where
/// [`gateway_common::config::Policy::is_watched`]. Returns nothing of interest.
#[inline(never)]
pub(crate) fn arrived(frame: &Frame<'_>) -> u64 {
    let (Some(arrival), Some(config)) = (arrival(), config::config()) else { return 0 };
    arrival.may = 0;
    if config::now(config) > config.watched_until {
        return 0;
    }
    arrival.head.captured = 0;
    read_ends(frame, &mut arrival.ends);
    let ifindex = frame.ingress_ifindex();
    for number in 0..MAX_WATCHERS {
        watch_asks(number.into(), ifindex.into());
    }
    if arrival.may == 0 {
        return 0;
    }
    let bytes = frame.bytes();
    let wanted = u64::from(arrival.head.captured);
    let mut captured = if bytes < wanted { bytes } else { wanted };
    // The verifier must see the bounds and the use of one register.
    // SAFETY: the instruction does nothing.
    unsafe { asm!("{0} = {0}", inout(reg) captured, options(nomem, nostack, preserves_flags, pure)) };
    if captured > u64::from(MAX_SNAPLEN) {
        captured = u64::from(MAX_SNAPLEN);
    }
    // SAFETY: there is room for `captured` bytes, and the frame has as many.
    let loaded = captured != 0
        && unsafe {
            bpf_xdp_load_bytes(frame.context(), 0, arrival.bytes.as_mut_ptr().cast(), captured as u32)
        } == 0;
    // SAFETY: the helper has no arguments.
    arrival.head.time = unsafe { bpf_ktime_get_ns() };
    arrival.head.ingress = ifindex;
    arrival.head.length = bytes as u32;
    arrival.head.captured = if loaded { captured as u32 } else { 0 };
    0
}

// Exported, so that the verifier looks at each of them once and not wherever it is called.

/// Notes whether the packet in hand, which came in through `ifindex`, may concern that watcher. Returns nothing of
/// interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn watch_asks(number: u64, ifindex: u64) -> u64 {
    let (Some(arrival), Some(config)) = (arrival(), config::config()) else { return 0 };
    let Some(watcher) = watcher(number as u32) else { return 0 };
    if !watcher.asks_for(config::now(config), ifindex as u32, &arrival.ends) {
        return 0;
    }
    arrival.may |= 1 << (number & 31);
    if watcher.snaplen > arrival.head.captured {
        arrival.head.captured = watcher.snaplen;
    }
    0
}

/// Notes whether that watcher is to see the packet in hand, and counts it where there were too many of late. Returns
/// nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn watch_wants(number: u64, what: u64) -> u64 {
    let (Some(arrival), Some(config)) = (arrival(), config::config()) else { return 0 };
    let number = number as u32;
    let Some(watcher) = watcher(number) else { return 0 };
    if watcher.wants(what as u8, (what >> 8) as u8) && admit(number, watcher.per_tick, config::now(config)) {
        arrival.head.watchers |= 1 << (number & 31);
    }
    0
}

/// Tells of the packet that [`arrived`] has kept, which goes on.
#[inline(always)]
pub(crate) fn sent(verdict: Verdict, egress: u32) {
    watch_ended(u64::from(egress) << 16 | verdict as u64);
}

/// Tells of the packet that [`arrived`] has kept, which is dropped.
#[inline(always)]
pub(crate) fn dropped(reason: DropReason) {
    watch_ended(u64::from(NO_SLOT) << 16 | (reason as u64) << 8 | Verdict::Drop as u64);
}

/// Tells of the packet that [`arrived`] has kept, on a device that the gateway does not know.
#[inline(always)]
pub(crate) fn unknown(active: bool) {
    if active {
        dropped(DropReason::Internal);
    } else {
        sent(Verdict::Host, NO_SLOT);
    }
}

/// Tells of the packet that was kept; `what` is its verdict, its reason in the second byte, and the slot of its egress
/// behind that. Exported for the same reason. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn watch_ended(what: u64) -> u64 {
    let Some(arrival) = arrival() else { return 0 };
    let may = arrival.may;
    if may == 0 {
        return 0;
    }
    // Told once, whatever answer the frame is turned into.
    arrival.may = 0;
    arrival.head.watchers = 0;
    for number in 0..MAX_WATCHERS {
        if may >> number & 1 != 0 {
            watch_wants(number.into(), what);
        }
    }
    if arrival.head.watchers == 0 {
        return 0;
    }
    arrival.head.verdict = what as u8;
    arrival.head.reason = (what >> 8) as u8;
    arrival.head.egress = (what >> 16) as u32;
    let mut length = u64::from(arrival.head.captured);
    // SAFETY: as in `arrived`.
    unsafe { asm!("{0} = {0}", inout(reg) length, options(nomem, nostack, preserves_flags, pure)) };
    if length > u64::from(MAX_SNAPLEN) {
        length = u64::from(MAX_SNAPLEN);
    }
    // SAFETY: the bytes are behind the head, and there are more than `length`.
    let told = unsafe {
        let head = (&raw const *arrival).cast::<u8>().add(offset_of!(Arrival, head));
        core::slice::from_raw_parts(head, size_of::<Watched>() + length as usize)
    };
    if WATCHED.output_untyped::<[u8]>(told, u64::from(BPF_RB_NO_WAKEUP)).is_ok() {
        return 0;
    }
    let watchers = arrival.head.watchers;
    for number in 0..MAX_WATCHERS {
        if watchers >> number & 1 != 0 {
            lose(number);
        }
    }
    0
}

/// Counts a packet for a watcher. Whether there have not been too many of late.
#[inline(always)]
fn admit(number: u32, per_tick: u32, now: u32) -> bool {
    let Some(told) = WATCH_RATES.get_ptr_mut(number) else { return false };
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let told = unsafe { &mut *told };
    if told.tick != now {
        told.tick = now;
        told.count = 0;
    }
    if told.count >= per_tick {
        told.lost += 1;
        return false;
    }
    told.count += 1;
    true
}

/// Counts a packet that a watcher does not see.
#[inline(always)]
fn lose(number: u32) {
    if let Some(told) = WATCH_RATES.get_ptr_mut(number) {
        // SAFETY: as in `admit`.
        unsafe { (*told).lost += 1 };
    }
}

/// Reads whom a packet is from and for, as far as its first headers tell; the rest is zero. Nothing is checked: what is
/// not as it should be is what somebody may look for. Returns nothing of interest.
#[inline(always)]
fn read_ends(frame: &Frame<'_>, ends: &mut Ends) -> u64 {
    // Word by word: the compiler would call a function for it.
    for word in 0..size_of::<Ends>() / 4 {
        // SAFETY: the structure is made of so many words, and all of them may be zero.
        unsafe { (&raw mut *ends).cast::<u32>().add(word).write_volatile(0) };
    }
    let Some(link) = parse::link(frame) else { return 0 };
    let at = link.network;
    let (transport, proto) = match link.ethertype {
        ETHERTYPE_IPV4 => {
            let Some([source, destination]) = frame.read::<[u32; 2]>(at + V4::SOURCE) else { return 0 };
            let Some([first, _, _, _, _, _, f0, f1, _, proto]) = frame.read::<[u8; 10]>(at) else { return 0 };
            ends.source = V4::mapped(&source);
            ends.destination = V4::mapped(&destination);
            ends.proto = proto;
            // Later fragments show no ports.
            if u16::from_be_bytes([f0, f1]) & 0x1fff != 0 {
                return 0;
            }
            (at + usize::from(first & 0xf) * 4, proto)
        }
        ETHERTYPE_IPV6 => {
            let Some([s0, s1, s2, s3, d0, d1, d2, d3]) = frame.read::<[u32; 8]>(at + V6::SOURCE) else {
                return 0;
            };
            let Some(proto) = frame.read::<u8>(at + 6) else { return 0 };
            ends.source = [s0, s1, s2, s3];
            ends.destination = [d0, d1, d2, d3];
            ends.proto = proto;
            (at + parse::IPV6_LEN, proto)
        }
        _ => return 0,
    };
    if matches!(proto, PROTO_TCP | PROTO_UDP)
        && let Some([_, _, p0, p1]) = frame.read::<[u8; 4]>(transport)
    {
        ends.has_ports = 1;
        ends.port = [p0, p1];
    }
    0
}
