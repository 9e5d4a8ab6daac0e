//! Map `DESTINATIONS`: what each address of a pool has open towards each destination, and how fast it opens more.
//!
//! # Why the counts are exact
//!
//! A session is counted in the bucket of its destination before its outside element is entered, and until that is
//! removed. The sweep removes a bucket only where there are no sessions, and marks it [`GONE`] before, by compare and
//! swap on the word that has the number ([`Bucket::sessions`]). A packet counts by compare and swap, too. Where it
//! finds the mark, or the tag of another destination, because the element has been removed and given to that since
//! it was looked up, it looks again. A bucket that counts the packet's session stays.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::HashMap,
    helpers::generated::bpf_ktime_get_ns,
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    limit::{Bucket, GONE, Limit},
    ports::Destination,
};

use crate::atomic;

/// The capacity is set by the loader, see [`gateway_common::limit::capacity`]. Memory is taken as destinations come.
#[btf_map]
static DESTINATIONS: HashMap<Destination, Bucket, 1_048_576, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Attempts at a change that other CPUs make at the same time.
const ATTEMPTS: u32 = 4;
/// Lookups of a bucket that others remove at the same time.
const LOOKUPS: u32 = 2;

/// Marks what [`admit`] returns where it refuses a connection: this and one of the reasons.
pub(crate) const REFUSED: u32 = 1 << 31;
/// There are too many connections in too short a time.
const OVER_RATE: u32 = 1;
/// There are too many connections at a time.
const OVER_CONCURRENT: u32 = 2;
/// There is no room to count in.
const NO_ROOM: u32 = 4;
/// The bucket has been removed.
const LOST: u32 = 8;

/// Why a connection was refused, after what all of [`admit`] have said together.
#[inline(always)]
pub(crate) const fn reason(refused: u32) -> Option<DropReason> {
    if refused & OVER_RATE != 0 {
        Some(DropReason::DestinationRate)
    } else if refused & OVER_CONCURRENT != 0 {
        Some(DropReason::DestinationConcurrent)
    } else if refused & NO_ROOM != 0 {
        Some(DropReason::SessionTableFull)
    } else {
        None
    }
}

/// Counts a connection to `destination`, if it is within the limit, and returns the number that there is then; or
/// [`REFUSED`] and why. [`take_back`] and [`ended`] undo it.
#[inline(never)]
pub(crate) fn admit(destination: &Destination, limit: &Limit) -> u32 {
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let tag = destination.tag();
    for _ in 0..LOOKUPS {
        let mut found = DESTINATIONS.get_ptr_mut(destination);
        if found.is_none() {
            let bucket = Bucket { full: now, sessions: tag, ..Bucket::default() };
            // Where it fails, another CPU was faster, or there is no room.
            let _ = DESTINATIONS.insert(destination, bucket, u64::from(BPF_NOEXIST));
            found = DESTINATIONS.get_ptr_mut(destination);
        }
        let Some(bucket) = found else { return REFUSED | NO_ROOM };
        // SAFETY: the pointer is to a map value.
        let said = unsafe { enter(bucket, tag, limit) };
        if said == REFUSED | LOST {
            continue;
        }
        // SAFETY: as above.
        return unsafe { account(bucket, limit, now, said) };
    }
    REFUSED | NO_ROOM
}

/// Undoes [`admit`]: the connection did not come about, for want of a port.
#[inline(never)]
pub(crate) fn take_back(destination: &Destination, limit: &Limit) -> u32 {
    if let Some(bucket) = DESTINATIONS.get_ptr_mut(destination) {
        // SAFETY: the pointer is to a map value.
        unsafe {
            atomic::add_long(&raw mut (*bucket).full, u64::from(limit.interval).wrapping_neg());
            atomic::add_long(&raw mut (*bucket).admitted, u64::MAX);
            atomic::add_long(&raw mut (*bucket).sessions, u64::MAX);
        }
    }
    0
}

