//! Maps `SESSIONS_V4` and `TABLE`: the table of IPv4 sessions, see [`gateway_common::table`].
//!
//! Lookups and removals lock nothing. An insertion locks the first bucket of its key, so that no other CPU inserts the
//! same key, and the other bucket where it puts the element there. Whoever sees an element's key or tag sees the
//! element: they are written last. A removed element is not overwritten while a packet may read it, as
//! [`gateway_common::session`] tells.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_loop, macros::btf_map};
use gateway_common::{
    V4,
    session::{Session, Tuple},
    table::{self, Bucket, Fill, LANES, NOBODY, PREFERRED, Place, SLOTS, Slot, WORDS},
};

use crate::{atomic, config, session::EEXIST};

/// No room, as a hash map says it.
const E2BIG: i32 = -7;
/// Another CPU does not let go of a bucket.
const EBUSY: i32 = -16;
/// Both buckets of the key are full, or have an element with its tag.
pub(crate) const ENOSPC: i32 = -28;
/// The key is not there.
const ENOENT: i32 = -2;
/// Tag of a free slot.
const FREE: u64 = 0;
/// How often a bucket is tried that another CPU has locked. It does so for some hundred cycles, but for longer where the
/// hypervisor takes its processor away.
const PATIENCE: u32 = 1 << 16;

// The capacity is set by the loader.
#[btf_map]
static SESSIONS_V4: Array<Bucket<V4>, 109_227> = Array::new();

#[btf_map]
static TABLE: Array<Fill, 1> = Array::new();

/// A bucket in the map.
type BucketPointer = *mut Bucket<V4>;

/// The session under the tuple of these words.
#[inline(always)]
pub(crate) fn get(words: [u64; 2]) -> Option<*mut Session<V4>> {
    let config = config::config()?;
    let place = table::place(words, config.secret, config.buckets);
    // SAFETY: the pointers are to map values.
    unsafe {
        let bucket = SESSIONS_V4.get_ptr_mut(place.first)?;
        if let Some(slot) = at_home(slot_of(bucket, place.home), words) {
            return Some(&raw mut (*slot).session);
        }
        if let Some(slot) = find(bucket, place.tag, words) {
            return Some(&raw mut (*slot).session);
        }
        if (&raw const (*bucket).spilled).read_volatile() == 0 {
            return None;
        }
        let bucket = SESSIONS_V4.get_ptr_mut(place.second)?;
        find(bucket, place.tag, words).map(|slot| &raw mut (*slot).session)
    }
}

/// As [`get`], by [`sessions_locate`].
#[inline(always)]
pub(crate) fn get_outlined(words: [u64; 2]) -> Option<*mut Session<V4>> {
    let [addresses, rest] = words;
    // SAFETY: the pointer is to a map value.
    slot_at(sessions_locate(addresses, rest)).map(|slot| unsafe { &raw mut (*slot).session })
}

/// Inserts an element.
///
/// # Errors
/// Those of the kernel's hash maps; `EEXIST` where the key is there.
#[inline(always)]
pub(crate) fn insert(tuple: &Tuple<V4>, session: &Session<V4>) -> Result<(), i32> {
    if sessions_count() == 0 {
        return Err(E2BIG);
    }
    let [addresses, rest] = tuple.words();
    let taken = sessions_take(addresses, rest);
    if taken > u64::from(u32::MAX) {
        sessions_discount();
        return Err(taken as i32);
    }
    let slot = slot_at(taken).ok_or(ENOENT)?;
    // SAFETY: the pointer is to a map value, and a tuple is two words; nobody reads a slot before its key is there.
    unsafe {
        (*slot).session = *session;
        let key: *mut u64 = (&raw mut (*slot).tuple).cast();
        key.write_volatile(addresses);
        atomic::swap(key.add(1), rest);
    }
    sessions_show(addresses, rest, taken);
    Ok(())
}

/// Removes the element of the tuple.
///
/// # Errors
/// Those of the kernel's hash maps.
#[inline(always)]
pub(crate) fn remove(tuple: &Tuple<V4>) -> Result<(), i32> {
    let [addresses, rest] = tuple.words();
    if sessions_remove(addresses, rest) == 0 { Err(ENOENT) } else { Ok(()) }
}

// What is below has numbers as arguments and results, and is exported: so the verifier looks at each function once and
// not wherever it is called (Documentation/bpf/verifier.rst: global functions).

