//! Flows that are sent to proxy hosts: programs `proxy_v4` and `proxy_v6`.
//!
//! Such a flow is a session that translates nothing. Its inside element has the way to the host; its outside element
//! is under the tuple that the host answers with in the server's name, with the host as the origin, so that nothing
//! that comes from elsewhere meets it. It claims no port. A connection is half open until its client shows that it
//! lives ([`common::step`]): answers need not come by the gateway.
//!
//! A session stays on its host while that is up. When it is not, a SYN and packets of other protocols move the
//! session to another host at once; any other segment is refused with a reset, because no other host knows the
//! connection. Packets that show no flow are sent to the host that the flows between the same two addresses get.

use gateway_common::{
    DropReason, Verdict,
    family::NextHop,
    parse::{Flow, Fragment, Packet},
    proxy::{self as common, PROXIED},
    route::Target,
    session::{CUT, DEAD, SIDE_INSIDE, Session, TCP_ACK, TCP_RST, TCP_SYN, Tuple},
    tcp::State,
};

use crate::{
    atomic, count,
    family::Datapath,
    forward, fragment, mss,
    neighbor::{self, Found},
    open,
    path::{self, Code, Context, Outcome},
    proxy, record,
    route::Query,
    session::{self, EEXIST, Scratch, Subject},
    source, tcp,
};

/// Attempts at a transition that other CPUs make at the same time.
const ATTEMPTS: u32 = 3;

/// Sends the packet in the subject on, which has a session of a proxy host, or none and a route to one.
#[inline(always)]
pub(crate) fn forward<F: Datapath>(context: &Context<'_>) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    if subject.shown == 0 {
        return stray(context, subject).result();
    }
    if subject.redirected == 0 {
        if !may_open(subject) {
            return stray(context, subject).result();
        }
        source::admit(context, subject).result()?;
        let code = enter(context, subject);
        source::settle::<F>();
        if code.is_drop(DropReason::SessionTableFull) && is_under_way(&subject.packet) {
            return stray(context, subject).result();
        }
        if !code.is_open() {
            return code.result();
        }
    }
    let Some(session) = F::session(&subject.tuple) else {
        // Another CPU is opening the session: nothing depends on which of them sends this packet.
        return if subject.redirected == 0 {
            stray(context, subject).result()
        } else {
            Err(DropReason::NoSession)
        };
    };
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let session = unsafe { &mut *session };
    // The elements of another session that was cut may be in the way.
    if !session.is_proxied() {
        return Err(DropReason::NoSession);
    }
    let code = keep(context, subject, session);
    if code.is_open() {
        change_host(context, subject, session).result()?;
    } else {
        code.result()?;
        if subject.redirected != 0 {
            count::route(session.counter, context.bytes);
        }
    }
    follow(context, subject, session).result()
}

/// Whether the packet asks for a connection.
#[inline(always)]
fn is_syn<F: Datapath>(packet: &Packet<F>) -> bool {
    matches!(packet.transport_layer.flow, Flow::Tcp)
        && packet.transport_layer.detail & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether the packet is of a connection that has begun before. Where there is no room for its session, it goes on
/// without one, as long as the proxy keeps its hosts: a flood of SYNs does not end it.
#[inline(always)]
fn is_under_way<F: Datapath>(packet: &Packet<F>) -> bool {
    matches!(packet.transport_layer.flow, Flow::Tcp) && packet.transport_layer.detail & TCP_SYN == 0
}

/// The state of a session that the packet begins.
#[inline(always)]
fn first_state<F: Datapath>(packet: &Packet<F>) -> State {
    if matches!(packet.transport_layer.flow, Flow::Tcp) { common::FIRST_STATE } else { State::Established }
}

/// Whether the packet begins a session. Of TCP every segment does but a reset: a connection from before the gateway
/// meets the host that it will be sent to from then on.
#[inline(always)]
fn may_open<F: Datapath>(subject: &Subject<F>) -> bool {
    let transport = &subject.packet.transport_layer;
    !matches!(subject.packet.fragment, Fragment::Later)
        && match transport.flow {
            Flow::Tcp => transport.detail & TCP_RST == 0,
            Flow::Udp | Flow::EchoRequest => true,
            Flow::EchoReply | Flow::Icmp | Flow::Other => false,
        }
}

/// A packet without a session, sent to the host that the route came to.
#[inline(never)]
pub(crate) fn stray<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let next_hop = subject.forth;
    Code::from(path::untracked(context, subject, &next_hop, Verdict::Proxy))
}

