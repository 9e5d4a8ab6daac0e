//! Atomic operations on map values shared between CPUs.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

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
