//! ICMP errors about packets of sessions (RFC 5508 4, RFC 4443, RFC 5382 REQ-9, RFC 4787 REQ-12): programs
//! `related_v4` and `related_v6`.
//!
//! An error quotes the packet that failed. It came out of the gateway, so the quote shows the addresses of the
//! side that complains; whoever sent it knows it by those of the other side. Outer header, quote and all
//! checksums are translated; type, code and what else the error says stay. The error is not a packet of the
//! session: it neither refreshes nor ends it, and is not counted in it.
//!
//! Where the error comes from is not looked at on the outside (RFC 4787 REQ-12a): any router on the way may send
//! one, and what it quotes is what names the session.

use core::ffi::c_void;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_loop, programs::XdpContext};
use gateway_common::{
    DropReason, checksum,
    family::{NextHop, is_same},
    parse::{Bytes as _, Flow, Fragment, PROTO_TCP, PROTO_UDP, Packet},
    quote::{ICMP_LEN, Quote},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, Tuple},
};

use crate::{
    border, count,
    family::Datapath,
    forward, hairpin, inward,
    neighbor::{self, Found},
    packet::Frame,
    path::{self, Code, Context, Outcome},
    pool, proxy,
    route::Query,
    session::{self, Subject},
};

/// Offset of the checksum in an ICMP header.
const CHECKSUM: usize = 2;
/// Offset of the checksum in an IPv4 header.
const HEADER_CHECKSUM: usize = 10;
/// Offset of the identifier in an ICMP echo.
const IDENTIFIER: usize = 4;

/// Whether the packet is an ICMP error that routers pass on.
#[inline(always)]
pub(crate) fn is_error<F: Datapath>(packet: &Packet<F>) -> bool {
    matches!(packet.transport_layer.flow, Flow::Icmp)
        && matches!(packet.fragment, Fragment::Whole)
        && F::is_icmp_error(packet.transport_layer.detail)
}

/// Looks for the session whose packet the error in the subject quotes: [`Code::OK`] with the session's key in
/// the subject, [`Code::OPEN`] where there is none.
#[inline(never)]
pub(crate) fn find<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    let end = packet.network() + usize::from(packet.length);
    let Some(quote) = F::quote(context.frame, packet.transport() + ICMP_LEN, end) else {
        return Code::OPEN;
    };
    // An error is for whoever sent what it quotes.
    if !is_same(&F::mapped(&quote.source), &F::mapped(&packet.destination)) {
        return Code::OPEN;
    }
    // Nothing was sent to the zero address, which stands for all in the keys of mappings.
    if F::is_zero(&quote.destination) {
        return Code::OPEN;
    }
    let Tuple { side, origin, .. } = subject.tuple;
    subject.tuple = quote.answer(side);
    subject.quote = quote;
    if origin != 0 {
        proxy::take_side(&mut subject.tuple, origin);
    }
    let Some(session) = F::session(&subject.tuple) else { return Code::OPEN };
    // SAFETY: the pointer is to a map value.
    let turns = hairpin::is_one(unsafe { &*session }, subject.tuple.side);
    // From outside, nobody complains about a hairpin.
    if turns && subject.tuple.side == SIDE_OUTSIDE { Code::OPEN } else { Code::OK }
}

/// Sends the error in the subject to the other side of the session that [`find`] has found.
#[inline(always)]
pub(crate) fn forward<F: Datapath, const INWARD: u32>(
    context: &Context<'_>,
    ctx: &XdpContext,
) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    let session = F::session(&subject.tuple).ok_or(DropReason::NoSession)?;
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let session = unsafe { &*session };
    verify(context.frame, subject).result()?;
    if hairpin::is_one(session, subject.tuple.side) {
        turn(context, subject, session).result()?;
        return path::hand_over::<INWARD>(ctx);
    }
    way(context, subject, session).result()?;
    if subject.tuple.side == SIDE_OUTSIDE && session.ingress == 0 && !session.is_proxied() {
        let Subject { packet, forth, .. } = &mut *subject;
        border::lead::<F>(context, &packet.source, &session.translated, forth).result()?;
    }
    count::route(subject.route.counter, context.bytes);
    let next_hop = subject.forth;
    forward::check(&subject.packet, &next_hop)?;
    translate(context.frame, subject, session).result()?;
    forward::readdress::<F>(context.frame, subject.packet.network(), &next_hop)?;
    let verdict = path::verdict(session, subject.tuple.side);
    Ok(Outcome { verdict, slot: u32::from(next_hop.slot) })
}

