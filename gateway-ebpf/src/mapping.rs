//! Endpoint-independent mappings (RFC 4787 REQ-1 and REQ-8, RFC 5382 REQ-1 and REQ-3): programs `map_v4` and
//! `map_v6`. What a mapping is, is told in [`gateway_common::mapping`].
//!
//! A flow from inside takes the mapping of its client's address and port, or makes it: its claim is entered by
//! the search for ports that all sessions use, towards the destination `0:0`. A flow from outside that meets a
//! mapping is let in to its client, where the client's own table sends packets to that host through this pool.
//! Then the flow gets a session like any other.
//!
//! # Why a mapping lives as long as its sessions
//!
//! The claim has a count of those that hold it, [`Session::mark`], and dies only at 0. Whoever opens a session
//! holds the mapping first ([`hold`]); the hold passes to the session, whose outside element has the flag
//! [`HELD`], and is let go by whoever deletes the session's inside element, the sweep alone, or by who fails to
//! enter it. Nobody else moves the count, and the inside element is entered and deleted once. So the count is the
//! number of such sessions, and of packets on their way to one.
//!
//! * *Hold against the end.* The sweep takes a claim with a count of 0 from [`LIVE`] to [`RETIRED`], and on a later
//!   visit from there to [`DEAD`], if the count is still 0. A holder adds to the count and then reads the
//!   generation; both are full barriers. Where it reads `LIVE`, it has counted before the claim was retired, and
//!   the later visit finds the count. Where it reads `RETIRED`, it and the sweep both try to replace that, and one
//!   of them does. Where it reads `DEAD`, it takes its count back and looks no further.
//! * *Deletion.* A claim that was found `DEAD` is deleted on the visit after. A packet that was reading it is
//!   through by then, as with sessions.
//! * *Two CPUs make one mapping.* Each enters a claim of its own. The pointer is one: who enters it second gives
//!   its own hold back and takes the mapping that the pointer shows. The claim that is left has no pointer and a
//!   count of 0; the sweep removes it.
//! * *The pointer* is only a hint. Its claim is asked whose it is, and pool and address are asked whether they
//!   still belong together. Where they do not, or the claim is dead, the client gets another mapping, and the
//!   pointer is rewritten in place under [`DEAD`], by one at a time. A packet never deletes it. The sweep does,
//!   with the claim that it shows.
//! * *A session's outside element* can be there already. It is the flow's own where another CPU is opening the
//!   session, which is then used, or is known to come to what this CPU would have entered; or it belongs to a flow from before the pool was endpoint-independent.
//! * *The daemon* neither reads nor writes counts; they are pinned with the sessions.

use gateway_common::{
    DropReason, Verdict,
    address::LOCAL,
    family::is_same,
    mapping::{self, HELD, INWARD, LIVE},
    parse::{Flow, Fragment, Packet},
    pool::OF_HOST,
    ports::Destination,
    route::Target,
    session::{DEAD, RETIRED, SIDE_INSIDE, SIDE_OUTSIDE, Session, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tuple},
    tcp::State,
};

use crate::{
    address, atomic, border, claim, config, count,
    family::Datapath,
    forward, hairpin, limit, mss,
    neighbor::{self, Found},
    open,
    path::{self, Code, Context, Outcome},
    pool, ports, rewrite,
    session::{self, EEXIST, Scratch, Subject},
    socket, source, tcp,
};

/// Whether a packet from outside is of a kind that may open a session: ICMP replies to nobody's query may not.
#[inline(always)]
pub(crate) fn may_open<F: Datapath>(packet: &Packet<F>) -> bool {
    let opening = packet.transport_layer.detail & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST) == TCP_SYN;
    matches!(packet.fragment, Fragment::Whole)
        && match packet.transport_layer.flow {
            Flow::Udp => true,
            Flow::Tcp => opening,
            Flow::EchoRequest | Flow::EchoReply | Flow::Icmp | Flow::Other => false,
        }
}