/// Takes note that a session to `destination` is gone. Its outside element is deleted by now.
#[inline(always)]
pub(crate) fn ended(destination: &Destination) {
    if let Some(bucket) = DESTINATIONS.get_ptr_mut(destination) {
        // SAFETY: the pointer is to a map value. The result is used: this has to be a barrier, see [`crate::ports`].
        unsafe {
            let before = atomic::add_long(&raw mut (*bucket).sessions, u64::MAX);
            if before as u32 == 0 {
                atomic::add_long(&raw mut (*bucket).sessions, 1);
            }
        }
    }
}

/// The number of sessions to a destination.
#[inline(always)]
pub(crate) fn sessions(destination: &Destination) -> u32 {
    // SAFETY: the pointer is to a map value, which other CPUs write.
    DESTINATIONS.get_ptr_mut(destination).map_or(0, |bucket| unsafe { bucket.read_volatile().count() })
}

/// Removes a bucket that nobody needs. For the sweep.
#[inline(always)]
pub(crate) fn visit(destination: &Destination) {
    let Some(bucket) = DESTINATIONS.get_ptr_mut(destination) else { return };
    let tag = destination.tag();
    // SAFETY: the helper has no arguments; the pointer is to a map value, and nobody else removes it.
    unsafe {
        // Until it is full, it remembers what was admitted.
        if (&raw const (*bucket).full).read_volatile() <= bpf_ktime_get_ns()
            && atomic::replace_long(&raw mut (*bucket).sessions, tag, tag | u64::from(GONE))
        {
            let _ = DESTINATIONS.remove(destination);
        }
    }
}

/// Counts one session more and returns the number; or [`REFUSED`] and why.
///
/// # Safety
/// `bucket` points to a map value.
#[inline(always)]
unsafe fn enter(bucket: *mut Bucket, tag: u64, limit: &Limit) -> u32 {
    // SAFETY: the caller vouches for the pointer.
    let word = unsafe { &raw mut (*bucket).sessions };
    for _ in 0..ATTEMPTS {
        // SAFETY: as above.
        let observed = unsafe { word.read_volatile() };
        let sessions = observed as u32;
        if sessions == GONE || observed & !u64::from(u32::MAX) != tag {
            return REFUSED | LOST;
        }
        if !limit.has_room(sessions) {
            return REFUSED | OVER_CONCURRENT;
        }
        // SAFETY: as above.
        if unsafe { atomic::replace_long(word, observed, observed + 1) } {
            return sessions + 1;
        }
    }
    REFUSED | OVER_CONCURRENT
}

/// Takes a token for a session that [`enter`] has counted, and counts what has become of it.
///
/// # Safety
/// `bucket` points to a map value.
#[inline(always)]
unsafe fn account(bucket: *mut Bucket, limit: &Limit, now: u64, said: u32) -> u32 {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        if said & REFUSED != 0 {
            atomic::add_long(&raw mut (*bucket).over_concurrent, 1);
            return said;
        }
        if !take(&raw mut (*bucket).full, limit, now) {
            atomic::add_long(&raw mut (*bucket).over_rate, 1);
            atomic::add_long(&raw mut (*bucket).sessions, u64::MAX);
            return REFUSED | OVER_RATE;
        }
        atomic::add_long(&raw mut (*bucket).admitted, 1);
    }
    said
}

/// Takes a token; `false` where there is none.
///
/// # Safety
/// `full` points to [`Bucket::full`] of a map value.
#[inline(always)]
unsafe fn take(full: *mut u64, limit: &Limit, now: u64) -> bool {
    for _ in 0..ATTEMPTS {
        // SAFETY: the caller vouches for the pointer.
        let observed = unsafe { full.read_volatile() };
        let Some(next) = limit.take(observed, now) else { return false };
        // SAFETY: as above.
        if unsafe { atomic::replace_long(full, observed, next) } {
            return true;
        }
    }
    false
}
