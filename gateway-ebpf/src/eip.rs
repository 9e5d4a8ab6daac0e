//! Map `EIPS`, and the translation of packets to and from EIPs: programs `eip_v4` and `eip_v6`.
//!
//! There is no session. An address is exchanged for another one, whatever the packet carries; only checksums that
//! cover addresses change with them. Both directions ask the table of the inside host: a packet goes in where an
//! answer to it would go out by a route of target `eip`, so that no answer leaves in another way.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map, programs::XdpContext};
use gateway_common::{
    DropReason, Verdict,
    address::{BROADCAST, EIP, LOCAL},
    checksum,
    eip::{EipKey, MAX_EIP_ELEMENTS},
    family::{MappedAddress, NextHop, is_same},
    parse::{self, Bytes as _, Flow, Fragment, NO_PORT, PROTO_TCP, PROTO_UDP, Packet},
    quote::ICMP_LEN,
    route::Target,
    session::SIDE_INSIDE,
};

use crate::{
    address, border, count,
    family::Datapath,
    forward, hairpin, inward,
    neighbor::{self, Found},
    packet::Frame,
    path::{self, Code, Context, Outcome},
    proxy, redirect, related,
    route::{self, Query},
    session::{Subject, TO_EIP, TO_POOL},
};

#[btf_map]
static EIPS: HashMap<EipKey, MappedAddress, { MAX_EIP_ELEMENTS as usize }> = HashMap::new();

/// Offset of the checksum in an ICMP header.
const CHECKSUM: usize = 2;
/// Offset of the checksum in an IPv4 header.
const HEADER_CHECKSUM: usize = 10;

/// The EIP of an inside host.
#[inline(always)]
fn of_host<F: Datapath>(host: &F::Address, half: u32) -> Option<F::Address> {
    find::<F>(&EipKey::of_host(F::mapped(host), half as u16))
}

/// The inside host that has an EIP.
#[inline(always)]
fn host_of<F: Datapath>(eip: &F::Address, half: u32) -> Option<F::Address> {
    find::<F>(&EipKey::of_eip(F::mapped(eip), half as u16))
}

#[inline(always)]
fn find<F: Datapath>(key: &EipKey) -> Option<F::Address> {
    // SAFETY: the value is copied at once, and elements of the half in force do not change.
    unsafe { EIPS.get(key) }.map(|address| F::unmapped(address))
}

/// Sends the packet in the subject on, which `decide` has found to be from an inside host with a route of target
/// `eip`, or for an EIP.
#[inline(always)]
pub(crate) fn forward<F: Datapath, const INWARD: u32>(
    context: &Context<'_>,
    ctx: &XdpContext,
) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    let half = context.policy.eips();
    may_pass(&subject.packet)?;
    if related::is_error(&subject.packet) {
        if subject.tuple.side == SIDE_INSIDE {
            let code = take_error(context, subject, half);
            if code.is_open() {
                // As any other packet from inside; but no EIP is the right one for it.
                let code = path::from_inside(context, subject);
                let code = border::reconsider(context, subject, code);
                if code.is_to_proxy() {
                    return redirect::stray(context, subject).result();
                }
                let none = code.is_open() || code.is_to_eip() || code.is_to_hairpin();
                return if none { Err(DropReason::NoSession) } else { code.result() };
            }
            code.result()?;
        } else if read_quote(context.frame, subject).is_open() {
            return Err(DropReason::NoSession);
        }
        related::verify(context.frame, subject).result()?;
    }
    find_side(context, subject).result()?;
    let mut new = Addresses { source: subject.packet.source, destination: subject.packet.destination };
    subject.asks = 0;
    if subject.tuple.side == SIDE_INSIDE {
        leave(context, subject, half, &mut new).result()?;
        if subject.hairpin > TO_EIP {
            subject.quote.destination = new.source;
            let port = subject.packet.transport_layer.source_port;
            inward::turn(subject, new.source, port, inward::BY_EIP);
            return path::hand_over::<INWARD>(ctx);
        }
    } else {
        arrive(context, subject, half, &mut new).result()?;
        let Subject { packet, forth, .. } = &mut *subject;
        border::lead::<F>(context, &packet.source, &new.destination, forth).result()?;
    }
    if subject.asks != 0 {
        admit(context, subject)?;
        if subject.tuple.side != SIDE_INSIDE {
            count::route(subject.route.counter, context.bytes);
        }
    }
    let next_hop = subject.forth;
    subject.mtu = next_hop.mtu;
    forward::check(&subject.packet, &next_hop)?;
    if related::is_error(&subject.packet) {
        translate_error(context.frame, subject, &new).result()?;
    } else {
        translate(context.frame, &subject.packet, &new).result()?;
    }
    forward::readdress::<F>(context.frame, subject.packet.network(), &next_hop)?;
    Ok(Outcome { verdict: Verdict::Eip, slot: u32::from(next_hop.slot) })
}