/// Opens a session for the packet in the subject and sends it on its way.
#[inline(always)]
pub(crate) fn open<F: Datapath>(context: &Context<'_>) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    if subject.tuple.side == SIDE_OUTSIDE {
        let code = let_in::<F, false>(context, subject);
        if !code.is_open() {
            return code.result();
        }
        let place = F::scratch().ok_or(DropReason::Internal)?;
        // SAFETY: the scratch element is this CPU's own.
        let scratch = unsafe { &mut *place };
        let Subject { packet, back, .. } = &mut *subject;
        let code = border::lead::<F>(context, &packet.source, &scratch.inside.source, back);
        if let Err(reason) = code.result().and_then(|_| forward::check(packet, back)) {
            give_back(scratch);
            return Err(reason);
        }
    } else {
        source::admit(context, subject).result()?;
        let held = take(context, subject);
        if !held.is_open() {
            source::settle::<F>();
            return held.result();
        }
    }
    let code = enter(context, subject);
    source::settle::<F>();
    if code.is_open() {
        return path::follow_other(context, subject).result();
    }
    code.result()?;
    send(context, subject)
}

/// Sends the packet whose session was entered on its way.
#[inline(always)]
fn send<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<Outcome, DropReason> {
    let place = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &*place };
    let Subject { packet, tuple, back, forth, .. } = subject;
    let (session, next_hop, verdict) = if tuple.side == SIDE_OUTSIDE {
        (&scratch.outside_session, back, Verdict::Reply)
    } else {
        (&scratch.inside_session, forth, Verdict::Snat)
    };
    rewrite::translate(context.frame, packet, session, tuple.side)?;
    forward::readdress::<F>(context.frame, packet.network(), next_hop)?;
    Ok(Outcome { verdict, slot: u32::from(next_hop.slot) })
}

