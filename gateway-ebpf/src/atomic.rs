//! Atomic operations on map values shared between CPUs.

use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg};

/// Replaces `old` by `new` if that is what is there; tells whether it did.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn replace(word: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the caller vouches for the pointer.
    let (_, done) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
    };
    done
}

/// As [`replace`], of a word of 8 bytes.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn replace_long(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller vouches for the pointer.
    let (_, done) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
    };
    done
}

/// Writes `value` and returns what was there. A full barrier.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(word, value) }
}

/// Sets `bits` and returns what was there. A full barrier where the result is used.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn set(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bits) }
}

/// Clears `bits` and returns what was there. A full barrier where the result is used.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn clear(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(word, !bits) }
}

/// Adds `number`, round the end, and returns what was there. A full barrier where the result is used.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u32, number: u32) -> u32 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(word, number) }
}

/// As [`add`], of a word of 8 bytes.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub(crate) unsafe fn add_long(word: *mut u64, number: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, number) }
}
