//! The maximum segment size that the two ends of a connection announce (RFC 9293 3.7.1): lowered to what fits the
//! gateway's ways on both sides, and to what the pool allows, so that connections do not depend on path MTU discovery
//! (RFC 4459 3.2).

use gateway_common::{
    checksum,
    family::NextHop,
    parse::{Bytes as _, Flow, IPV4_LEN, IPV6_LEN, Packet},
    session::{Session, TCP_SYN},
};

use crate::{
    family::Datapath,
    option::{self, TCP_LEN},
    packet::{Frame, MAX_OFFSET},
    path::Context,
    pool,
    rewrite::TCP_CHECKSUM,
    session::Subject,
};

/// Kind of the option.
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
/// Bytes of the option.
const LENGTH: u8 = 4;

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

/// Lowers the maximum segment size of the segment at `transport` to `limit`.
#[inline(always)]
fn lower(frame: &Frame<'_>, transport: u16, limit: u16) {
    let found = option::find(frame, transport, MAXIMUM_SEGMENT_SIZE, LENGTH);
    if found != 0 {
        lower_at(frame, found, transport, limit);
    }
}

/// As [`lower`], for the option at `found`. A function of its own, for its stack. Returns nothing of interest.
#[inline(never)]
fn lower_at(frame: &Frame<'_>, found: u64, transport: u16, limit: u16) -> u64 {
    // The verifier wants to know that these are not large.
    let (at, start) = (found as usize & MAX_OFFSET, usize::from(transport) & MAX_OFFSET);
    let Some(announced) = frame.read::<u16>(at + 2) else { return 0 };
    let (old, new) = (u16::from_be(announced), limit);
    if old > new && frame.write(at + 2, new.to_be()).is_ok() {
        // At an odd offset the bytes are halves of two words of the checksum: as one word, swapped (RFC 1071 2).
        let odd = at.wrapping_sub(start) & 1 != 0;
        let (old, new) = if odd { (old.swap_bytes(), new.swap_bytes()) } else { (old, new) };
        let delta = checksum::delta(old.into(), new.into());
        // The checksum is part of the header that was read.
        let _ = frame.update_checksum(start + TCP_CHECKSUM, delta);
    }
    0
}