/// Holds the mapping of a packet from inside, and leaves its address and port in the scratch element.
/// [`Code::OPEN`]: done.
#[inline(never)]
pub(crate) fn take<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    match try_take(context, subject) {
        Ok(()) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_take<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<(), DropReason> {
    let Subject { packet, route, forth, .. } = subject;
    forward::check(packet, forth)?;
    let place = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own, and no reference is held over the calls.
    let scratch = unsafe { &mut *place };
    scratch.inside =
        mapping::pointer_key(packet.source, packet.transport_layer.source_port, packet.proto, route.object);
    if find(scratch, route.object) != 0 {
        return Ok(());
    }
    let code = make(context, subject);
    if !code.is_open() {
        code.result()?;
        return Ok(());
    }
    // Another CPU has made one.
    // SAFETY: as above.
    if find(unsafe { &mut *place }, route.object) != 0 { Ok(()) } else { Err(DropReason::NoSession) }
}

/// Looks the mapping of the client in `scratch.inside` up and holds it: 1. Where there is none, or one that can
/// be used no more: 0, and `scratch.outside` is what the pointer shows.
#[inline(never)]
fn find<F: Datapath>(scratch: &mut Scratch<F>, number: u32) -> u32 {
    let Scratch { inside, outside, claim, .. } = scratch;
    *outside = mapping::claim_key(F::Address::default(), [0; 2], inside.proto);
    let Some(pointer) = F::session(inside) else { return 0 };
    // SAFETY: the pointer is to a map value, which another CPU may be writing: the claim will tell.
    let pointer = unsafe { &*pointer };
    outside.destination = pointer.translated;
    outside.destination_port = pointer.translated_port;
    let Some(address) = pool::of(pointer.pool_address, &F::mapped(&pointer.translated), number) else {
        return 0;
    };
    claim.of_host = address.flags & OF_HOST;
    claim.chosen = u32::from(pointer.pool_address);
    let Some(owner) = F::session(outside) else { return 0 };
    // SAFETY: the pointer is to a map value.
    let owner = unsafe { &mut *owner };
    u32::from(belongs(owner, &inside.source, inside.source_port, number) && hold(owner))
}

/// Makes a mapping for the client in `scratch.inside`, and holds it: [`Code::OK`]. [`Code::OPEN`]: another CPU
/// has made one.
#[inline(never)]
fn make<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    match try_make(context, subject) {
        Ok(true) => Code::OK,
        Ok(false) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_make<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<bool, DropReason> {
    let Subject { packet, route, .. } = subject;
    let place = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own, and the reference ends before the claim.
    let scratch = unsafe { &mut *place };
    scratch.shown = scratch.outside.destination;
    scratch.shown_port = scratch.outside.destination_port;
    let owner = &mut scratch.outside_session;
    owner.generation = LIVE;
    owner.last_seen = config::now(context.config);
    owner.packets = 0;
    owner.bytes = 0;
    owner.next_hop = subject.back;
    owner.translated = packet.source;
    owner.translated_port = packet.transport_layer.source_port;
    owner.ingress = 0;
    owner.state = State::Gone as u8;
    owner.flags = 0;
    owner.counter = route.object as u16;
    owner.log = 0;
    owner.mark = 1;

    claim::claim(context, packet, route.object)?;

    // SAFETY: as above; the claim is through.
    let scratch = unsafe { &mut *place };
    count::session(packet.proto, |sessions| sessions.mapped += 1);
    let error = point(scratch);
    if error == 0 {
        return Ok(true);
    }
    if let Some(owner) = F::session(&scratch.outside) {
        // SAFETY: the pointer is to a map value.
        release(unsafe { &mut *owner });
    }
    if error == EEXIST { Ok(false) } else { Err(session::refusal(error)) }
}

/// Has the client's pointer show the claim in `scratch.outside`. 0, or why not: [`EEXIST`] where another CPU has
/// been faster.
#[inline(always)]
fn point<F: Datapath>(scratch: &mut Scratch<F>) -> i32 {
    let Scratch { inside, outside, inside_session: value, outside_session, claim, shown, shown_port, .. } =
        scratch;
    if let Some(pointer) = F::session(inside) {
        // SAFETY: the pointer is to a map value; others only read it while it is dead.
        unsafe {
            let generation = &raw mut (*pointer).generation;
            let stale = (*pointer).translated == *shown && (*pointer).translated_port == *shown_port;
            if !stale || !atomic::replace(generation, LIVE, DEAD) {
                return EEXIST;
            }
            (*pointer).translated = outside.destination;
            (*pointer).translated_port = outside.destination_port;
            (*pointer).pool_address = claim.chosen as u16;
            generation.write_volatile(LIVE);
        }
        return 0;
    }
    *value = *outside_session;
    value.translated = outside.destination;
    value.translated_port = outside.destination_port;
    value.mark = 0;
    match F::insert_session(inside, value) {
        Ok(()) => 0,
        Err(error) => error,
    }
}

/// Holds the mapping that a packet from outside has met, if its client may be reached from there, and leaves the
/// ways and the client in subject and scratch element. [`Code::OPEN`]: done.
///
/// `TURNED`: the packet is from inside and has gone the first half of its way, see [`hairpin`].
#[inline(never)]
pub(crate) fn let_in<F: Datapath, const TURNED: bool>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
) -> Code {
    match try_let_in::<F, TURNED>(context, subject) {
        Ok(None) => Code::OPEN,
        Ok(Some(outcome)) => Code::outcome(outcome),
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_let_in<F: Datapath, const TURNED: bool>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
) -> Result<Option<Outcome>, DropReason> {
    let place = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *place };
    let packet = &subject.packet;
    let found = address::find(&F::mapped(&packet.destination)).ok_or(DropReason::NoSession)?;
    scratch.outside =
        mapping::claim_key(packet.destination, packet.transport_layer.destination_port, packet.proto);
    let Some(owner) = F::session(&scratch.outside) else {
        return if found.flags & LOCAL == 0 { Err(DropReason::NoSession) } else { Ok(Some(Outcome::HOST)) };
    };
    // What is for a socket of the host is not for the client.
    if found.flags & LOCAL != 0 && socket::has(context.frame.context(), &subject.tuple) != 0 {
        return Ok(Some(Outcome::HOST));
    }
    // SAFETY: the pointer is to a map value.
    let owner = unsafe { &mut *owner };
    let (client, client_port, number) = (owner.translated, owner.translated_port, u32::from(owner.counter));
    if pool::of(owner.pool_address, &F::mapped(&packet.destination), number).is_none() {
        return Err(DropReason::NoSession);
    }
    scratch.claim.chosen = u32::from(owner.pool_address);
    scratch.claim.of_host = 0;
    if !TURNED {
        neighbor::outside(context, packet)?;
    }
    let Found { next_hop, learned } = neighbor::towards::<F>(context, packet.source, client)?;
    if !context.is_inside(u32::from(next_hop.slot)) {
        return Err(DropReason::NoSession);
    }
    subject.back = next_hop;
    subject.learned = u8::from(learned);
    subject.mtu = next_hop.mtu;
    let Subject { packet, query, back, forth, .. } = &mut *subject;
    query.source = client;
    query.destination = packet.source;
    query.proto = packet.proto;
    query.port = packet.server_port(false);
    *forth = *back;
    path::find_route_back(context, subject).result()?;
    let Subject { packet, route, forth, back, .. } = &mut *subject;
    if route.target != Target::Pool as u8 || route.object != number {
        return Err(DropReason::NoSession);
    }
    count::route(route.counter, context.bytes);
    forward::check(packet, back)?;
    *forth =
        if TURNED { hairpin::WAY } else { neighbor::towards::<F>(context, client, packet.source)?.next_hop };
    // The next look at the claim comes before the policy is asked again, so it is asked whose it is.
    scratch.inside = mapping::pointer_key(client, client_port, subject.packet.proto, number);
    if belongs(owner, &client, client_port, number) && hold(owner) {
        Ok(None)
    } else {
        Err(DropReason::NoSession)
    }
}

/// Enters the session of the packet in the subject, for the mapping in the scratch element, which is held: the session
/// is in the scratch element, too, also where another CPU is just entering it. [`Code::OPEN`]: it is there already.
#[inline(never)]
pub(crate) fn enter<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    match try_enter(context, subject) {
        Ok(true) => Code::OK,
        Ok(false) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_enter<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<bool, DropReason> {
    let place = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *place };
    let packet = &subject.packet;
    let inward = subject.tuple.side == SIDE_OUTSIDE;
    let mut inside = subject.tuple;
    if inward {
        inside = Tuple {
            source: scratch.inside.source,
            source_port: scratch.inside.source_port,
            destination: packet.source,
            destination_port: packet.transport_layer.source_port,
            side: SIDE_INSIDE,
            ..subject.tuple
        };
    }
    let opening = if inward {
        tcp::opening_from_outside(context.frame, packet)
    } else {
        tcp::opening(context.frame, packet)
    };
    let result = match opening {
        Ok((state, mark)) => tcp::admit(context.config, state).and_then(|()| {
            open::begin(context, subject, &inside, state, scratch);
            let entered = insert(context, subject, mark, scratch);
            if !matches!(entered, Ok(Entered::New)) {
                tcp::leave(state);
            }
            entered
        }),
        Err(reason) => Err(reason),
    };
    if !matches!(result, Ok(Entered::New)) {
        give_back(scratch);
    }
    let entered = result?;
    if matches!(entered, Entered::Known) {
        return Ok(false);
    }
    if !inward && matches!(entered, Entered::New) {
        count::pool(scratch.claim.chosen, |pool| pool.attempts += 1);
    }
    mss::clamp(context, packet, (&subject.forth, &subject.back), scratch.claim.chosen);
    Ok(true)
}

/// Enters both elements, unless another CPU does.
#[inline(always)]
fn insert<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    mark: u32,
    scratch: &mut Scratch<F>,
) -> Result<Entered, DropReason> {
    let Subject { packet, tuple, .. } = subject;
    let Scratch { inside, outside, outside_session: answer, towards, claim, .. } = scratch;
    claim.adopt(packet, (&inside.source, context.config.secret), claim.chosen);
    *towards = destination(outside);
    // Answers that come before the inside element is there have to wait for it: they look for it.
    answer.generation = session::STALE;
    answer.flags |= HELD;
    if tuple.side == SIDE_OUTSIDE {
        answer.flags |= INWARD;
        answer.packets = 1;
        answer.bytes = u64::from(packet.length);
    }
    // The claim was free of sockets; connections of the host to this server are others.
    if claim.of_host != 0 && socket::has(context.frame.context(), outside) != 0 {
        return Err(exhausted(claim.chosen));
    }
    // There is one address for it: the mapping's.
    let limit = &pool::get(subject.route.object).ok_or(DropReason::Internal)?.limit;
    let said = limit::admit(&scratch.towards, limit, &mut scratch.claim.client);
    if said & limit::REFUSED != 0 {
        let reason = limit::reason(said).unwrap_or(DropReason::Internal);
        claim::refused(scratch.claim.chosen, reason);
        return Err(reason);
    }
    let error = claim::insert(scratch);
    if error != 0 {
        limit::take_back(&scratch.towards, limit, &scratch.claim.client);
        return if error == EEXIST {
            meet_other(context, subject, mark, scratch)
        } else {
            Err(session::refusal(error))
        };
    }
    match open::finish(context, subject, mark, scratch) {
        Ok(()) => Ok(Entered::New),
        Err(error) => {
            let _ = F::remove_session(&scratch.outside);
            limit::take_back(&scratch.towards, limit, &scratch.claim.client);
            if error == EEXIST { Ok(Entered::Known) } else { Err(session::refusal(error)) }
        }
    }
}