/// Checks the checksums of the error and of the quoted IPv4 header (RFC 5508 REQ-3): translated by how much they
/// change, wrong ones would stay wrong. That of the quoted transport header is not for a router to check.
#[inline(never)]
pub(crate) fn verify<F: Datapath>(frame: &Frame<'_>, subject: &Subject<F>) -> Code {
    let Subject { packet, quote, .. } = subject;
    let quoted = usize::from(quote.network);
    if F::IS_V4 && sum(frame, quoted, usize::from(quote.transport)) != 0xffff {
        return Code::drop(DropReason::BadChecksum);
    }
    let end = packet.network() + usize::from(packet.length);
    let length = (end - packet.transport()) as u32;
    let total = u32::from(sum(frame, packet.transport(), end))
        + F::icmp_pseudo_sum(&packet.source, &packet.destination, length);
    if checksum::fold(total) == 0xffff { Code::OK } else { Code::drop(DropReason::BadChecksum) }
}

/// Finds the way to the other side of the session, and the route to count; leaves both in the subject.
///
/// A session that is not confirmed is not confirmed now, because that would save it from removal. But the policy
/// is asked as for its packets.
#[inline(never)]
fn way<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, session: &Session<F>) -> Code {
    match try_way(context, subject, session) {
        Ok((next_hop, counter)) => {
            subject.forth = next_hop;
            subject.route.counter = counter;
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_way<F: Datapath>(
    context: &Context<'_>,
    subject: &Subject<F>,
    session: &Session<F>,
) -> Result<(NextHop, u16), DropReason> {
    let Subject { packet, tuple, .. } = subject;
    let inside = tuple.side == SIDE_INSIDE;
    if !session::is_live(tuple, session) {
        return Err(DropReason::NoSession);
    }
    let origin = if inside { tuple.origin } else { session.ingress };
    if inside && origin == 0 {
        neighbor::back(context, packet)?;
    }
    if session.generation == context.generation {
        return Ok((session.next_hop, session.counter));
    }
    let (client, server, pool_address) = if inside {
        (tuple.source, tuple.destination, session.translated)
    } else {
        (session.translated, tuple.source, tuple.destination)
    };
    let way = if session.is_proxied() && inside {
        let host = proxy::host_of_session(session).ok_or(DropReason::NoSession)?;
        Ok(Found { next_hop: host.next_hop, learned: false })
    } else if !session.is_proxied() && !pool::owns(session.pool_address, &F::mapped(&pool_address)) {
        return Err(DropReason::NoSession);
    } else if !inside && origin != 0 {
        proxy::towards(origin).map(|next_hop| Found { next_hop, learned: false })
    } else {
        neighbor::towards::<F>(context, packet.source, if inside { server } else { client })
    };
    let next_hop = match way {
        // As in `path::confirm`.
        Err(DropReason::NeighborUnresolved) => session.next_hop,
        way => way.map(|Found { next_hop, .. }| next_hop)?,
    };
    let inside_slot = if inside { context.ingress.slot } else { u32::from(next_hop.slot) };
    let query = Query::<F> {
        source: client,
        destination: server,
        proto: tuple.proto,
        port: session::server_port(tuple),
    };
    let counter = path::allow(context, inside_slot, origin, &query)?;
    Ok((next_hop, counter))
}

/// The first half of a hairpin: the error comes from the address that the sender of what it quotes knows.
#[inline(never)]
fn turn<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, session: &Session<F>) -> Code {
    match try_turn(context, subject, session) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_turn<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &Session<F>,
) -> Result<(), DropReason> {
    let Subject { packet, tuple, .. } = &*subject;
    if !session::is_live(tuple, session) {
        return Err(DropReason::NoSession);
    }
    if tuple.origin == 0 {
        neighbor::back(context, packet)?;
    }
    if path::keeps_ends(tuple, session) == 0 {
        return Err(DropReason::NoSession);
    }
    let counter =
        allow(context, tuple, (tuple.source, tuple.destination), context.ingress.slot, tuple.origin)?;
    count::route(counter, context.bytes);
    forward::check(packet, &hairpin::WAY)?;
    let Subject { packet, quote, quoted, .. } = &mut *subject;
    let port = packet.transport_layer.source_port;
    *quoted = *quote;
    quote.destination = session.translated;
    quote.destination_port = session.translated_port;
    inward::turn(subject, session.translated, port, inward::BY_SESSION);
    Ok(())
}

/// Asks the policy of `client`, behind `slot`, about packets of the session of `tuple`.
#[inline(always)]
fn allow<F: Datapath>(
    context: &Context<'_>,
    tuple: &Tuple<F>,
    (client, server): (F::Address, F::Address),
    slot: u32,
    origin: u16,
) -> Result<u16, DropReason> {
    let query = Query::<F> {
        source: client,
        destination: server,
        proto: tuple.proto,
        port: session::server_port(tuple),
    };
    path::allow(context, slot, origin, &query)
}

/// Before the second half of a hairpin: where the first was an EIP, the quote is read again, because a session is
/// known by more than addresses.
#[inline(never)]
pub(crate) fn read_again<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    if subject.half != inward::BY_EIP {
        return Code::OK;
    }
    let Subject { packet, quote, quoted, .. } = subject;
    let end = packet.network() + usize::from(packet.length);
    let Some(read) = F::quote(context.frame, packet.transport() + ICMP_LEN, end) else {
        return Code::drop(DropReason::NoSession);
    };
    let eip = quote.destination;
    *quoted = read;
    *quote = read;
    quote.destination = eip;
    Code::OK
}

/// The second half of a hairpin: the error goes to the client of the session that the quoted packet came by.
#[inline(never)]
pub(crate) fn let_in<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    match try_let_in(context, subject) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_let_in<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<(), DropReason> {
    subject.tuple = subject.quote.answer(SIDE_OUTSIDE);
    let Subject { packet, tuple, .. } = &*subject;
    let session = F::session(tuple).ok_or(DropReason::NoSession)?;
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let session = unsafe { &*session };
    if !hairpin::is_one(session, SIDE_OUTSIDE)
        || !session::is_live(tuple, session)
        || path::keeps_ends(tuple, session) == 0
    {
        return Err(DropReason::NoSession);
    }
    let (client, origin) = (session.translated, session.ingress);
    let way = if origin == 0 {
        neighbor::towards::<F>(context, packet.source, client).map(|found| found.next_hop)
    } else {
        proxy::towards(origin)
    };
    let next_hop = match way {
        // As in `path::confirm`.
        Err(DropReason::NeighborUnresolved) => session.next_hop,
        way => way?,
    };
    let slot = u32::from(next_hop.slot);
    if !context.is_inside(slot) {
        return Err(DropReason::NoSession);
    }
    let counter = allow(context, tuple, (client, tuple.source), slot, origin)?;
    count::route(counter, context.bytes);
    forward::check(packet, &next_hop)?;
    subject.forth = next_hop;
    subject.packet.destination = client;
    subject.quote.source = client;
    subject.quote.source_port = session.translated_port;
    Ok(())
}

/// Makes the error in the frame, which is as sent, the one in the subject: other addresses, and those and the ports of
/// what it quotes.
#[inline(never)]
pub(crate) fn exchange<F: Datapath>(frame: &Frame<'_>, subject: &Subject<F>) -> Code {
    match try_exchange(frame, subject) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_exchange<F: Datapath>(frame: &Frame<'_>, subject: &Subject<F>) -> Result<(), DropReason> {
    let Subject { packet, sent, quote, quoted, .. } = subject;
    let (network, transport) = (usize::from(quote.network), usize::from(quote.transport));
    let outer = inward::readdress(frame, sent, packet)?;
    let addresses = checksum::combine(
        checksum::delta(F::sum(&quoted.source), F::sum(&quote.source)),
        checksum::delta(F::sum(&quoted.destination), F::sum(&quote.destination)),
    );
    let number = |port| u32::from(u16::from_be_bytes(port));
    let ports = checksum::combine(
        checksum::delta(number(quoted.source_port), number(quote.source_port)),
        checksum::delta(number(quoted.destination_port), number(quote.destination_port)),
    );
    let mut icmp = checksum::combine(addresses, ports);
    if F::IS_V4 {
        icmp = checksum::combine(icmp, change(frame, network + HEADER_CHECKSUM, addresses, 0)?);
    } else {
        icmp = checksum::combine(icmp, outer);
    }
    let is_icmp = !matches!(quote.proto, PROTO_TCP | PROTO_UDP);
    if quote.checksum != 0 {
        let delta = if F::IS_V4 && is_icmp { ports } else { checksum::combine(addresses, ports) };
        let changed = change(frame, usize::from(quote.checksum), delta, u32::from(quote.proto == PROTO_UDP))?;
        icmp = checksum::combine(icmp, changed);
    }
    F::write_address(frame, network + F::SOURCE, quote.source)?;
    F::write_address(frame, network + F::DESTINATION, quote.destination)?;
    let ([s0, s1], [d0, d1]) = (quote.source_port, quote.destination_port);
    if is_icmp {
        // Of a query and its answer, one has the identifier as its source port and the other as its destination port.
        frame.write(transport + IDENTIFIER, u16::from_ne_bytes([s0 | d0, s1 | d1]))?;
    } else {
        frame.write(transport, u32::from_ne_bytes([s0, s1, d0, d1]))?;
    }
    frame.update_checksum(packet.transport() + CHECKSUM, icmp)
}

/// Changes a checksum in the quote by `delta`, that of UDP where `udp` is not 0. Returns by how much that changes a sum
/// over it.
#[inline(always)]
fn change(frame: &Frame<'_>, at: usize, delta: u16, udp: u32) -> Result<u16, DropReason> {
    let old = u16::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
    let new = if udp == 0 { checksum::apply(old, delta) } else { checksum::apply_udp(old, delta) };
    frame.write(at, new.to_be())?;
    Ok(checksum::delta(old.into(), new.into()))
}

/// Rewrites outer header and quote, and the checksums by how much that changes them (RFC 1624).
#[inline(never)]
fn translate<F: Datapath>(frame: &Frame<'_>, subject: &Subject<F>, session: &Session<F>) -> Code {
    match try_translate(frame, &subject.packet, &subject.quote, session, subject.tuple.side) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_translate<F: Datapath>(
    frame: &Frame<'_>,
    packet: &Packet<F>,
    quote: &Quote<F>,
    session: &Session<F>,
    side: u8,
) -> Result<(), DropReason> {
    let inside = side == SIDE_INSIDE;
    let (network, transport) = (usize::from(quote.network), usize::from(quote.transport));
    // From inside: the error comes from the pool's address, about a packet to it. From outside: it is for the
    // client, about a packet of the client.
    let (outer, outer_at) =
        if inside { (packet.source, F::SOURCE) } else { (packet.destination, F::DESTINATION) };
    let (quoted, quoted_at) =
        if inside { (quote.destination, F::DESTINATION) } else { (quote.source, F::SOURCE) };
    let (old_port, port_at) = match quote.proto {
        PROTO_TCP | PROTO_UDP if inside => (quote.destination_port, 2),
        PROTO_TCP | PROTO_UDP => (quote.source_port, 0),
        _ if inside => (quote.destination_port, IDENTIFIER),
        _ => (quote.source_port, IDENTIFIER),
    };
    let new_port = session.translated_port;
    let new_sum = F::sum(&session.translated);
    let address = checksum::delta(F::sum(&quoted), new_sum);
    let port = checksum::delta(u16::from_be_bytes(old_port).into(), u16::from_be_bytes(new_port).into());
    let outer_address = checksum::delta(F::sum(&outer), new_sum);

    let mut icmp = checksum::combine(address, port);
    if F::IS_V4 {
        let at = network + HEADER_CHECKSUM;
        let old = u16::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
        let new = checksum::apply(old, address);
        frame.write(at, new.to_be())?;
        icmp = checksum::combine(icmp, checksum::delta(old.into(), new.into()));
    } else {
        icmp = checksum::combine(icmp, outer_address);
    }
    if quote.checksum != 0 {
        let at = usize::from(quote.checksum);
        let covers_addresses = !F::IS_V4 || matches!(quote.proto, PROTO_TCP | PROTO_UDP);
        let delta = if covers_addresses { checksum::combine(address, port) } else { port };
        let old = u16::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
        let new = if quote.proto == PROTO_UDP {
            checksum::apply_udp(old, delta)
        } else {
            checksum::apply(old, delta)
        };
        frame.write(at, new.to_be())?;
        icmp = checksum::combine(icmp, checksum::delta(old.into(), new.into()));
    }
    F::write_address(frame, network + quoted_at, session.translated)?;
    frame.write(transport + port_at, u16::from_ne_bytes(new_port))?;
    frame.update_checksum(packet.transport() + CHECKSUM, icmp)?;
    F::write_address(frame, packet.network() + outer_at, session.translated)?;
    forward::age(frame, packet, checksum::combine(outer_address, forward::TTL_DELTA))
}

/// One's complement sum of the words between two offsets, see [`checksum`].
#[inline(always)]
fn sum(frame: &Frame<'_>, at: usize, end: usize) -> u16 {
    let mut sum = Sum { context: frame.context(), at: at as u64, end: end as u64, total: 0 };
    let words = (end.saturating_sub(at) as u32).div_ceil(4);
    // SAFETY: the callback has the signature that the helper calls, and `sum` outlives the call.
    unsafe {
        bpf_loop(words, add as *mut c_void, (&raw mut sum).cast(), 0);
    }
    let total = sum.total;
    let total = (total & 0xffff) as u32 + (total >> 16 & 0xffff) as u32 + (total >> 32) as u32;
    u16::from_be(checksum::fold(total))
}

/// State of [`sum`]. The sum of native words of memory order is that of network order with its bytes swapped
/// (RFC 1071 2).
#[repr(C)]
struct Sum {
    context: *mut xdp_md,
    at: u64,
    end: u64,
    total: u64,
}

/// Adds the word `index`; the end of the packet may cut it short.
unsafe extern "C" fn add(index: u32, sum: *mut c_void) -> i64 {
    // SAFETY: `sum` passes its state.
    let sum = unsafe { &mut *sum.cast::<Sum>() };
    let ctx = XdpContext::new(sum.context);
    let frame = Frame::new(&ctx);
    let at = sum.at + u64::from(index) * 4;
    let left = sum.end.saturating_sub(at);
    let at = at as usize;
    if left >= 4 {
        let Some(word) = frame.read::<u32>(at) else { return 1 };
        sum.total += u64::from(word);
        return 0;
    }
    for byte in 0..3usize {
        if byte as u64 >= left {
            break;
        }
        let Some(value) = frame.read::<u8>(at + byte) else { return 1 };
        let mut bytes = [0; 2];
        bytes[byte & 1] = value;
        sum.total += u64::from(u16::from_ne_bytes(bytes));
    }
    1
}
