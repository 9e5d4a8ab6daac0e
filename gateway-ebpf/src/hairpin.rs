//! Hairpins (RFC 4787 REQ-9, RFC 5382 REQ-8): packets from inside for an address that stands for another inside host, an
//! EIP or the address and port of an endpoint-independent mapping: programs `hairpin_v4` and `hairpin_v6`.
//!
//! Such a packet goes out and comes in. The first half is that of its sender, by a session here or by his EIP
//! ([`crate::eip`]), and gives the packet the source that he has outside. The second half ([`inward`]) is that of who
//! it is for, by his EIP, or by his session or mapping. Answers take the same two the other way round. Both hosts see
//! each other as hosts on the outside do, and each one's own table decides as for those.
//!
//! The inside element of a session of a hairpin has the next hop [`LOOP`], its outside element the flag [`HAIRPIN`];
//! both stay [`session::STALE`], so that all packets come by here: none may leave by the first half alone, and what
//! comes from outside, with an address of the gateway as its source, is of neither. The policy is asked for each packet.

use aya_ebpf::programs::XdpContext;
use gateway_common::{
    DropReason,
    family::NextHop,
    mapping::{self as layout, HAIRPIN, LOOP},
    parse::Fragment,
    session::{SIDE_INSIDE, Session},
};

use crate::{
    count,
    family::Datapath,
    forward, fragment, inward, mapping, mss,
    neighbor::{self, Found},
    open,
    path::{self, Code, Context, Outcome},
    pool, proxy,
    route::Query,
    session::{self, Subject, TO_MAPPING},
    source, tcp,
};

/// The way out of the first half.
pub(crate) const WAY: NextHop = NextHop { slot: LOOP, mtu: u16::MAX, ethernet: [0; 3] };

/// Whether this is a session of a hairpin, looked at from `side`.
#[inline(always)]
pub(crate) fn is_one<F: Datapath>(session: &Session<F>, side: u8) -> bool {
    if side == SIDE_INSIDE { session.next_hop.slot == LOOP } else { session.flags & HAIRPIN != 0 }
}

/// Takes the packet in the subject through its sender's session. One that is not there is opened; `decide` has checked
/// source and route then.
#[inline(always)]
pub(crate) fn turn<F: Datapath, const INWARD: u32>(
    context: &Context<'_>,
    ctx: &XdpContext,
) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    let known = F::session(&subject.tuple).is_some();
    let code = if known { Code::OPEN } else { begin(context, subject) };
    if code.is_open() {
        follow(context, subject).result()?;
    } else {
        code.result()?;
    }
    path::hand_over::<INWARD>(ctx)
}

/// Opens the sender's session, if there is somebody to go to. [`Code::OPEN`]: there is one by now.
#[inline(never)]
fn begin<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    if subject.hairpin == TO_MAPPING {
        let key =
            layout::claim_key(packet.destination, packet.transport_layer.destination_port, packet.proto);
        if !mapping::may_open(packet) || F::session(&key).is_none() {
            return Code::drop(DropReason::NoSession);
        }
    }
    if subject.cut != 0 {
        return Code::drop(DropReason::NoSession);
    }
    if matches!(packet.fragment, Fragment::First) {
        let taught = fragment::teach(context, subject);
        if taught.result().is_err() {
            return taught;
        }
    }
    let admitted = source::admit(context, subject);
    if admitted.result().is_err() {
        return admitted;
    }
    let entered = if pool::is_endpoint_independent(subject.route.object) {
        let held = mapping::take(context, subject);
        if held.is_open() { mapping::enter(context, subject) } else { held }
    } else {
        open::enter(context, subject)
    };
    source::settle::<F>();
    if entered.is_open() || entered.result().is_err() {
        return entered;
    }
    let Some(scratch) = F::scratch() else { return Code::drop(DropReason::Internal) };
    // SAFETY: the scratch element is this CPU's own.
    let session = unsafe { &(*scratch).inside_session };
    inward::turn(subject, session.translated, session.translated_port, inward::BY_SESSION);
    Code::OK
}

/// Takes the packet in the subject half its way, through the session of its key, if the policy still allows it. The way
/// out of a session from outside is left in the subject.
///
/// Two functions, for their stack.
#[inline(always)]
pub(crate) fn follow<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let asked = ask(context, subject);
    if asked.result().is_ok() { pass(context, subject) } else { asked }
}

/// Does to the session, and to the packet in the subject, what a packet of it does, and writes nothing.
#[inline(never)]
fn pass<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let Some(session) = F::session(&subject.tuple) else { return Code::drop(DropReason::NoSession) };
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    match try_pass(context, subject, unsafe { &mut *session }) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_pass<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &mut Session<F>,
) -> Result<(), DropReason> {
    subject.mtu = session.next_hop.mtu;
    if matches!(subject.packet.fragment, Fragment::First) {
        fragment::teach(context, subject).result()?;
    }
    forward::check(&subject.packet, &session.next_hop)?;
    tcp::read_stamp(context, subject);
    tcp::admit_anew(context, subject, session).result()?;
    tcp::renew(context, subject, session)?;
    tcp::track(context, subject, session).result()?;
    mss::clamp_of(context, subject, session);
    tcp::note_stamp(context, subject, session);
    path::seen(context, &subject.packet, session, subject.tuple.side);
    let (translated, port) = (session.translated, session.translated_port);
    if subject.tuple.side == SIDE_INSIDE {
        inward::turn(subject, translated, port, inward::BY_SESSION);
        return Ok(());
    }
    subject.packet.destination = translated;
    subject.packet.transport_layer.destination_port = port;
    subject.forth = session.next_hop;
    Ok(())
}

/// Asks the policy, and for the way in.
#[inline(never)]
fn ask<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    let Some(session) = F::session(&subject.tuple) else { return Code::drop(DropReason::NoSession) };
    // SAFETY: as in `pass`.
    match try_ask(context, subject, unsafe { &mut *session }) {
        Ok(counter) => {
            count::route(counter, context.bytes);
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

/// Returns the counter of the route.
#[inline(always)]
fn try_ask<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &mut Session<F>,
) -> Result<u16, DropReason> {
    let Subject { packet, tuple, .. } = subject;
    if !is_one(session, tuple.side) || !session::revive(tuple, session) {
        return Err(DropReason::NoSession);
    }
    if path::keeps_ends(tuple, session) == 0 {
        session::cut(tuple, session);
        return Err(DropReason::NoSession);
    }
    let inside = tuple.side == SIDE_INSIDE;
    let origin = if inside { tuple.origin } else { session.ingress };
    let (slot, source, destination) = if inside {
        if origin == 0 {
            neighbor::back(context, packet)?;
        }
        session::set_slot(session, context.ingress.slot);
        (context.ingress.slot, packet.source, packet.destination)
    } else {
        let way = if origin == 0 {
            neighbor::towards::<F>(context, packet.source, session.translated)
        } else {
            proxy::towards(origin).map(|next_hop| Found { next_hop, learned: false })
        };
        match way {
            // As in `path::confirm`.
            Err(DropReason::NeighborUnresolved) => {}
            way => session.next_hop = way?.next_hop,
        }
        (u32::from(session.next_hop.slot), session.translated, packet.source)
    };
    if !context.is_inside(slot) {
        return Err(DropReason::NoSession);
    }
    let query = Query::<F> { source, destination, proto: tuple.proto, port: session::server_port(tuple) };
    match path::allow(context, slot, origin, &query) {
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
