//! Map `WALK`: the maximum segment size that the two ends of a connection announce (RFC 9293 3.7.1): lowered to what fits the
//! gateway's ways on both sides, and to what the pool allows, so that connections do not depend on path MTU discovery
//! (RFC 4459 3.2).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md, btf_maps::PerCpuArray, helpers::generated::bpf_loop, macros::btf_map,
    programs::XdpContext,
};
use gateway_common::{
    checksum,
    family::NextHop,
    parse::{Bytes as _, Flow, IPV4_LEN, IPV6_LEN, Packet},
    session::{Session, TCP_SYN},
};

use crate::{
    family::Datapath,
    packet::{Frame, MAX_OFFSET},
    path::Context,
    pool,
    rewrite::TCP_CHECKSUM,
    session::Subject,
};

/// Bytes of a TCP header without options.
const TCP_LEN: u16 = 20;
const DATA_OFFSET: usize = 12;
/// Bytes of options at most, and so their number.
const MAX_OPTIONS: u32 = 40;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Lowers what a SYN of a new session on the pool address `element` announces to the MTU of both ways: what it announces
/// is for the answers. A SYN without the option stands for 536 bytes, and stays as it is.
#[inline(always)]
pub(crate) fn clamp<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    (forth, back): (&NextHop, &NextHop),
    element: u32,
) {
    if is_syn(packet) {
        let limit = limit::<F>(forth.mtu.min(back.mtu)).min(pool::mss(element));
        lower(context.frame, packet.transport, limit);
    }
}

/// As [`clamp`], for a packet of a session.
#[inline(always)]
pub(crate) fn clamp_of<F: Datapath>(context: &Context<'_>, subject: &Subject<F>, session: &Session<F>) {
    if is_syn(&subject.packet) {
        let of_ways = limit::<F>(least_mtu(subject, session) as u16);
        let limit = of_ways.min(pool::mss(u32::from(session.pool_address)));
        lower(context.frame, subject.packet.transport, limit);
    }
}

#[inline(always)]
fn is_syn<F: Datapath>(packet: &Packet<F>) -> bool {
    matches!(packet.transport_layer.flow, Flow::Tcp) && packet.transport_layer.detail & TCP_SYN != 0
}

/// Largest segment in packets of `mtu` bytes.
#[inline(always)]
fn limit<F: Datapath>(mtu: u16) -> u16 {
    mtu.saturating_sub(TCP_LEN + if F::IS_V4 { IPV4_LEN as u16 } else { IPV6_LEN as u16 })
}

/// The MTU of both ways of a session. A function of its own, for its stack.
#[inline(never)]
fn least_mtu<F: Datapath>(subject: &Subject<F>, session: &Session<F>) -> u64 {
    let mtu = session.next_hop.mtu;
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let other =
        F::session(&subject.tuple.pair(session)).map_or(mtu, |other| unsafe { (*other).next_hop.mtu });
    u64::from(mtu.min(other))
}

/// Lowers the maximum segment size of the segment at `transport` to `limit`. Returns nothing of interest.
#[inline(never)]
fn lower(frame: &Frame<'_>, transport: u16, limit: u16) -> u64 {
    // The verifier wants to know that this is not large.
    let at = usize::from(transport) & MAX_OFFSET;
    let Some(offset) = frame.read::<u8>(at + DATA_OFFSET) else { return 0 };
    let Some(walk) = WALK.get_ptr_mut(0) else { return 0 };
    let end = transport + u16::from(offset >> 4) * 4;
    let mut held = frame.context();
    // SAFETY: the element is this CPU's own; the callback has the signature that the helper calls, and `held`
    // outlives the call.
    unsafe {
        *walk = Walk { at: transport + TCP_LEN, end, transport, limit };
        bpf_loop(MAX_OPTIONS, visit as *mut c_void, (&raw mut held).cast(), 0);
    }
    0
}

/// A walk through the options of a segment; offsets are those in the frame. Kept in a map, so that the verifier
/// looks at one step for all.
#[repr(C)]
struct Walk {
    at: u16,
    end: u16,
    transport: u16,
    limit: u16,
}

#[btf_map]
static WALK: PerCpuArray<Walk, 1> = PerCpuArray::new();

/// Looks at one option; 1 ends the walk.
unsafe extern "C" fn visit(_: u32, held: *const *mut xdp_md) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else { return 1 };
    // SAFETY: the element is this CPU's own.
    let walk = unsafe { &mut *walk };
    // SAFETY: `lower` passes the place of the program's context.
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
    if kind != MAXIMUM_SEGMENT_SIZE {
        walk.at += u16::from(length);
        return i64::from(length < 2);
    }
    if length != 4 || walk.at + 4 > walk.end {
        return 1;
    }
    let Some(announced) = frame.read::<u16>(at + 2) else { return 1 };
    let (old, new) = (u16::from_be(announced), walk.limit);
    if old > new && frame.write(at + 2, new.to_be()).is_ok() {
        // At an odd offset the bytes are halves of two words of the checksum: as one word, swapped (RFC 1071 2).
        let odd = (walk.at - walk.transport) & 1 != 0;
        let (old, new) = if odd { (old.swap_bytes(), new.swap_bytes()) } else { (old, new) };
        let delta = checksum::delta(old.into(), new.into());
        // The checksum is part of the header that was read.
        let transport = usize::from(walk.transport) & MAX_OFFSET;
        let _ = frame.update_checksum(transport + TCP_CHECKSUM, delta);
    }
    1
}
