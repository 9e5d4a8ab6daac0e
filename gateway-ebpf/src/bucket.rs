//! Buckets: what there is of something, and how fast there may be more. [`crate::limit`] has those of destinations,
//! [`crate::source`] those of sources.
//!
//! # Why the counts are exact
//!
//! A session is counted in a bucket before its first element is entered, and until its last one is removed. The sweep
//! removes a bucket only where there are no sessions, and marks it [`GONE`] before, by compare and
//! swap on the word that has the number ([`Bucket::sessions`]). A packet counts by compare and swap, too. Where it
//! finds the mark, or the tag of another key, because the element has been removed and given to that since
//! it was looked up, it looks again. A bucket that counts the packet's session stays.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::HashMap,
    helpers::generated::bpf_ktime_get_ns,
};
use gateway_common::limit::{Bucket, GONE, Limit};

use crate::atomic;

/// A map of buckets. The capacity is set by the loader, see [`gateway_common::limit::capacity`]. Memory is taken as
/// keys come.
pub(crate) type Buckets<K> = HashMap<K, Bucket, 1_048_576, { BPF_F_NO_PREALLOC as usize }>;

/// Attempts at a change that other CPUs make at the same time.
const ATTEMPTS: u32 = 4;
/// Lookups of a bucket that others remove at the same time.
const LOOKUPS: u32 = 2;

/// Marks what [`admit`] returns where it refuses a connection: this and one of the reasons.
pub(crate) const REFUSED: u32 = 1 << 31;
/// There are too many connections in too short a time.
pub(crate) const OVER_RATE: u32 = 1;
/// There are too many connections at a time.
pub(crate) const OVER_CONCURRENT: u32 = 2;
/// There is no room to count in.
pub(crate) const NO_ROOM: u32 = 4;
/// The bucket has been removed.
const LOST: u32 = 8;

/// Counts a connection in the bucket of `key`, if it is within the limit, and returns the number that there is then; or
/// [`REFUSED`] and why. [`take_back`] and [`ended`] undo it. `tag` is the hash of the key in
/// [`Bucket::sessions`].
#[inline(always)]
pub(crate) fn admit<K>(buckets: &Buckets<K>, key: &K, tag: u64, limit: &Limit) -> u32 {
    let now = now();
    for _ in 0..LOOKUPS {
        let mut found = buckets.get_ptr_mut(key);
        if found.is_none() {
            let bucket = Bucket { full: now, sessions: tag, ..Bucket::default() };
            // Where it fails, another CPU was faster, or there is no room.
            let _ = buckets.insert(key, bucket, u64::from(BPF_NOEXIST));
            found = buckets.get_ptr_mut(key);
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

/// Takes a token for a connection that begins on a session that is counted already. Returns 0, or [`REFUSED`] and why.
#[inline(always)]
pub(crate) fn renew<K>(buckets: &Buckets<K>, key: &K, limit: &Limit) -> u32 {
    let Some(bucket) = buckets.get_ptr_mut(key) else { return 0 };
    // SAFETY: the pointer is to a map value.
    unsafe {
        if take(&raw mut (*bucket).full, limit, now()) {
            atomic::add_long(&raw mut (*bucket).admitted, 1);
            return 0;
        }
        atomic::add_long(&raw mut (*bucket).over_rate, 1);
    }
    REFUSED | OVER_RATE
}

/// Undoes [`renew`].
#[inline(always)]
pub(crate) fn give_back<K>(buckets: &Buckets<K>, key: &K, interval: u32) {
    if let Some(bucket) = buckets.get_ptr_mut(key) {
        // SAFETY: the pointer is to a map value.
        unsafe {
            atomic::add_long(&raw mut (*bucket).full, u64::from(interval).wrapping_neg());
            atomic::add_long(&raw mut (*bucket).admitted, u64::MAX);
        }
    }
}

/// Undoes [`admit`]: the connection did not come about.
#[inline(always)]
pub(crate) fn take_back<K>(buckets: &Buckets<K>, key: &K, interval: u32) {
    if let Some(bucket) = buckets.get_ptr_mut(key) {
        // SAFETY: the pointer is to a map value.
        unsafe {
            atomic::add_long(&raw mut (*bucket).full, u64::from(interval).wrapping_neg());
            atomic::add_long(&raw mut (*bucket).admitted, u64::MAX);
            atomic::add_long(&raw mut (*bucket).sessions, u64::MAX);
        }
    }
}

/// Takes note that a session is gone that was counted.
#[inline(always)]
pub(crate) fn ended<K>(buckets: &Buckets<K>, key: &K) {
    if let Some(bucket) = buckets.get_ptr_mut(key) {
        // SAFETY: the pointer is to a map value. The result is used: this has to be a barrier, see [`crate::ports`].
        unsafe {
            let before = atomic::add_long(&raw mut (*bucket).sessions, u64::MAX);
            if before as u32 == 0 {
                atomic::add_long(&raw mut (*bucket).sessions, 1);
            }
        }
    }
}

/// Refuses a connection because its client leaves what there is to others, if `stands_back` says so of the number of
/// sessions and of [`Bucket::full`]: [`OVER_RATE`] or [`OVER_CONCURRENT`]; 0: it does not.
#[inline(always)]
pub(crate) fn refuse<K>(buckets: &Buckets<K>, key: &K, stands_back: impl FnOnce(u32, u64) -> u32) -> u32 {
    let Some(bucket) = buckets.get_ptr_mut(key) else { return 0 };
    // SAFETY: the pointer is to a map value, which other CPUs write.
    unsafe {
        let reason = stands_back(bucket.read_volatile().count(), (&raw const (*bucket).full).read_volatile());
        if reason == OVER_RATE {
            atomic::add_long(&raw mut (*bucket).over_rate, 1);
        } else if reason == OVER_CONCURRENT {
            atomic::add_long(&raw mut (*bucket).over_concurrent, 1);
        }
        reason
    }
}

/// The time that buckets go by, nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The number of sessions.
#[inline(always)]
pub(crate) fn sessions<K>(buckets: &Buckets<K>, key: &K) -> u32 {
    // SAFETY: the pointer is to a map value, which other CPUs write.
    buckets.get_ptr_mut(key).map_or(0, |bucket| unsafe { bucket.read_volatile().count() })
}

/// Removes a bucket that nobody needs. For the sweep.
#[inline(always)]
pub(crate) fn visit<K>(buckets: &Buckets<K>, key: &K, tag: u64) {
    let Some(bucket) = buckets.get_ptr_mut(key) else { return };
    // SAFETY: the pointer is to a map value, and nobody else removes it.
    unsafe {
        // Until it is full, it remembers what was admitted.
        if (&raw const (*bucket).full).read_volatile() <= now()
            && atomic::replace_long(&raw mut (*bucket).sessions, tag, tag | u64::from(GONE))
        {
            let _ = buckets.remove(key);
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