/// The addresses that a packet goes on with.
struct Addresses<F: Datapath> {
    source: F::Address,
    destination: F::Address,
}

/// ICMP messages for the link only do not pass, nor does an error in fragments: what it quotes would stay as it is.
#[inline(always)]
fn may_pass<F: Datapath>(packet: &Packet<F>) -> Result<(), DropReason> {
    if !matches!(packet.transport_layer.flow, Flow::Icmp) {
        return Ok(());
    }
    let kind = packet.transport_layer.detail;
    if F::is_icmp_of_link(kind) {
        return Err(DropReason::UnsupportedProtocol);
    }
    if matches!(packet.fragment, Fragment::First) && F::is_icmp_error(kind) {
        return Err(DropReason::FragmentUnmatched);
    }
    Ok(())
}

/// Reads what the error in the subject quotes: [`Code::OPEN`] where that is no packet of whom it is for.
#[inline(never)]
fn read_quote<F: Datapath>(frame: &Frame<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    let end = packet.network() + usize::from(packet.length);
    let Some(quote) = F::quote_addresses(frame, packet.transport() + ICMP_LEN, end) else {
        return Code::OPEN;
    };
    if !is_same(&F::mapped(&quote.source), &F::mapped(&packet.destination)) {
        return Code::OPEN;
    }
    subject.quote = quote;
    Code::OK
}

/// Whether an error from inside is about a packet that came to a host by its EIP. The host's table decides, by what the
/// host would have answered: whoever complains may be a router that has no route and no EIP. [`Code::OPEN`]: it is not.
#[inline(never)]
fn take_error<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, half: u32) -> Code {
    match try_take_error(context, subject, half) {
        Ok(true) => Code::OK,
        Ok(false) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_take_error<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    half: u32,
) -> Result<bool, DropReason> {
    let found = address::find(&F::mapped(&subject.packet.destination));
    if found.is_some_and(|found| found.flags & (LOCAL | BROADCAST) != 0)
        || read_quote(context.frame, subject).is_open()
        || of_host::<F>(&subject.quote.destination, half).is_none()
    {
        return Ok(false);
    }
    subject.hairpin = match found {
        None => 0,
        Some(found) if found.flags & EIP != 0 => TO_EIP,
        Some(_) => TO_POOL,
    };
    neighbor::back(context, &subject.packet)?;
    let Subject { quote, .. } = subject;
    let query = Query::<F> {
        source: quote.destination,
        destination: quote.source,
        proto: quote.proto,
        port: shown(quote.source_port),
    };
    let Ok(found) = route::lookup(context.policy, context.ingress.slot, &query) else { return Ok(false) };
    if found.target != Target::Eip as u8 {
        return Ok(false);
    }
    count::route(found.counter, context.bytes);
    Ok(true)
}

/// A quoted port for route selectors: 0, which nobody has, where the quote shows none.
#[inline(always)]
fn shown(port: [u8; 2]) -> u32 {
    match u16::from_be_bytes(port) {
        0 => NO_PORT,
        port => u32::from(port),
    }
}

/// On a one-armed interface, what is for an EIP may also come from a client, whose own route decides then.
#[inline(never)]
fn find_side<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    if subject.tuple.side == SIDE_INSIDE
        || !context.is_one_armed()
        || neighbor::back(context, &subject.packet).is_err()
    {
        return Code::OK;
    }
    let code = path::find_route(context, subject);
    if code.result().is_err() {
        return code;
    }
    count::route(subject.route.counter, context.bytes);
    subject.tuple.side = SIDE_INSIDE;
    subject.hairpin = TO_EIP;
    match Target::from_number(subject.route.target) {
        Some(Target::Eip) => Code::OK,
        Some(Target::None) => Code::drop(DropReason::NoRoute),
        Some(Target::Blackhole) => Code::drop(DropReason::Blackhole),
        Some(Target::Prohibit) => Code::drop(DropReason::Prohibited),
        Some(Target::Direct | Target::Pool | Target::Gateway | Target::Host | Target::Proxy) | None => {
            Code::drop(DropReason::NoSession)
        }
    }
}