/// Where the element under a key is, see [`slot_at`]; 0: nowhere.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_locate(addresses: u64, rest: u64) -> u64 {
    let words = [addresses, rest];
    let Some(config) = config::config() else { return 0 };
    let place = table::place(words, config.secret, config.buckets);
    let (Some(first), Some(second)) =
        (SESSIONS_V4.get_ptr_mut(place.first), SESSIONS_V4.get_ptr_mut(place.second))
    else {
        return 0;
    };
    // SAFETY: the pointers are to map values.
    unsafe {
        if at_home(slot_of(first, place.home), words).is_some() {
            return location(place.first, place.home);
        }
        let slot = candidate(first, place.tag);
        if is_under(first, slot, words) {
            return location(place.first, slot);
        }
        if (&raw const (*first).spilled).read_volatile() == 0 {
            return 0;
        }
        let slot = candidate(second, place.tag);
        if is_under(second, slot, words) { location(place.second, slot) } else { 0 }
    }
}

/// Takes a slot for an element that is not there. Returns its place, with the bucket of it and the key's first one
/// locked, or an error of the kernel's hash maps.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_take(addresses: u64, rest: u64) -> u64 {
    match try_take([addresses, rest]) {
        Ok(location) => location,
        Err(error) => i64::from(error).cast_unsigned(),
    }
}

#[inline(always)]
fn try_take(words: [u64; 2]) -> Result<u64, i32> {
    let config = config::config().ok_or(ENOENT)?;
    let place = table::place(words, config.secret, config.buckets);
    let first = SESSIONS_V4.get_ptr_mut(place.first).ok_or(ENOENT)?;
    let second = SESSIONS_V4.get_ptr_mut(place.second).ok_or(ENOENT)?;
    // SAFETY: the pointers are to map values.
    unsafe {
        if !lock(first) {
            return Err(EBUSY);
        }
        let result = choose(&place, first, second, words);
        if result.is_err() {
            unlock(first);
        }
        result
    }
}

/// Counts an element that is to come; 0: the table takes no more.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_count() -> u64 {
    let (Some(config), Some(fill)) = (config::config(), TABLE.get_ptr_mut(0)) else { return 0 };
    // SAFETY: the pointer is to a map value.
    unsafe {
        if atomic::add(&raw mut (*fill).elements, 1) < config.elements {
            return 1;
        }
    }
    sessions_discount();
    0
}

/// Takes back what [`sessions_count`] has counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_discount() -> u64 {
    if let Some(fill) = TABLE.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map value.
        unsafe { atomic::add(&raw mut (*fill).elements, 1u32.wrapping_neg()) };
    }
    0
}

/// Chooses a slot in one of two buckets, of which the first is locked; the second is locked where it is the one.
///
/// # Safety
/// The pointers are to the buckets of the place.
#[inline(always)]
unsafe fn choose(
    place: &Place,
    first: BucketPointer,
    second: BucketPointer,
    words: [u64; 2],
) -> Result<u64, i32> {
    let Place { tag, home, .. } = *place;
    let in_first = find_tag(place.first, tag);
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        if is_under(first, in_first, words) {
            return Err(EEXIST);
        }
        // A bucket has no tag twice.
        let free = if in_first >= SLOTS { find_free(place.first, home) } else { SLOTS };
        let used = (&raw const (*first).used).read_volatile();
        let spilled = (&raw const (*first).spilled).read_volatile();
        if free < SLOTS && used < PREFERRED && spilled == 0 {
            // The other bucket, which is in no cache yet, has nothing to say.
            return Ok(location(place.first, free));
        }
        let in_second = find_tag(place.second, tag);
        if is_under(second, in_second, words) {
            return Err(EEXIST);
        }
        let emptier = (&raw const (*second).used).read_volatile() < used;
        if (free >= SLOTS || used >= PREFERRED && emptier)
            && place.first != place.second
            && in_second >= SLOTS
        {
            if try_lock(second) {
                // Another element may have come there before it was locked.
                let free_in_second = find_free(place.second, home);
                if find_tag(place.second, tag) >= SLOTS && free_in_second < SLOTS {
                    atomic::add(&raw mut (*first).spilled, 1);
                    return Ok(location(place.second, free_in_second));
                }
                unlock(second);
            } else if free >= SLOTS {
                return Err(EBUSY);
            }
        }
        if free < SLOTS { Ok(location(place.first, free)) } else { Err(ENOSPC) }
    }
}

/// As [`candidate`], by [`sessions_find_tag`].
#[inline(always)]
fn find_tag(bucket: u32, tag: u64) -> usize {
    sessions_find_tag(bucket.into(), tag) as usize
}

/// The slot of a bucket with this tag; [`SLOTS`] or more: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_find_tag(bucket: u64, tag: u64) -> u64 {
    match SESSIONS_V4.get_ptr_mut(bucket as u32) {
        // SAFETY: the pointer is to a map value.
        Some(bucket) => unsafe { candidate(bucket, tag) as u64 },
        None => SLOTS as u64,
    }
}

/// As [`sessions_find_free`].
#[inline(always)]
fn find_free(bucket: u32, home: usize) -> usize {
    sessions_find_free(bucket.into(), home as u64) as usize
}