/// There is an outside element. `Ok`: it is this flow's, and its session is there by now, or will be in a moment: where
/// the other CPU has not entered the inside element yet, this packet goes on as one of the session without it. To wait
/// for it would be to wait for whatever has interrupted that CPU.
#[inline(always)]
fn meet_other<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    mark: u32,
    scratch: &mut Scratch<F>,
) -> Result<Entered, DropReason> {
    let Scratch { inside, outside, .. } = scratch;
    let other = F::session(outside).ok_or(DropReason::NoSession)?;
    // SAFETY: the pointer is to a map value.
    let other = unsafe { &*other };
    if !is_same(&F::mapped(&other.translated), &F::mapped(&inside.source))
        || other.translated_port != inside.source_port
    {
        return Err(exhausted(scratch.claim.chosen));
    }
    if subject.cut != 0 {
        return Err(DropReason::NoSession);
    }
    let Some(session) = F::session(inside) else {
        open::complete(context, subject, mark, scratch);
        return Ok(Entered::Soon);
    };
    // SAFETY: the pointer is to a map value.
    let generation = unsafe { (&raw const (*session).generation).read_volatile() };
    if generation == DEAD { Err(DropReason::NoSession) } else { Ok(Entered::Known) }
}

/// What became of a session that was to be entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entered {
    /// It is there.
    New,
    /// Another CPU has entered it.
    Known,
    /// Another CPU is entering it.
    Soon,
}