/// A packet from inside: its source becomes the EIP. One for another EIP goes to that inside host, as if it had come
/// from outside; of one for an address of a pool, this is the first half ([`inward`]).
#[inline(never)]
fn leave<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    half: u32,
    new: &mut Addresses<F>,
) -> Code {
    match try_leave(context, subject, half, new) {
        Ok(next_hop) => {
            subject.forth = next_hop;
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_leave<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    half: u32,
    new: &mut Addresses<F>,
) -> Result<NextHop, DropReason> {
    let packet = &subject.packet;
    // An error is about a packet to the EIP's host, whichever router on the way complains.
    let host = if related::is_error(packet) { subject.quote.destination } else { packet.source };
    new.source = of_host::<F>(&host, half).ok_or(DropReason::NoEip)?;
    if subject.hairpin > TO_EIP {
        // For a client of a pool: the second half has the way.
        forward::check(packet, &hairpin::WAY)?;
        return Ok(hairpin::WAY);
    }
    if subject.hairpin == 0 {
        let Found { next_hop, .. } = neighbor::towards::<F>(context, packet.source, packet.destination)?;
        return Ok(next_hop);
    }
    new.destination = host_of::<F>(&packet.destination, half).ok_or(DropReason::NoEip)?;
    let Found { next_hop, .. } = neighbor::towards_inside::<F>(context, packet.source, new.destination)?;
    ask(context, subject, u32::from(next_hop.slot), new.source, new.destination)?;
    Ok(next_hop)
}

/// A packet from outside: its destination becomes the inside host.
#[inline(never)]
fn arrive<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    half: u32,
    new: &mut Addresses<F>,
) -> Code {
    match try_arrive(context, subject, half, new) {
        Ok(next_hop) => {
            subject.forth = next_hop;
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_arrive<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    half: u32,
    new: &mut Addresses<F>,
) -> Result<NextHop, DropReason> {
    let packet = &subject.packet;
    new.destination = host_of::<F>(&packet.destination, half).ok_or(DropReason::NoEip)?;
    // The gateway's own addresses do not come from outside.
    if address::find(&F::mapped(&packet.source)).is_some() {
        return Err(DropReason::SpoofedSource);
    }
    // On a one-armed interface it would be a client's, and `find_side` has looked for that.
    if !context.is_one_armed() {
        neighbor::outside(context, packet)?;
    }
    let remote = packet.source;
    let Found { next_hop, .. } = neighbor::towards_inside::<F>(context, remote, new.destination)?;
    ask(context, subject, u32::from(next_hop.slot), remote, new.destination)?;
    Ok(next_hop)
}

/// The second half of a hairpin: gives the packet in the subject, which comes from a session of another inside host, the
/// host of the EIP that it is for, and leaves the way there in the subject.
#[inline(never)]
pub(crate) fn let_in<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    match try_let_in(context, subject) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_let_in<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<(), DropReason> {
    let remote = subject.packet.source;
    let host = host_of::<F>(&subject.packet.destination, context.policy.eips()).ok_or(DropReason::NoEip)?;
    subject.forth = neighbor::towards_inside::<F>(context, remote, host)?.next_hop;
    let slot = u32::from(subject.forth.slot);
    ask(context, subject, slot, remote, host)?;
    admit(context, subject)?;
    count::route(subject.route.counter, context.bytes);
    subject.mtu = subject.forth.mtu;
    forward::check(&subject.packet, &subject.forth)?;
    subject.packet.destination = host;
    if related::is_error(&subject.packet) {
        subject.quote.source = host;
    }
    Ok(())
}

/// Notes what the host's table is to be asked about a packet of `remote` that goes in to `host` through `slot`, see
/// [`admit`].
#[inline(always)]
fn ask<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    slot: u32,
    remote: F::Address,
    host: F::Address,
) -> Result<(), DropReason> {
    if !context.is_inside(slot) {
        return Err(DropReason::NoRoute);
    }
    let Subject { packet, quote, query, .. } = subject;
    query.source = host;
    // An error may come from anybody on the way; what it quotes is the host's packet.
    if related::is_error(packet) {
        query.destination = if subject.tuple.side == SIDE_INSIDE { remote } else { quote.destination };
        query.proto = quote.proto;
        // The identifier of an echo is no port.
        let ports = matches!(quote.proto, PROTO_TCP | PROTO_UDP);
        query.port = if ports { shown(quote.destination_port) } else { NO_PORT };
    } else {
        query.destination = remote;
        query.proto = packet.proto;
        query.port = packet.server_port(false);
    }
    subject.asks = 1;
    Ok(())
}

/// Whether the packet may go in: the host's table must send answers by its EIP, or the table of the proxy host that
/// they go by.
#[inline(always)]
fn admit<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<(), DropReason> {
    path::find_route_back(context, subject).result()?;
    proxy::beyond(context, subject).result()?;
    match Target::from_number(subject.route.target).ok_or(DropReason::Internal)? {
        Target::Eip => Ok(()),
        // Answers would come from another address.
        Target::Pool | Target::Direct | Target::Gateway | Target::Host | Target::Proxy => {
            Err(DropReason::NoSession)
        }
        Target::None | Target::Blackhole | Target::Prohibit => Err(DropReason::NoRoute),
    }
}

/// Writes the new addresses, and changes the checksums by how much that changes them (RFC 1624).
#[inline(never)]
fn translate<F: Datapath>(frame: &Frame<'_>, packet: &Packet<F>, new: &Addresses<F>) -> Code {
    match try_translate(frame, packet, new) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_translate<F: Datapath>(
    frame: &Frame<'_>,
    packet: &Packet<F>,
    new: &Addresses<F>,
) -> Result<(), DropReason> {
    let delta = addresses_delta(packet, new);
    if !matches!(packet.fragment, Fragment::Later)
        && let Some(at) = parse::address_checksum::<F>(packet.proto)
    {
        let at = packet.transport() + at;
        if at + 2 > packet.network() + usize::from(packet.length) {
            return Err(DropReason::Truncated);
        }
        if packet.proto == PROTO_UDP {
            frame.update_udp_checksum(at, delta)?;
        } else {
            frame.update_checksum(at, delta)?;
        }
    }
    write_addresses(frame, packet, new, delta)
}

/// Writes the addresses of the header, and its TTL.
#[inline(always)]
fn write_addresses<F: Datapath>(
    frame: &Frame<'_>,
    packet: &Packet<F>,
    new: &Addresses<F>,
    delta: u16,
) -> Result<(), DropReason> {
    F::write_address(frame, packet.network() + F::SOURCE, new.source)?;
    F::write_address(frame, packet.network() + F::DESTINATION, new.destination)?;
    forward::age(frame, packet, checksum::combine(delta, forward::TTL_DELTA))
}

/// By how much the new addresses change a sum over them.
#[inline(always)]
fn addresses_delta<F: Datapath>(packet: &Packet<F>, new: &Addresses<F>) -> u16 {
    let source = checksum::delta(F::sum(&packet.source), F::sum(&new.source));
    checksum::combine(source, checksum::delta(F::sum(&packet.destination), F::sum(&new.destination)))
}

/// As [`translate`], for an ICMP error: the packet that it quotes is changed back.
#[inline(never)]
fn translate_error<F: Datapath>(frame: &Frame<'_>, subject: &Subject<F>, new: &Addresses<F>) -> Code {
    match try_translate_error(frame, subject, new) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_translate_error<F: Datapath>(
    frame: &Frame<'_>,
    subject: &Subject<F>,
    new: &Addresses<F>,
) -> Result<(), DropReason> {
    let Subject { packet, quote, .. } = subject;
    let network = usize::from(quote.network);
    // Quoted is a packet from whom the error is for, to the host behind the EIP that it leaves with.
    let quoted_destination = if subject.tuple.side == SIDE_INSIDE { new.source } else { quote.destination };
    let quoted = checksum::combine(
        checksum::delta(F::sum(&quote.source), F::sum(&new.destination)),
        checksum::delta(F::sum(&quote.destination), F::sum(&quoted_destination)),
    );
    let outer = addresses_delta(packet, new);
    let mut icmp = quoted;
    if F::IS_V4 {
        let at = network + HEADER_CHECKSUM;
        let old = u16::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
        let changed = checksum::apply(old, quoted);
        frame.write(at, changed.to_be())?;
        icmp = checksum::combine(icmp, checksum::delta(old.into(), changed.into()));
    } else {
        icmp = checksum::combine(icmp, outer);
    }
    if quote.checksum != 0 {
        let at = usize::from(quote.checksum);
        let old = u16::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
        let changed = if quote.proto == PROTO_UDP {
            checksum::apply_udp(old, quoted)
        } else {
            checksum::apply(old, quoted)
        };
        frame.write(at, changed.to_be())?;
        icmp = checksum::combine(icmp, checksum::delta(old.into(), changed.into()));
    }
    F::write_address(frame, network + F::SOURCE, new.destination)?;
    F::write_address(frame, network + F::DESTINATION, quoted_destination)?;
    frame.update_checksum(packet.transport() + CHECKSUM, icmp)?;
    write_addresses(frame, packet, new, outer)
}