/// Opens a session for the packet in the subject. [`Code::OPEN`]: there is one now, whoever opened it.
#[inline(never)]
fn enter<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    match try_enter(context, subject) {
        Ok(()) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_enter<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<(), DropReason> {
    forward::check(&subject.packet, &subject.forth)?;
    let scratch = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    prepare(context, subject, scratch);
    let state = first_state(&subject.packet);
    tcp::admit(context.config, state)?;
    if let Err(error) = F::insert_session(&scratch.outside, &scratch.outside_session) {
        tcp::leave(state);
        return if error == EEXIST { meet(subject, scratch) } else { Err(session::refusal(error)) };
    }
    let Scratch { inside, outside, inside_session: forth, outside_session, taken, .. } = scratch;
    *forth = *outside_session;
    forth.generation = context.generation;
    forth.ingress = Session::<F>::ingress_of(proxy::ingress(context, &subject.back), taken.charge());
    forth.next_hop = subject.forth;
    forth.flags = 0;
    forth.mark = 0;
    match F::insert_session(inside, forth) {
        Ok(()) => {
            taken.hand_over();
            count::session(subject.packet.proto, |sessions| sessions.created += 1);
            count::flows(scratch.inside_session.pool_address, 1);
            record::opened::<F>();
            Ok(())
        }
        Err(error) => {
            // Nobody has been answered by it yet.
            let _ = F::remove_session(outside);
            tcp::leave(state);
            if error == EEXIST { Ok(()) } else { Err(session::refusal(error)) }
        }
    }
}

/// Prepares the outside element of the session of the packet in the subject, for the host in its route.
#[inline(always)]
fn prepare<F: Datapath>(context: &Context<'_>, subject: &Subject<F>, scratch: &mut Scratch<F>) {
    let host = subject.route.object as u16;
    open::begin(context, subject, &subject.tuple, first_state(&subject.packet), scratch);
    let Scratch { inside, outside, outside_session: answer, .. } = scratch;
    outside.destination = inside.source;
    outside.destination_port = inside.source_port;
    outside.origin = common::origin(host);
    answer.pool_address = PROXIED | host;
    answer.network_delta = forward::TTL_DELTA;
    answer.transport_delta = 0;
}

/// There is an outside element: that of this session, which another CPU opens, or of the same flow from elsewhere,
/// which has been to this host before and would go round for ever.
#[inline(always)]
fn meet<F: Datapath>(subject: &Subject<F>, scratch: &Scratch<F>) -> Result<(), DropReason> {
    let answer = F::session(&scratch.outside).ok_or(DropReason::NoSession)?;
    // SAFETY: the pointer is to a map value; a plain integer is read.
    let from = unsafe { (*answer).ingress };
    if from == subject.tuple.origin { Ok(()) } else { Err(DropReason::NoRoute) }
}

/// Looks at a session again: whether its host takes its packets and, where it was decided under another generation,
/// whether the policy still allows it, and where the ways are. [`Code::OPEN`]: it needs another host.
#[inline(never)]
fn keep<F: Datapath>(context: &Context<'_>, subject: &Subject<F>, session: &mut Session<F>) -> Code {
    match try_keep(context, subject, session) {
        Ok(true) => Code::OK,
        Ok(false) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_keep<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &mut Session<F>,
) -> Result<bool, DropReason> {
    let Subject { packet, tuple, .. } = subject;
    let inside = tuple.side == SIDE_INSIDE;
    let confirmed =
        session.generation == context.generation && (!inside || session.slot() == context.ingress.slot);
    if !confirmed && !session::revive(tuple, session) {
        return Err(DropReason::NoSession);
    }
    let origin = if inside { tuple.origin } else { session.ingress };
    let (next_hop, learned) = if inside {
        let Some(host) = proxy::host_of_session(session) else { return Ok(false) };
        if is_syn(packet) && common::is_over(State::from_number(session.state)) {
            // Another connection.
            return Ok(false);
        }
        (host.next_hop, false)
    } else if confirmed {
        return Ok(true);
    } else {
        way_back(context, subject, session, origin)?
    };
    if inside && proxy::turns_back(context, origin, &next_hop) {
        return Err(DropReason::NoRoute);
    }
    if confirmed {
        return Ok(true);
    }
    if inside && origin == 0 {
        neighbor::back(context, packet)?;
    }
    if inside {
        session::set_slot(session, context.ingress.slot);
    }
    let (client, server) =
        if inside { (tuple.source, tuple.destination) } else { (tuple.destination, tuple.source) };
    let inside_slot = if inside { context.ingress.slot } else { u32::from(next_hop.slot) };
    let query = Query::<F> {
        source: client,
        destination: server,
        proto: tuple.proto,
        port: session::server_port(tuple),
    };
    match path::allow(context, inside_slot, origin, &query) {
        Ok(counter) => session.counter = counter,
        Err(reason) => {
            session::cut(tuple, session);
            return Err(reason);
        }
    }
    session.next_hop = next_hop;
    let generation = if learned { session::STALE } else { context.generation };
    if session::confirm(session, generation) { Ok(true) } else { Err(DropReason::NoSession) }
}

/// The way back to whoever sends to the host, and whether it is only what packets have shown.
#[inline(always)]
fn way_back<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &Session<F>,
    origin: u16,
) -> Result<(NextHop, bool), DropReason> {
    if origin != 0 {
        return proxy::towards(origin).map(|next_hop| (next_hop, false));
    }
    let Subject { packet, tuple, .. } = subject;
    match neighbor::towards::<F>(context, packet.source, tuple.destination) {
        Ok(Found { next_hop, learned }) => Ok((next_hop, learned)),
        // The session knows a MAC address, whatever has become of the host's knowledge.
        Err(DropReason::NeighborUnresolved) => Ok((session.next_hop, true)),
        Err(reason) => Err(reason),
    }
}

/// Moves the session of a packet from inside, whose host is not there any more, to another one.
#[inline(never)]
fn change_host<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &mut Session<F>,
) -> Code {
    if matches!(subject.packet.transport_layer.flow, Flow::Tcp) && !is_syn(&subject.packet) {
        // No other host knows the connection: its client is told.
        set_state(session, F::session(&subject.tuple.pair(session)), State::Reset);
        return Code::drop(DropReason::NoSession);
    }
    if matches!(subject.packet.fragment, Fragment::Later) {
        return Code::drop(DropReason::FragmentUnmatched);
    }
    if subject.tuple.origin == 0
        && let Err(reason) = neighbor::back(context, &subject.packet)
    {
        return Code::drop(reason);
    }
    let code = path::find_route(context, subject);
    if code.result().is_err() {
        session::cut(&subject.tuple, session);
        return code;
    }
    count::route(subject.route.counter, context.bytes);
    if subject.route.target == Target::Proxy as u8 {
        let code = proxy::resolve(context, subject);
        if code.result().is_err() {
            return code;
        }
    }
    if subject.route.target != Target::Proxy as u8 {
        // What the flow does without a proxy it does as another session.
        session::cut(&subject.tuple, session);
        return Code::drop(DropReason::NoSession);
    }
    // The sweep does not remove it from under the change.
    if !session::revive(&subject.tuple, session) {
        return Code::drop(DropReason::NoSession);
    }
    if session.pool_address == PROXIED | subject.route.object as u16 {
        session.next_hop = subject.forth;
        set_state(session, None, first_state(&subject.packet));
        let confirmed = session::confirm(session, context.generation);
        return if confirmed { Code::OK } else { Code::drop(DropReason::NoSession) };
    }
    // The way back is the one that the session has.
    let old = subject.tuple.pair(session);
    let Some(answer) = F::session(&old) else { return Code::drop(DropReason::NoSession) };
    // SAFETY: the pointer is to a map value.
    subject.back = unsafe { (*answer).next_hop };
    subject.learned = 1;
    match try_change_host(context, subject, session, answer) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_change_host<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &mut Session<F>,
    old: *mut Session<F>,
) -> Result<(), DropReason> {
    let scratch = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    prepare(context, subject, scratch);
    // What is in the way is on its way out: the session was on this host before.
    F::insert_session(&scratch.outside, &scratch.outside_session)
        .map_err(|error| if error == EEXIST { DropReason::NoSession } else { session::refusal(error) })?;
    let host = PROXIED | subject.route.object as u16;
    // SAFETY: the references are to map values; the words are `u32`.
    unsafe {
        let word = (&raw mut *session).cast::<u32>().add(Session::<F>::PEER);
        let observed = word.read_volatile();
        if !atomic::replace(word, observed, Session::<F>::with_peer(observed, host)) {
            // Another CPU has moved the session. Nobody has met the element.
            let _ = F::remove_session(&scratch.outside);
            return Err(DropReason::NoSession);
        }
        count::flows(Session::<F>::peer_of(observed), -1);
        count::flows(host, 1);
        session.next_hop = subject.forth;
        session.counter = subject.route.counter;
        set_state(session, None, first_state(&subject.packet));
        // The sweep removes it, when no packet reads it any more.
        (&raw mut (*old).flags).write_volatile(CUT);
        (&raw mut (*old).generation).write_volatile(DEAD);
    }
    if session::confirm(session, context.generation) { Ok(()) } else { Err(DropReason::NoSession) }
}