/// The client's port is another flow's towards this server: there is no other for it.
#[inline(always)]
fn exhausted(element: u32) -> DropReason {
    claim::refused(element, DropReason::PoolExhausted);
    DropReason::PoolExhausted
}

/// Lets the mapping in the scratch element go.
#[inline(never)]
fn give_back<F: Datapath>(scratch: &mut Scratch<F>) {
    let_go(&scratch.outside);
}

// ---- the sweep's part -----------------------------------------------------------------------------------------

/// Whether a key of the session tables is one of a mapping.
#[inline(always)]
pub(crate) fn is_key<F: Datapath>(tuple: &Tuple<F>) -> bool {
    mapping::is_key(tuple)
}

/// Lets the mapping go that a session with this outside tuple has held.
#[inline(always)]
pub(crate) fn let_go<F: Datapath>(outside: &Tuple<F>) {
    let key = mapping::claim_key(outside.destination, outside.destination_port, outside.proto);
    if let Some(owner) = F::session(&key) {
        // SAFETY: the pointer is to a map value.
        release(unsafe { &mut *owner });
    }
}

/// Looks at a mapping: takes it a step to its end if nobody holds it. Returns after anything that is no claim.
#[inline(never)]
pub(crate) fn visit<F: Datapath>(tuple: &Tuple<F>) -> u32 {
    if !mapping::is_claim(tuple) {
        return 0;
    }
    let Some(owner) = F::session(tuple) else { return 0 };
    // SAFETY: the pointer is to a map value.
    unsafe {
        let generation = &raw mut (*owner).generation;
        let observed = generation.read_volatile();
        if observed == DEAD {
            remove(tuple, &*owner);
            return 1;
        }
        let holders = (&raw const (*owner).mark).read_volatile();
        let next = match observed {
            LIVE if holders == 0 => RETIRED,
            RETIRED if holders == 0 => DEAD,
            RETIRED => LIVE,
            _ => return 0,
        };
        u32::from(atomic::replace(generation, observed, next))
    }
}

