//! The opening of a session: address, port, two elements.

use gateway_common::{
    DropReason, Verdict, checksum,
    mapping::{HAIRPIN, LOOP},
    parse::{Flow, Fragment, Packet},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, TCP_ACK, TCP_SYN, Tuple},
    tcp::State,
};

use crate::{
    claim, config, count,
    family::Datapath,
    forward, mss,
    path::{Code, Context, Outcome},
    proxy, record, rewrite,
    session::{self, EEXIST, Scratch, Subject},
    tcp,
};

/// Opens a session for a packet from the inside and sends the packet on its way. [`Code::OPEN`]: there is one by
/// now.
#[inline(never)]
pub(crate) fn open<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    match try_open(context, subject) {
        Ok(Some(outcome)) => Code::outcome(outcome),
        Ok(None) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_open<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<Option<Outcome>, DropReason> {
    if !try_enter(context, subject)? {
        return Ok(None);
    }
    let Subject { packet, forth: next_hop, .. } = subject;
    let place = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *place };
    rewrite::translate(context.frame, packet, &scratch.inside_session, SIDE_INSIDE)?;
    forward::readdress::<F>(context.frame, packet.network(), next_hop)?;
    claim::make_room(packet);
    Ok(Some(Outcome { verdict: Verdict::Snat, slot: u32::from(next_hop.slot) }))
}

/// Opens a session for a packet from the inside, which stays as it is: the session is in the scratch element.
/// [`Code::OPEN`]: there is one by now.
#[inline(never)]
pub(crate) fn enter<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    match try_enter(context, subject) {
        Ok(true) => {
            claim::make_room(&subject.packet);
            Code::OK
        }
        Ok(false) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

/// `false`: another CPU has opened the session.
#[inline(always)]
fn try_enter<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<bool, DropReason> {
    let Subject { packet, tuple, route, forth: next_hop, .. } = subject;
    forward::check(packet, next_hop)?;
    let place = F::scratch().ok_or(DropReason::Internal)?;
    let (state, mark) = tcp::opening(context.frame, packet)?;
    // SAFETY: the scratch element is this CPU's own.
    unsafe { (*place).sequence = u32::from_be(mark).wrapping_sub(1) };
    // SAFETY: the scratch element is this CPU's own, and the reference ends before the claim.
    begin(context, subject, tuple, state, unsafe { &mut *place });

    tcp::admit(context.config, state)?;
    if let Err(reason) = claim::claim(context, packet, route.object) {
        tcp::leave(state);
        return Err(reason);
    }

    // SAFETY: as above; the claim is through.
    let scratch = unsafe { &mut *place };
    if let Err(error) = finish(context, subject, mark, scratch) {
        // Give the port back. Nobody can have used it: no packet has left with it.
        claim::give_back(scratch);
        tcp::leave(state);
        // Another CPU opened the session with an earlier packet of this flow?
        return if error == EEXIST { Ok(false) } else { Err(session::refusal(error)) };
    }
    count::pool(scratch.claim.chosen, |pool| pool.attempts += 1);
    mss::clamp(context, packet, (next_hop, &subject.back), scratch.claim.chosen);
    Ok(true)
}

/// Begins the session of the inside tuple `inside`: all that is known before it has an address and a port.
#[inline(always)]
pub(crate) fn begin<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    inside: &Tuple<F>,
    state: State,
    scratch: &mut Scratch<F>,
) {
    let now = config::now(context.config);
    scratch.inside = *inside;
    scratch.outside.source = inside.destination;
    scratch.outside.source_port = inside.destination_port;
    scratch.outside.proto = inside.proto;
    scratch.outside.side = SIDE_OUTSIDE;
    scratch.outside.origin = 0;

    let answer = &mut scratch.outside_session;
    // A way back that was only learned is asked for again with the first answer.
    let turns = subject.forth.slot == LOOP;
    answer.generation = if subject.learned == 0 && !turns { context.generation } else { session::STALE };
    answer.last_seen = now;
    answer.packets = 0;
    answer.bytes = 0;
    answer.next_hop = subject.back;
    answer.translated = inside.source;
    answer.translated_port = inside.source_port;
    answer.ingress = inside.origin;
    answer.state = state as u8;
    answer.flags = if turns { HAIRPIN } else { 0 };
    answer.counter = subject.route.counter;
    answer.log = subject.route.log;
    answer.mark = now;
}

/// Enters the inside element of a session whose outside element is entered, and counts the session.
///
/// # Errors
/// Why the element could not be entered. The outside element is the caller's to take back.
#[inline(always)]
pub(crate) fn finish<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    mark: u32,
    scratch: &mut Scratch<F>,
) -> Result<(), i32> {
    complete(context, subject, mark, scratch);
    F::insert_session(&scratch.inside, &scratch.inside_session)?;
    scratch.taken.hand_over();
    count::session(subject.packet.proto, |sessions| sessions.created += 1);
    record::opened::<F>();
    count::pool(scratch.claim.chosen, |pool| pool.opened += 1);
    Ok(())
}

/// Completes the inside element of a session from its outside element.
#[inline(always)]
pub(crate) fn complete<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    mark: u32,
    scratch: &mut Scratch<F>,
) {
    let Subject { packet, tuple, forth: next_hop, .. } = subject;
    let claim = &scratch.claim;
    let translated = scratch.outside.destination;
    let (client_port, port) = (scratch.inside.source_port, scratch.outside.destination_port);
    let forward = &mut scratch.inside_session;
    *forward = scratch.outside_session;
    forward.generation = if next_hop.slot == LOOP { session::STALE } else { context.generation };
    // The client's packets come from where its answers go (strict reverse path check).
    let slot = proxy::ingress(context, &subject.back);
    forward.ingress = Session::<F>::ingress_of(slot, scratch.taken.charge());
    forward.next_hop = *next_hop;
    forward.translated = translated;
    forward.translated_port = port;
    forward.flags = 0;
    // The way out changes the checksums by the opposite of what the way back does, and one hop.
    let pool_sum = F::sum(&translated);
    forward.network_delta =
        checksum::combine(checksum::delta(claim.client_sum, pool_sum), forward::TTL_DELTA);
    forward.transport_delta = claim.transport_delta(claim.client_sum, client_port, pool_sum, port);
    let first = u64::from(tuple.side == SIDE_INSIDE);
    forward.packets = first;
    forward.bytes = first * u64::from(packet.length);
    forward.mark = mark;
}

/// Whether a packet may open a session.
#[inline(always)]
pub(crate) fn may_open<F: Datapath>(packet: &Packet<F>) -> Result<(), DropReason> {
    if matches!(packet.fragment, Fragment::Later) {
        return Err(DropReason::FragmentUnmatched);
    }
    match packet.transport_layer.flow {
        // Only a SYN opens a connection: what belongs to one that the gateway does not know is not let out
        // under an address its server has never seen.
        Flow::Tcp if packet.transport_layer.detail & (TCP_SYN | TCP_ACK) != TCP_SYN => {
            Err(DropReason::NoSession)
        }
        Flow::EchoReply | Flow::Icmp => Err(DropReason::NoSession),
        Flow::Other => Err(DropReason::UnsupportedProtocol),
        Flow::Tcp | Flow::Udp | Flow::EchoRequest => Ok(()),
    }
}
