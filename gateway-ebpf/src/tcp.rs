//! Moves the state of TCP sessions, by the rules of [`gateway_common::tcp`].
//!
//! The state is a byte of the inside element's control word and changes by compare and swap only, so that each
//! transition happens once, on one CPU. What goes with a transition, the mark and the copy in the outside
//! element, is written after it: a packet of the same flow on another CPU may see the one and not the other,
//! and then takes the slow path once more, or leaves an older acknowledgement.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use gateway_common::{
    DropReason,
    config::Config,
    parse::{Bytes as _, Flow, Packet},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tuple},
    tcp::{self, FORGOTTEN, Segment, State, Step},
};

use crate::{
    atomic, config, count,
    family::Datapath,
    forward, limit,
    packet::Frame,
    path::{Code, Context},
    session::Subject,
    source, stamp,
};

/// Number of sessions that are half open. It moves with the transitions into such states and out of them, with
/// the opening and the removal of sessions, and so is exact.
#[btf_map]
static HALF_OPEN: Array<u32, 1> = Array::new();

/// Offset of the acknowledgement number in the header.
pub(crate) const ACKNOWLEDGEMENT: usize = 8;
const SEQUENCE: usize = 4;
const DATA_OFFSET: usize = 12;

/// Attempts at a transition that other CPUs make at the same time.
const ATTEMPTS: u32 = 3;

/// Whether a packet of `session` goes straight on: it neither opens nor closes the connection, and the
/// connection is established. Sessions of other protocols always are.
#[inline(always)]
pub(crate) fn goes_on<F: Datapath>(packet: &Packet<F>, session: &Session<F>) -> bool {
    session.state == State::Established as u8
        && (packet.transport_layer.detail & (TCP_SYN | TCP_FIN | TCP_RST) == 0
            || !matches!(packet.transport_layer.flow, Flow::Tcp))
}

/// State and mark of a new session.
#[inline(always)]
pub(crate) fn opening<F: Datapath>(
    frame: &Frame<'_>,
    packet: &Packet<F>,
) -> Result<(State, u32), DropReason> {
    if !matches!(packet.transport_layer.flow, Flow::Tcp) {
        return Ok((State::Established, 0));
    }
    let segment = segment(frame, packet)?;
    // As the SYN of a connection that comes after one that was refused.
    let step = tcp::step(State::Refused, 0, SIDE_INSIDE, &segment).ok_or(DropReason::Internal)?;
    Ok((step.state, step.mark.to_be()))
}

/// State and mark of a new session that a packet from outside opens; only a SYN does, of TCP.
///
/// As the second SYN of two that cross: the client has yet to acknowledge it.
#[inline(always)]
pub(crate) fn opening_from_outside<F: Datapath>(
    frame: &Frame<'_>,
    packet: &Packet<F>,
) -> Result<(State, u32), DropReason> {
    if !matches!(packet.transport_layer.flow, Flow::Tcp) {
        return Ok((State::Established, 0));
    }
    let segment = segment(frame, packet)?;
    let step = tcp::step(State::Opening, 0, SIDE_OUTSIDE, &segment).ok_or(DropReason::Internal)?;
    Ok((step.state, step.mark.to_be()))
}

/// Makes room for a session that begins in `state`; [`leave`] gives it back.
#[inline(always)]
pub(crate) fn admit(config: &Config, state: State) -> Result<(), DropReason> {
    if !state.is_half_open() {
        return Ok(());
    }
    let count = HALF_OPEN.get_ptr_mut(0).ok_or(DropReason::Internal)?;
    // SAFETY: the pointer is to a map value. Where the flood is, nobody writes.
    unsafe {
        if count.read_volatile() >= config.half_open {
            return Err(DropReason::SessionTableFull);
        }
        if atomic::add(count, 1) >= config.half_open {
            atomic::add(count, u32::MAX);
            return Err(DropReason::SessionTableFull);
        }
    }
    Ok(())
}

