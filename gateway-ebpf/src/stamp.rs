//! Map `STAMPS`: the timestamps (RFC 7323) that clients of closing connections have sent last.
//!
//! A session has no room for them, and they are a help, not a promise: the map is direct mapped, and where two
//! connections meet, the one before is forgotten. What is left then is the sequence number.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use gateway_common::{
    parse::{Bytes as _, Packet},
    session::Tuple,
    tcp::{self, STAMPS_LEN},
};

use crate::{
    family::Datapath,
    option,
    packet::{Frame, MAX_OFFSET},
};

/// Kind of the option.
const TIMESTAMPS: u8 = 8;
/// Bytes of the option.
const LENGTH: u8 = 10;

/// A check of whose it is in the upper half of each element, the timestamp in the lower one: they are written as one.
#[btf_map]
static STAMPS: Array<u64, { STAMPS_LEN as usize }> = Array::new();

/// The timestamp of a segment, host byte order; 0: it has none.
#[inline(always)]
pub(crate) fn of<F: Datapath>(frame: &Frame<'_>, packet: &Packet<F>) -> u32 {
    let found = option::find(frame, packet.transport, TIMESTAMPS, LENGTH);
    if found == 0 {
        return 0;
    }
    frame.read::<u32>((found as usize & MAX_OFFSET) + 2).map_or(0, u32::from_be)
}

/// Notes the timestamp of the client's last segment, 0 where that has none.
#[inline(always)]
pub(crate) fn note<F: Datapath>(inside: &Tuple<F>, secret: u32, stamp: u32) {
    let (place, check) = tcp::stamp(inside, secret);
    if let Some(element) = STAMPS.get_ptr_mut(place) {
        // SAFETY: the pointer is to a map value; a word is written at once.
        unsafe { element.write_volatile(u64::from(check) << 32 | u64::from(stamp)) };
    }
}

/// The timestamp of the client's last segment; 0: not known.
#[inline(always)]
pub(crate) fn last<F: Datapath>(inside: &Tuple<F>, secret: u32) -> u32 {
    let (place, check) = tcp::stamp(inside, secret);
    // SAFETY: the pointer is to a map value; a word is read at once.
    let element = STAMPS.get_ptr(place).map_or(0, |element| unsafe { element.read_volatile() });
    if (element >> 32) as u32 == check { element as u32 } else { 0 }
}
