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
/// [`Bucket::sessions`]. For [`made`]: it has to be there.
///
/// `stands_back` is asked before, with the number of sessions and [`Bucket::full`], whether the client leaves what there
/// is to others: [`OVER_RATE`] or [`OVER_CONCURRENT`]; 0: it does not.
#[inline(always)]
pub(crate) fn admit<K>(
    buckets: &Buckets<K>,
    key: &K,
    tag: u64,
    (limit, now): (&Limit, u64),
    stands_back: impl FnOnce(u32, u64) -> u32,
) -> u32 {
    let Some(bucket) = buckets.get_ptr_mut(key) else { return REFUSED | LOST };
    // SAFETY: the pointer is to a map value, which other CPUs write.
    unsafe {
        let reason = stands_back(count(bucket), (&raw const (*bucket).full).read_volatile());
        if reason != 0 {
            refuse(bucket, reason);
            return REFUSED | reason;
        }
        match enter(bucket, tag, limit) {
            lost if lost == REFUSED | LOST => lost,
            said => account(bucket, limit, now, said),
        }
    }
}

/// What `admit` says, [`admit`] of a bucket that `make` makes with [`make`] where it is not there.
#[inline(always)]
pub(crate) fn made(mut admit: impl FnMut() -> u32, make: impl FnOnce() -> u32) -> u32 {
    let said = admit();
    if said != REFUSED | LOST {
        return said;
    }
    make();
    match admit() {
        lost if lost == REFUSED | LOST => REFUSED | NO_ROOM,
        said => said,
    }
}

/// Enters a bucket that is full. Where it fails, another CPU was faster, or there is no room. A function of its own, for
/// its caller's stack. Returns nothing of interest.
#[inline(never)]
pub(crate) fn make<K>(buckets: &Buckets<K>, key: &K, tag: u64, now: u64) -> u32 {
    let bucket = Bucket { full: now, sessions: tag, ..Bucket::default() };
    let _ = buckets.insert(key, bucket, u64::from(BPF_NOEXIST));
    0
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
    buckets.get_ptr_mut(key).map_or(0, |bucket| unsafe { count(bucket) })
}

/// See [`Bucket::count`].
///
/// # Safety
/// `bucket` points to a map value.
#[inline(always)]
unsafe fn count(bucket: *mut Bucket) -> u32 {
    // SAFETY: the caller vouches for the pointer.
    let sessions = unsafe { (&raw const (*bucket).sessions).read_volatile() };
    Bucket { sessions, ..Bucket::default() }.count()
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

/// Counts a connection that was refused for that reason.
///
/// # Safety
/// `bucket` points to a map value.
#[inline(always)]
unsafe fn refuse(bucket: *mut Bucket, reason: u32) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        if reason == OVER_RATE {
            atomic::add_long(&raw mut (*bucket).over_rate, 1);
        } else {
            atomic::add_long(&raw mut (*bucket).over_concurrent, 1);
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
            refuse(bucket, OVER_CONCURRENT);
            return said;
        }
        if !take(&raw mut (*bucket).full, limit, now) {
            refuse(bucket, OVER_RATE);
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