/// Counts a session that leaves `state`.
#[inline(always)]
pub(crate) fn leave(state: State) {
    if state.is_half_open() {
        move_half_open(u32::MAX);
    }
}

/// Counts a session that goes from `before` to `after`.
#[inline(always)]
pub(crate) fn pass(before: State, after: State) {
    if before.is_half_open() != after.is_half_open() {
        move_half_open(if before.is_half_open() { u32::MAX } else { 1 });
    }
}

#[inline(always)]
fn move_half_open(by: u32) {
    if let Some(count) = HALF_OPEN.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map value.
        unsafe { atomic::add(count, by) };
    }
}

/// Leaves the timestamp of a client's segment in the subject. Returns nothing of interest.
#[inline(never)]
pub(crate) fn read_stamp<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> u64 {
    if subject.tuple.side == SIDE_INSIDE && matches!(subject.packet.transport_layer.flow, Flow::Tcp) {
        subject.stamp = stamp::of(context.frame, &subject.packet);
    }
    0
}

/// Drops a client's SYN that is not ahead of the connection that the session had, see [`tcp::may_pass`]. A function
/// of its own, for its stack: [`track`] has none left. Between the two, another CPU may close the connection; then such
/// a SYN passes, and the server judges it.
#[inline(never)]
pub(crate) fn admit_anew<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &Session<F>,
) -> Code {
    let Subject { packet, tuple, stamp, .. } = subject;
    if tuple.side != SIDE_INSIDE || !matches!(packet.transport_layer.flow, Flow::Tcp) {
        return Code::OK;
    }
    if session.state == State::BothFins as u8 && packet.transport_layer.detail & TCP_SYN != 0 {
        let Ok(mut segment) = segment(context.frame, packet) else {
            return Code::drop(DropReason::Truncated);
        };
        segment.stamp = *stamp;
        // SAFETY: the pointer is to a map value; a plain integer is read.
        let answered = F::session(&tuple.pair(session)).map_or(0, |answer| unsafe { (*answer).last_seen });
        let idle = config::now(context.config).saturating_sub(session.last_seen.max(answered));
        let forgotten = idle >= context.config.timeouts.tcp_closing / FORGOTTEN;
        let last = stamp::last(tuple, context.config.secret);
        if !tcp::may_pass(State::BothFins, u32::from_be(session.mark), last, forgotten, &segment) {
            return Code::drop(DropReason::NoSession);
        }
    }
    Code::OK
}

/// Takes the tokens for a connection that a client's SYN is about to begin on a closed session.
#[inline(always)]
pub(crate) fn renew<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &Session<F>,
) -> Result<(), DropReason> {
    let opens = subject.packet.transport_layer.detail & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if !opens
        || subject.tuple.side != SIDE_INSIDE
        || !matches!(subject.packet.transport_layer.flow, Flow::Tcp)
        || session.is_proxied()
        || !State::from_number(session.state).is_closed()
    {
        return Ok(());
    }
    limit::renew(subject, session).result()?;
    let code = source::renew(context, &subject.tuple, session);
    if let Err(reason) = code.result() {
        limit::give_back(session);
        return Err(reason);
    }
    Ok(())
}

/// Notes the timestamp of a client's segment that is not one of many. Returns nothing of interest.
#[inline(never)]
pub(crate) fn note_stamp<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &Session<F>,
) -> u64 {
    if subject.tuple.side == SIDE_INSIDE
        && matches!(subject.packet.transport_layer.flow, Flow::Tcp)
        && session.state != State::Established as u8
    {
        stamp::note(&subject.tuple, context.config.secret, subject.stamp);
    }
    0
}

