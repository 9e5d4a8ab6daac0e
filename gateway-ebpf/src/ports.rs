//! Maps `PORTS` and `NO_PORTS`: which ports of a pool's address are known to be used towards a
//! destination that has many of them.
//!
//! # Why a port that is free is always found
//!
//! The session table decides: inserting the outside tuple where it is not there is the only way to get a port, and
//! deleting it the only way to give it back. A bit of [`Ports::used`] only says "do not ask the table".
//! So a bit that is clear while the port is taken costs one lookup, which sets it; such bits may come about
//! in any way. A bit that is set while the port is free would hide the port. None stays so:
//!
//! * *Claim against removal.* A claim sets the bit and then asks the table; a removal deletes the element and
//!   then clears the bit; both are full barriers. A claim that finds the element, and leaves the bit set, has
//!   asked before the deletion, so its bit was set before the removal clears it.
//! * *Two claims.* Setting the bit tells what was there. Who finds it set leaves the port to the other: it is
//!   taken, or refused for a reason that concerns both (a full table), and then cleared by who has set it.
//! * *A destination that becomes crowded* gets ports of which none is known to be used. A removal looks for
//!   them after it has deleted its element, with a full barrier between (the count in `DESTINATIONS`). Where it
//!   finds none, no claim that sets a bit in them can meet its element any more.
//! * *A destination that becomes quiet.* Its element is first marked [`GONE`], which no packet uses, and
//!   deleted at the next visit of the sweep. A packet that found it before the mark is through by then, as
//!   with sessions. Meanwhile the destination's claims leave no bits, which is harmless, see above.
//! * *A bit of [`Ports::full`]* is set by who has filled a word, who then looks again whether it still is; who
//!   clears a bit of a word clears the word's bit in `full` afterwards. Whichever of the two is second sees
//!   what the other did.
//! * *The daemon* neither reads nor writes these maps. They are pinned with the sessions.
//!
//! A search is short because all ports are known but those that were claimed while the destination was not
//! crowded, at most [`Ports::threshold`], and each of these is met once.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap},
    helpers::generated::bpf_for_each_map_elem,
    macros::btf_map,
};
use gateway_common::ports::{CROWDED, Destination, GONE, LIVE, Ports, QUIET, Search, Step, WORDS};

use crate::{atomic, limit};

/// The capacity is set by the loader, see [`gateway_common::ports::capacity`].
#[btf_map]
static PORTS: HashMap<Destination, Ports, 64> = HashMap::new();

/// What a destination begins with: no port is known to be used.
#[btf_map]
static NO_PORTS: Array<Ports, 1> = Array::new();

/// The number of sessions that makes a destination crowded where a pool uses so many ports.
#[inline(always)]
pub(crate) const fn threshold(ports: u32) -> u32 {
    ports / CROWDED + 1
}

/// Takes note that a session is gone, see [`limit::ended`]. Its outside element is deleted by now.
#[inline(always)]
pub(crate) fn removed(destination: &Destination, port: [u8; 2], client: Option<u32>) {
    limit::ended(destination, client);
    if let Some(ports) = PORTS.get_ptr_mut(destination).and_then(NonNull::new) {
        give_back(ports, u16::from_be_bytes(port));
    }
}

/// The ports of a destination that has some.
#[inline(always)]
pub(crate) fn find(destination: &Destination) -> Option<NonNull<Ports>> {
    let ports = NonNull::new(PORTS.get_ptr_mut(destination)?)?;
    // SAFETY: the pointer is to a map value, which other CPUs write.
    let state = unsafe { (&raw const (*ports.as_ptr()).state).read_volatile() };
    if state == LIVE { Some(ports) } else { None }
}

/// Gives a destination its ports, if it has none; tells whether it has any now.
#[inline(never)]
pub(crate) fn make(destination: &Destination, threshold: u32) -> u32 {
    if find(destination).is_none() {
        let Some(none) = NO_PORTS.get(0) else { return 0 };
        // Where it fails, another CPU was faster, or there is no room.
        let _ = PORTS.insert(destination, none, u64::from(BPF_NOEXIST));
        let Some(ports) = find(destination) else { return 0 };
        // SAFETY: the pointer is to a map value. The sweep leaves alone what has no threshold yet.
        unsafe { (&raw mut (*ports.as_ptr()).threshold).write_volatile(threshold) };
    }
    1
}

/// One step of a search.
#[inline(always)]
pub(crate) fn step(ports: NonNull<Ports>, search: &mut Search) -> Step {
    let ports = ports.as_ptr();
    // SAFETY: the pointer is to a map value, which other CPUs write; the search keeps within the arrays.
    search.step(
        |group| unsafe { (&raw const (*ports).full[group]).read_volatile() },
        |word| unsafe { (&raw const (*ports).used[word]).read_volatile() },
    )
}

/// Marks a port as used; `false` where it was.
#[inline(always)]
pub(crate) fn take(ports: NonNull<Ports>, port: u16) -> bool {
    let ports = ports.as_ptr();
    let (word, bit) = place(port);
    // SAFETY: the pointer is to a map value, and the indices are within the arrays.
    unsafe {
        let used = &raw mut (*ports).used[word];
        let before = atomic::set(used, bit);
        if before & bit != 0 {
            return false;
        }
        if before | bit == u64::MAX {
            let full = &raw mut (*ports).full[word / 64];
            atomic::set(full, 1 << (word % 64));
            if used.read_volatile() != u64::MAX {
                atomic::clear(full, 1 << (word % 64));
            }
        }
    }
    true
}

/// Marks a port as not used.
#[inline(always)]
pub(crate) fn give_back(ports: NonNull<Ports>, port: u16) {
    let ports = ports.as_ptr();
    let (word, bit) = place(port);
    // SAFETY: as in `take`.
    unsafe {
        atomic::clear(&raw mut (*ports).used[word], bit);
        let full = &raw mut (*ports).full[word / 64];
        if full.read_volatile() & 1 << (word % 64) != 0 {
            atomic::clear(full, 1 << (word % 64));
        }
    }
}

/// Takes back the ports of destinations that are quiet.
#[inline(always)]
pub(crate) fn collect() {
    // SAFETY: the callback has the signature that the helper calls, and uses no context.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const PORTS).cast_mut().cast(),
            visit_destination as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
}

unsafe extern "C" fn visit_destination(
    _: *mut c_void,
    key: *const Destination,
    ports: *mut Ports,
    _: *mut c_void,
) -> i64 {
    // SAFETY: the kernel passes an element of the map.
    unsafe {
        let state = &raw mut (*ports).state;
        if state.read_volatile() == GONE {
            let _ = PORTS.remove(*key);
        } else if limit::sessions(&*key) * QUIET < (*ports).threshold {
            state.write_volatile(GONE);
        }
    }
    0
}

/// Word and bit of a port in [`Ports::used`].
#[inline(always)]
const fn place(port: u16) -> (usize, u64) {
    ((port as usize / 64) % WORDS, 1 << (port % 64))
}