/// Removes the pointer that shows a claim, if it still does, and then the claim: while it is there, nobody can
/// have its port.
#[inline(always)]
fn remove<F: Datapath>(tuple: &Tuple<F>, owner: &Session<F>) {
    let key =
        mapping::pointer_key(owner.translated, owner.translated_port, tuple.proto, owner.counter.into());
    if let Some(pointer) = F::session(&key) {
        // SAFETY: the pointer is to a map value.
        let removable = unsafe {
            is_same(&F::mapped(&(*pointer).translated), &F::mapped(&tuple.destination))
                && (*pointer).translated_port == tuple.destination_port
                && atomic::replace(&raw mut (*pointer).generation, LIVE, DEAD)
        };
        if removable {
            let _ = F::remove_session(&key);
        }
    }
    if F::remove_session(tuple).is_ok() {
        ports::removed(&destination(tuple), tuple.destination_port, None);
        count::session(tuple.proto, |sessions| sessions.unmapped += 1);
    }
}

// ---- counts ---------------------------------------------------------------------------------------------------

/// Whether a claim is that of this client's mapping in this pool.
#[inline(always)]
fn belongs<F: Datapath>(owner: &Session<F>, client: &F::Address, port: [u8; 2], number: u32) -> bool {
    is_same(&F::mapped(&owner.translated), &F::mapped(client))
        && owner.translated_port == port
        && u32::from(owner.counter) == number
}

/// Holds a mapping; `false` where it has come to its end.
#[inline(always)]
fn hold<F: Datapath>(owner: &mut Session<F>) -> bool {
    // SAFETY: the reference is to a map value; the fields are `u32`. The count's old value is used, so that
    // counting is a barrier.
    unsafe {
        let generation = &raw mut owner.generation;
        if generation.read_volatile() == DEAD || atomic::add(&raw mut owner.mark, 1) == u32::MAX {
            return false;
        }
        let alive = match generation.read_volatile() {
            RETIRED => atomic::replace(generation, RETIRED, LIVE) || generation.read_volatile() != DEAD,
            DEAD => false,
            _ => true,
        };
        if !alive {
            release(owner);
        }
        alive
    }
}

/// Lets a mapping go.
#[inline(always)]
fn release<F: Datapath>(owner: &mut Session<F>) {
    // SAFETY: the reference is to a map value.
    unsafe {
        atomic::add(&raw mut owner.mark, u32::MAX);
    }
}

/// What the counts of ports know an outside tuple by.
#[inline(always)]
fn destination<F: Datapath>(outside: &Tuple<F>) -> Destination {
    Destination {
        address: F::mapped(&outside.destination),
        server: F::mapped(&outside.source),
        port: outside.source_port,
        proto: outside.proto,
        reserved: 0,
    }
}