/// Moves the state of the session, if it is TCP. A reset that nobody would believe is dropped.
#[inline(never)]
pub(crate) fn track<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &mut Session<F>,
) -> Code {
    let Subject { packet, tuple, .. } = subject;
    if !matches!(packet.transport_layer.flow, Flow::Tcp) {
        return Code::OK;
    }
    // What is dropped for other reasons moves nothing.
    let tracked = forward::check(packet, &session.next_hop);
    match tracked.and_then(|()| try_track(context, packet, tuple, session)) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_track<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    tuple: &Tuple<F>,
    session: &mut Session<F>,
) -> Result<(), DropReason> {
    let segment = segment(context.frame, packet)?;
    let other = F::session(&tuple.pair(session));
    let (owner, copy) = if tuple.side == SIDE_INSIDE {
        (&raw mut *session, other)
    } else {
        (other.ok_or(DropReason::NoSession)?, Some(&raw mut *session))
    };
    for _ in 0..ATTEMPTS {
        // SAFETY: the pointers are to map values; the fields are plain integers.
        unsafe {
            let word = owner.cast::<u32>().add(Session::<F>::CONTROL);
            let observed = word.read_volatile();
            let state = State::from_number(Session::<F>::state_of(observed));
            let mark = u32::from_be((&raw const (*owner).mark).read_volatile());
            let step = tcp::step(state, mark, tuple.side, &segment).ok_or(DropReason::NoSession)?;
            if step.state != state
                && !atomic::replace(word, observed, Session::<F>::with_state(observed, step.state as u8))
            {
                continue;
            }
            arrive(owner, copy, state, step, mark);
            return Ok(());
        }
    }
    Err(DropReason::Internal)
}

/// Ends the transitions of a session that is being deleted, and returns the state it had. `None`: packets moved
/// it all the while.
#[inline(always)]
pub(crate) fn take<F: Datapath>(session: &mut Session<F>) -> Option<State> {
    for _ in 0..ATTEMPTS {
        // SAFETY: the reference is to a map value; the word is a `u32`.
        unsafe {
            let word = (&raw mut *session).cast::<u32>().add(Session::<F>::CONTROL);
            let observed = word.read_volatile();
            if atomic::replace(word, observed, Session::<F>::with_state(observed, State::Gone as u8)) {
                return Some(State::from_number(Session::<F>::state_of(observed)));
            }
        }
    }
    None
}

/// What goes with a transition out of `before`.
///
/// # Safety
/// The pointers are to the map values of one session.
#[inline(always)]
unsafe fn arrive<F: Datapath>(
    owner: *mut Session<F>,
    copy: Option<*mut Session<F>>,
    before: State,
    step: Step,
    mark: u32,
) {
    // SAFETY: the caller vouches for the pointers; the fields are plain integers.
    unsafe {
        if step.mark != mark {
            (&raw mut (*owner).mark).write_volatile(step.mark.to_be());
        }
        if let Some(copy) = copy
            && (*copy).state != step.state as u8
        {
            (&raw mut (*copy).state).write_volatile(step.state as u8);
        }
        pass(before, step.state);
        let pool_address = u32::from((*owner).pool_address);
        if before.is_closed() && matches!(step.state, State::Opening) {
            count::pool(pool_address, |pool| pool.attempts += 1);
        }
        if matches!((before, step.state), (State::Opening, State::Answered)) {
            count::pool(pool_address, |pool| pool.established += 1);
        }
    }
}

/// Reads what a segment tells about its connection.
#[inline(always)]
fn segment<F: Datapath>(frame: &Frame<'_>, packet: &Packet<F>) -> Result<Segment, DropReason> {
    let at = packet.transport();
    let sequence: u32 = frame.read(at + SEQUENCE).ok_or(DropReason::Truncated)?;
    let acknowledgement: u32 = frame.read(at + ACKNOWLEDGEMENT).ok_or(DropReason::Truncated)?;
    let offset: u8 = frame.read(at + DATA_OFFSET).ok_or(DropReason::Truncated)?;
    let headers = (at - packet.network()) as u32 + u32::from(offset >> 4) * 4;
    Ok(Segment {
        flags: packet.transport_layer.detail,
        sequence: u32::from_be(sequence),
        acknowledgement: u32::from_be(acknowledgement),
        payload: u32::from(packet.length).saturating_sub(headers),
        stamp: 0,
    })
}
