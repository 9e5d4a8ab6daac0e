//! Maps `GROUPS`, `USAGE` and `USAGE_TOTALS`: what removed sessions have carried, see [`gateway_common::usage`].
//!
//! No packet comes by here. The sweep does, which one CPU runs at a time: so nothing is atomic. Where there are no groups,
//! all of it is added to one pair that nobody asks for.

use aya_ebpf::{
    btf_maps::{Array, LpmTrie},
    macros::btf_map,
};
use gateway_common::{
    V4, V6,
    family::MappedAddress,
    session::{Session, Tuple},
    usage::{self, Group, GroupKey, MAX_GROUP_PREFIXES, OTHER, PAIRS, PROXY, Total, Usage},
};

use crate::{family::Datapath, route::as_key, session::Scratch};

#[btf_map]
static GROUPS: LpmTrie<GroupKey, Group, { MAX_GROUP_PREFIXES as usize }> = LpmTrie::new();

/// What is not there any more, by pair of groups.
#[btf_map]
static USAGE: Array<Usage, { PAIRS as usize }> = Array::new();

/// The daemon's alone.
#[btf_map]
static USAGE_TOTALS: Array<Total, { PAIRS as usize }> = Array::new();

/// Adds what a session has carried, both ways, to its pair of groups: that of the inside element in the scratch element,
/// which is about to be removed.
#[inline(always)]
pub(crate) fn removed<F: Datapath>() {
    if F::IS_V4 {
        usage_removed_v4();
    } else {
        usage_removed_v6();
    }
}

/// Adds what an outside element has carried that its session has left for another proxy host. Leaves it in the scratch
/// element.
#[inline(always)]
pub(crate) fn left_behind<F: Datapath>(outside: &Tuple<F>, session: &Session<F>) {
    let Some(scratch) = F::scratch() else { return };
    // SAFETY: the scratch element is this CPU's own.
    unsafe {
        (*scratch).outside = *outside;
        (*scratch).outside_session = *session;
    }
    if F::IS_V4 {
        usage_left_behind_v4();
    } else {
        usage_left_behind_v6();
    }
}

// Exported, so that the verifier looks at them once and not wherever a session is removed.

/// Adds the session of IPv4 whose inside element is in the scratch element. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn usage_removed_v4() -> u64 {
    add_session::<V4>()
}

/// As [`usage_removed_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn usage_removed_v6() -> u64 {
    add_session::<V6>()
}

/// Adds the outside element of IPv4 that is in the scratch element. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn usage_left_behind_v4() -> u64 {
    add_left_behind::<V4>()
}

/// As [`usage_left_behind_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn usage_left_behind_v6() -> u64 {
    add_left_behind::<V6>()
}

#[inline(always)]
fn add_session<F: Datapath>() -> u64 {
    let Some(scratch) = F::scratch() else { return 0 };
    // SAFETY: the scratch element is this CPU's own.
    let Scratch { inside, inside_session: session, outside, .. } = unsafe { &mut *scratch };
    let Some(total) = total_of(inside, session) else { return 0 };
    // Not on the stack, which is small.
    *outside = inside.pair(session);
    // SAFETY: the pointers are to map values; one CPU at a time is here.
    unsafe {
        (*total).add(&Usage::of(inside, session));
        if let Some(answer) = F::session(outside) {
            (*total).add(&Usage::of(outside, &*answer));
        }
    }
    0
}

#[inline(always)]
fn add_left_behind<F: Datapath>() -> u64 {
    let Some(scratch) = F::scratch() else { return 0 };
    // SAFETY: the scratch element is this CPU's own.
    let Scratch { outside, outside_session: session, .. } = unsafe { &*scratch };
    if let Some(total) = total_of(outside, session) {
        // SAFETY: the pointer is to a map value; one CPU at a time is here.
        unsafe { (*total).add(&Usage::of(outside, session)) };
    }
    0
}

/// Where an element of the session tables counts.
#[inline(always)]
fn total_of<F: Datapath>(tuple: &Tuple<F>, session: &Session<F>) -> Option<*mut Usage> {
    let (client, server, origin) = usage::ends(tuple, session);
    // One key for both: the stack is small.
    let mut key = [64 + 128, GroupKey::realm(F::IS_V4), 0, 0, 0, 0, 0];
    let mut group_of = |address: MappedAddress| {
        [key[3], key[4], key[5], key[6]] = address;
        // SAFETY: prefix length, realm, zero and four words.
        GROUPS.get(unsafe { as_key::<_, GroupKey>(&key) }).map_or(OTHER, |group| group.number)
    };
    let source = if origin == 0 { group_of(F::mapped(&client)) } else { PROXY };
    let destination = group_of(F::mapped(&server));
    USAGE.get_ptr_mut(usage::pair(source, destination))
}