/// A packet of a confirmed session.
#[inline(never)]
fn follow<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, session: &mut Session<F>) -> Code {
    subject.mtu = session.next_hop.mtu;
    if matches!(subject.packet.fragment, Fragment::First) {
        let taught = fragment::teach(context, subject);
        if taught.result().is_err() {
            return taught;
        }
    }
    let Subject { packet, tuple, .. } = &*subject;
    if let Err(reason) = forward::check(packet, &session.next_hop) {
        return Code::drop(reason);
    }
    // The segment that began the session shows nothing, whatever it is.
    if matches!(packet.transport_layer.flow, Flow::Tcp) && subject.redirected != 0 {
        track(tuple, session, packet.transport_layer.detail);
    }
    mss::clamp_of(context, subject, session);
    Code::from(path::established(context, &subject.packet, session, subject.tuple.side))
}

/// Moves the state of a connection, see [`common::step`]. Its other half may never be seen.
#[inline(always)]
fn track<F: Datapath>(tuple: &Tuple<F>, session: &mut Session<F>, flags: u8) {
    let other = F::session(&tuple.pair(session));
    let (owner, copy) = if tuple.side == SIDE_INSIDE {
        (&raw mut *session, other)
    } else {
        let Some(owner) = other else { return };
        (owner, Some(&raw mut *session))
    };
    // SAFETY: the pointers are to map values of one session.
    let state = State::from_number(unsafe { (*owner).state });
    let next = common::step(state, tuple.side, flags);
    if next as u8 != state as u8 {
        set_state(owner, copy, next);
    }
}

/// Writes a state into the inside element, unless the session is being deleted, and its copy.
#[inline(always)]
fn set_state<F: Datapath>(owner: *mut Session<F>, copy: Option<*mut Session<F>>, state: State) {
    for _ in 0..ATTEMPTS {
        // SAFETY: the pointers are to map values; the fields are plain integers.
        unsafe {
            let word = owner.cast::<u32>().add(Session::<F>::CONTROL);
            let observed = word.read_volatile();
            let before = State::from_number(Session::<F>::state_of(observed));
            if matches!(before, State::Gone) {
                return;
            }
            if atomic::replace(word, observed, Session::<F>::with_state(observed, state as u8)) {
                tcp::pass(before, state);
                if let Some(copy) = copy {
                    (&raw mut (*copy).state).write_volatile(state as u8);
                }
                return;
            }
        }
    }
}
