//! Map `WALK`: the options of TCP segments (RFC 9293 3.1).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md, btf_maps::PerCpuArray, helpers::generated::bpf_loop, macros::btf_map,
    programs::XdpContext,
};
use gateway_common::parse::Bytes as _;

use crate::packet::{Frame, MAX_OFFSET};

/// Bytes of a TCP header without options.
pub(crate) const TCP_LEN: u16 = 20;
const DATA_OFFSET: usize = 12;
/// Bytes of options at most, and so their number.
const MAX_OPTIONS: u32 = 40;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Where the segment at `transport` has the first option of `kind`, which is `length` bytes long; 0: nowhere.
#[inline(never)]
pub(crate) fn find(frame: &Frame<'_>, transport: u16, kind: u8, length: u8) -> u64 {
    // The verifier wants to know that this is not large.
    let at = usize::from(transport) & MAX_OFFSET;
    let Some(offset) = frame.read::<u8>(at + DATA_OFFSET) else { return 0 };
    let Some(walk) = WALK.get_ptr_mut(0) else { return 0 };
    let end = transport + u16::from(offset >> 4) * 4;
    let mut held = frame.context();
    // SAFETY: the element is this CPU's own; the callback has the signature that the helper calls, and `held`
    // outlives the call.
    unsafe {
        *walk = Walk { at: transport + TCP_LEN, end, found: 0, kind, length };
        bpf_loop(MAX_OPTIONS, visit as *mut c_void, (&raw mut held).cast(), 0);
        u64::from((*walk).found)
    }
}

/// A walk through the options of a segment; offsets are those in the frame. Kept in a map, so that the verifier
/// looks at one step for all.
#[repr(C)]
struct Walk {
    at: u16,
    end: u16,
    found: u16,
    kind: u8,
    length: u8,
}

#[btf_map]
static WALK: PerCpuArray<Walk, 1> = PerCpuArray::new();

/// Looks at one option; 1 ends the walk.
unsafe extern "C" fn visit(_: u32, held: *const *mut xdp_md) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else { return 1 };
    // SAFETY: the element is this CPU's own.
    let walk = unsafe { &mut *walk };
    // SAFETY: `find` passes the place of the program's context.
    let ctx = XdpContext::new(unsafe { *held });
    let frame = Frame::new(&ctx);
    let at = usize::from(walk.at) & MAX_OFFSET;
    if walk.at >= walk.end {
        return 1;
    }
    let Some(kind) = frame.read::<u8>(at) else { return 1 };
    if kind == END {
        return 1;
    }
    if kind == NO_OPERATION {
        walk.at += 1;
        return 0;
    }
    let Some(length) = frame.read::<u8>(at + 1) else { return 1 };
    if kind != walk.kind {
        walk.at += u16::from(length);
        return i64::from(length < 2);
    }
    if length == walk.length && walk.at + u16::from(length) <= walk.end {
        walk.found = walk.at;
    }
    1
}