/// A free slot of a bucket, the one called home where that is free; [`SLOTS`] or more: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_find_free(bucket: u64, home: u64) -> u64 {
    let Some(bucket) = SESSIONS_V4.get_ptr_mut(bucket as u32) else { return SLOTS as u64 };
    if home >= SLOTS as u64 {
        return SLOTS as u64;
    }
    let slot = home as usize;
    // SAFETY: the pointer is to a map value.
    unsafe {
        let word = (&raw const (*bucket).tags).cast::<u64>().add(slot / LANES);
        if word.read_volatile() & table::lane(slot, 0xffff) == 0 {
            home
        } else {
            candidate(bucket, FREE) as u64
        }
    }
}

/// Shows the element that was put where [`sessions_take`] said, and unlocks its buckets. Returns the tags that were
/// beside its own, because an atomic operation is a barrier only where its result is used: the element is written before.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_show(addresses: u64, rest: u64, location: u64) -> u64 {
    let Some(config) = config::config() else { return 0 };
    let place = table::place([addresses, rest], config.secret, config.buckets);
    let (index, slot) = split(location);
    let (Some(bucket), Some(first)) = (SESSIONS_V4.get_ptr_mut(index), SESSIONS_V4.get_ptr_mut(place.first))
    else {
        return 0;
    };
    let mut beside = 0;
    // SAFETY: the pointers are to map values.
    unsafe {
        if slot < SLOTS {
            let word = (&raw mut (*bucket).tags).cast::<u64>().add(slot / LANES);
            beside = atomic::set(word, table::lane(slot, place.tag));
            atomic::add(&raw mut (*bucket).used, 1);
        }
        if index != place.first {
            unlock(bucket);
        }
        unlock(first);
    }
    beside
}

/// Removes the element under a key; 0: there is none. Else its tag and those beside it, so that this is a barrier, as
/// [`crate::ports`] asks for.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sessions_remove(addresses: u64, rest: u64) -> u64 {
    let (index, slot) = match sessions_locate(addresses, rest) {
        0 => return 0,
        location => split(location),
    };
    let Some(config) = config::config() else { return 0 };
    let place = table::place([addresses, rest], config.secret, config.buckets);
    let (Some(bucket), Some(first), Some(fill)) =
        (SESSIONS_V4.get_ptr_mut(index), SESSIONS_V4.get_ptr_mut(place.first), TABLE.get_ptr_mut(0))
    else {
        return 0;
    };
    if slot >= SLOTS {
        return 0;
    }
    // SAFETY: the pointers are to map values, the slot is one of the bucket's, and a tuple is two words.
    unsafe {
        slot_of(bucket, slot).cast::<u64>().add(1).write_volatile(NOBODY);
        let word = (&raw mut (*bucket).tags).cast::<u64>().add(slot / LANES);
        let tags = atomic::clear(word, table::lane(slot, 0xffff));
        atomic::add(&raw mut (*bucket).used, 1u32.wrapping_neg());
        if index != place.first {
            atomic::add(&raw mut (*first).spilled, 1u32.wrapping_neg());
        }
        atomic::add(&raw mut (*fill).elements, 1u32.wrapping_neg());
        tags
    }
}

/// The place of a slot as a number, not 0.
#[inline(always)]
const fn location(bucket: u32, slot: usize) -> u64 {
    1 + (bucket as u64 * 32 + slot as u64)
}

/// Bucket and slot of a [`location`].
#[inline(always)]
fn split(location: u64) -> (u32, usize) {
    let number = location.wrapping_sub(1);
    let mut slot = (number % 32) as usize;
    // See `candidate`.
    // SAFETY: a register is copied to itself.
    unsafe { asm!("{0} = {0}", inout(reg) slot, options(nomem, nostack, preserves_flags, pure)) };
    ((number / 32) as u32, slot)
}

/// The slot of a [`location`].
#[inline(always)]
fn slot_at(location: u64) -> Option<*mut Slot<V4>> {
    if location == 0 {
        return None;
    }
    let (index, slot) = split(location);
    let bucket = SESSIONS_V4.get_ptr_mut(index)?;
    // SAFETY: the pointer is to a map value.
    if slot < SLOTS { Some(unsafe { slot_of(bucket, slot) }) } else { None }
}

