//! Hairpins (RFC 4787 REQ-9, RFC 5382 REQ-8): packets from inside for the address and port of an
//! endpoint-independent mapping: programs `hairpin_v4` and `hairpin_v6`.
//!
//! Such a packet goes out and comes in, and so has two sessions. The first is that of its sender, with the
//! mapping as the outside host: it gives the packet an address of the pool as its source. The second is that of
//! the mapping's client, with this address as the outside host. Answers take the same two the other way round.
//! Both clients see each other as hosts on the outside do, and each client's table decides as for those.
//!
//! The inside element of such a session has the next hop [`LOOP`], its outside element the flag [`HAIRPIN`]; both
//! stay [`session::STALE`], so that all packets come by here: none may leave by the first session alone, and what
//! comes from outside, with an address of a pool as its source, is of neither. The policy is asked for each packet.

use gateway_common::{
    DropReason, Verdict,
    family::NextHop,
    mapping::{self as layout, HAIRPIN, LOOP},
    parse::{self, Fragment},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session},
};

use crate::{
    count,
    family::Datapath,
    mapping,
    neighbor::{self, Found},
    open,
    path::{self, Code, Context, Outcome},
    pool,
    route::Query,
    session::{self, Subject},
};

/// The way out of a hairpin's first session.
pub(crate) const WAY: NextHop = NextHop { slot: LOOP, mtu: u16::MAX, ethernet: [0; 3] };

/// Whether this is a session of a hairpin, looked at from `side`.
#[inline(always)]
pub(crate) fn is_one<F: Datapath>(session: &Session<F>, side: u8) -> bool {
    if side == SIDE_INSIDE { session.next_hop.slot == LOOP } else { session.flags & HAIRPIN != 0 }
}

/// Sends the packet in the subject through both sessions. A session that is not there is opened; `decide` has
/// checked source and route then.
#[inline(always)]
pub(crate) fn turn<F: Datapath>(context: &Context<'_>) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    if !matches!(subject.packet.fragment, Fragment::Whole) {
        return Err(DropReason::FragmentUnmatched);
    }
    if F::session(&subject.tuple).is_none() {
        let code = begin(context, subject);
        if code.is_open() {
            go_on(context, subject).result()?;
        } else {
            code.result()?;
        }
    } else {
        go_on(context, subject).result()?;
    }
    read_again(context, subject).result()?;
    if F::session(&subject.tuple).is_some() {
        return go_on(context, subject).result().map(turned);
    }
    if !mapping::may_open(&subject.packet) {
        return Err(DropReason::NoSession);
    }
    let code = mapping::let_in(context, subject, 1);
    if !code.is_open() {
        return code.result();
    }
    let code = mapping::enter(context, subject);
    if !code.is_open() {
        return code.result().map(turned);
    }
    go_on(context, subject).result().map(turned)
}

/// What a packet is counted as: it came from inside and was translated.
#[inline(always)]
fn turned(outcome: Outcome) -> Outcome {
    Outcome { verdict: Verdict::Snat, ..outcome }
}

/// Opens the first session, if there is a mapping to go to.
#[inline(never)]
fn begin<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    let key = layout::claim_key(packet.destination, packet.transport_layer.destination_port, packet.proto);
    if subject.cut != 0 || F::session(&key).is_none() {
        return Code::drop(DropReason::NoSession);
    }
    subject.forth = WAY;
    if !pool::is_endpoint_independent(subject.route.object) {
        return open::open(context, subject);
    }
    let held = mapping::take(context, subject);
    if held.is_open() { mapping::enter(context, subject) } else { held }
}

/// Reads the packet as the first session has made it, as one from outside.
#[inline(never)]
fn read_again<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let Some(link) = parse::link(context.frame) else { return Code::drop(DropReason::Truncated) };
    let read = path::read(context.frame, link.network, subject);
    subject.tuple.side = SIDE_OUTSIDE;
    subject.cut = 0;
    read
}

/// Sends the packet through the session of the key in the subject, if the policy still allows it.
#[inline(never)]
fn go_on<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let Some(session) = F::session(&subject.tuple) else { return Code::drop(DropReason::NoSession) };
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let session = unsafe { &mut *session };
    match ask(context, subject, session) {
        Ok(counter) => {
            count::route(counter, context.bytes);
            path::follow(context, subject, session)
        }
        Err(reason) => Code::drop(reason),
    }
}

/// Asks the policy, and for the way in. Returns the counter of the route.
#[inline(always)]
fn ask<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &mut Session<F>,
) -> Result<u32, DropReason> {
    let Subject { packet, tuple, .. } = subject;
    if !is_one(session, tuple.side) || !session::revive(tuple, session) {
        return Err(DropReason::NoSession);
    }
    if path::keeps_address(tuple, session) == 0 {
        session::cut(tuple, session);
        return Err(DropReason::NoSession);
    }
    let inside = tuple.side == SIDE_INSIDE;
    let (slot, source, destination) = if inside {
        let Found { next_hop, .. } = neighbor::back(context, packet)?;
        session.ingress = next_hop.slot;
        (u32::from(next_hop.slot), packet.source, packet.destination)
    } else {
        match neighbor::towards::<F>(context, packet.source, session.translated) {
            // As in `path::confirm`.
            Err(DropReason::NeighborUnresolved) => {}
            way => session.next_hop = way?.next_hop,
        }
        (u32::from(session.next_hop.slot), session.translated, packet.source)
    };
    if !context.is_inside(slot) {
        return Err(DropReason::NoSession);
    }
    let query = Query::<F> { source, destination, proto: packet.proto, port: packet.server_port(inside) };
    match path::allow(context, slot, subject.tuple.origin, &query) {
        Ok(counter) => {
            session.counter = counter;
            Ok(counter)
        }
        Err(reason) => {
            session::cut(tuple, session);
            Err(reason)
        }
    }
}