/// The slot with this tag; [`SLOTS`] or more: there is none.
///
/// # Safety
/// The pointer is to a map value.
#[inline(always)]
unsafe fn candidate(bucket: BucketPointer, tag: u64) -> usize {
    // SAFETY: the caller vouches for the pointer; other CPUs may write the words at any time.
    let tags: [u64; WORDS] = unsafe {
        [
            (&raw const (*bucket).tags[0]).read_volatile(),
            (&raw const (*bucket).tags[1]).read_volatile(),
            (&raw const (*bucket).tags[2]).read_volatile(),
            (&raw const (*bucket).tags[3]).read_volatile(),
            (&raw const (*bucket).tags[4]).read_volatile(),
            (&raw const (*bucket).tags[5]).read_volatile(),
        ]
    };
    let mut slot = table::first_of(table::slots_of(tags, tag));
    // Else the compiler compares what the slot is computed from, and the verifier does not see that the slot is bounded.
    // SAFETY: a register is copied to itself.
    unsafe { asm!("{0} = {0}", inout(reg) slot, options(nomem, nostack, preserves_flags, pure)) };
    slot
}

/// The element in a slot if it has the key of these words, whether its tag is set yet or not.
///
/// What is read of the element depends on its key, so that no processor reads it before: without a tag, the key alone says
/// that it is there.
///
/// # Safety
/// The pointer is to a slot of a map value.
#[inline(always)]
unsafe fn at_home(slot: *mut Slot<V4>, words: [u64; 2]) -> Option<*mut Slot<V4>> {
    // SAFETY: the caller vouches for the pointer. A tuple is two words.
    let difference = unsafe {
        let key: *const u64 = slot.cast();
        // The key and what lies behind it may be in two lines of the cache: they come at once.
        slot.cast::<u32>().add(size_of::<Slot<V4>>() / 4 - 1).read_volatile();
        (key.read_volatile() ^ words[0]) | (key.add(1).read_volatile() ^ words[1])
    };
    if difference != 0 {
        return None;
    }
    let mut nothing = difference;
    // SAFETY: a register is copied to itself. The verifier knows that it is 0, the compiler does not.
    unsafe { asm!("{0} = {0}", inout(reg) nothing, options(nomem, nostack, preserves_flags, pure)) };
    // SAFETY: as above.
    Some(unsafe { slot.byte_add(nothing as usize) })
}

/// Whether the element in a slot has the key of these words.
///
/// # Safety
/// The pointer is to a map value.
#[inline(always)]
unsafe fn is_under(bucket: BucketPointer, slot: usize, words: [u64; 2]) -> bool {
    if slot >= SLOTS {
        return false;
    }
    // SAFETY: the caller vouches for the pointer, and the slot is one of the bucket's. A tuple is two words.
    unsafe {
        let key: *const u64 = slot_of(bucket, slot).cast();
        key.read_volatile() == words[0] && key.add(1).read_volatile() == words[1]
    }
}

/// The element under the key of these words.
///
/// # Safety
/// The pointer is to a map value.
#[inline(always)]
unsafe fn find(bucket: BucketPointer, tag: u64, words: [u64; 2]) -> Option<*mut Slot<V4>> {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        let slot = candidate(bucket, tag);
        if is_under(bucket, slot, words) { Some(slot_of(bucket, slot)) } else { None }
    }
}

/// # Safety
/// The pointer is to a map value, and the slot below [`SLOTS`].
#[inline(always)]
unsafe fn slot_of(bucket: BucketPointer, slot: usize) -> *mut Slot<V4> {
    // SAFETY: the caller vouches for both.
    unsafe { (&raw mut (*bucket).slots).cast::<Slot<V4>>().add(slot) }
}

/// Locks the first bucket of a key, and waits for it; `false` where another CPU has it for too long.
///
/// # Safety
/// The pointer is to a map value.
#[inline(always)]
unsafe fn lock(bucket: BucketPointer) -> bool {
    let mut wanted = Wanted { bucket, locked: 0 };
    // SAFETY: the callback has the signature that the helper calls, and what it gets outlives the call.
    unsafe {
        bpf_loop(PATIENCE, lock_once as *mut c_void, (&raw mut wanted).cast(), 0);
        (&raw const wanted.locked).read_volatile() != 0
    }
}

#[repr(C)]
struct Wanted {
    bucket: BucketPointer,
    locked: u64,
}

unsafe extern "C" fn lock_once(_: u32, wanted: *mut Wanted) -> i64 {
    // SAFETY: `lock` passes this, with a pointer to a map value.
    unsafe {
        let done = try_lock((*wanted).bucket);
        if done {
            (*wanted).locked = 1;
        }
        i64::from(done)
    }
}

/// Locks a bucket if it is not locked. Who holds a lock does not wait for another one.
///
/// # Safety
/// The pointer is to a map value.
#[inline(always)]
unsafe fn try_lock(bucket: BucketPointer) -> bool {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic::replace(&raw mut (*bucket).lock, 0, 1) }
}

/// # Safety
/// The pointer is to a map value, which the caller has locked.
#[inline(always)]
unsafe fn unlock(bucket: BucketPointer) {
    // SAFETY: the caller vouches for the pointer.
    unsafe { atomic::replace(&raw mut (*bucket).lock, 1, 0) };
}
