//! The packet path, as a checklist.
//!
//! ```text
//! fast:    parse -> session, confirmed -> translate -> send
//!                -> anything else      -> decide
//! decide:  parse -> the host's own business
//!                -> session, unconfirmed -> confirm or cut -> translate -> send
//!                -> none, from inside    -> source, route, target: open a session, or forward
//!                -> none, from outside   -> a pool's address, an inside host, or the host's business
//! ```

use aya_ebpf::{btf_maps::ProgramArray, macros::btf_map, programs::XdpContext};
use gateway_common::{
    DropReason, V4, V6, Verdict,
    address::{BROADCAST, LOCAL, POOL},
    config::{Config, DECIDE_V4, DECIDE_V6, PROGRAM_COUNT},
    family::NextHop,
    interface::{INSIDE, Interface, OUTSIDE},
    parse::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Flow, Fragment, Link, Packet},
    route::Target,
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, TCP_RST, TCP_SYN, Tuple},
};

use crate::{
    address, config, count,
    family::Datapath,
    forward, neighbor, open,
    packet::Frame,
    rewrite,
    route::{self, Query},
    session,
};

/// What the program does with a packet that it does not drop.
pub(crate) enum Outcome {
    /// Left to the host's own stack, unchanged.
    Host,
    /// Sent out through `slot`.
    Send {
        /// Why.
        verdict: Verdict,
        /// Egress slot.
        slot: u32,
    },
}

/// Everything that stays the same along one packet's path.
pub(crate) struct Context<'a> {
    pub(crate) frame: &'a Frame<'a>,
    pub(crate) config: &'a Config,
    pub(crate) ingress: &'a Interface,
    /// [`Config::generation`] as it was before any map was read: what is decided now is marked with it.
    pub(crate) generation: u32,
    /// Length of the frame as it arrived.
    pub(crate) bytes: u64,
}

impl<'a> Context<'a> {
    #[inline(always)]
    pub(crate) fn new(frame: &'a Frame<'a>, config: &'a Config, ingress: &'a Interface) -> Self {
        // SAFETY: the reference is valid; user space may write the field at any time.
        let generation = unsafe { (&raw const config.generation).read_volatile() };
        Self { frame, config, ingress, generation, bytes: frame.bytes() }
    }
}

/// The programs that `gateway` tail calls.
#[btf_map]
static PROGRAMS: ProgramArray<{ PROGRAM_COUNT as usize }> = ProgramArray::new();

/// What all packets meet first: whoever has a confirmed session leaves from here, and whoever has not is
/// handed to [`decide`].
#[inline(always)]
pub(crate) fn fast(context: &Context<'_>, ctx: &XdpContext) -> Result<Outcome, DropReason> {
    let link = parse::link(context.frame).ok_or(DropReason::Truncated)?;
    if link.vlan {
        // A tagged frame belongs to the VLAN device, which is an interface of its own.
        return Ok(Outcome::Host);
    }
    match link.ethertype {
        ETHERTYPE_IPV4 => match fast_ip::<V4>(context, &link)? {
            Some(outcome) => Ok(outcome),
            None => hand_over::<DECIDE_V4>(ctx),
        },
        ETHERTYPE_IPV6 => match fast_ip::<V6>(context, &link)? {
            Some(outcome) => Ok(outcome),
            None => hand_over::<DECIDE_V6>(ctx),
        },
        ETHERTYPE_ARP => hand_over::<DECIDE_V4>(ctx),
        _ => Ok(Outcome::Host),
    }
}

/// Continues in another program. The index is a constant, so that the JIT makes a direct jump of it.
#[inline(always)]
fn hand_over<const PROGRAM: u32>(ctx: &XdpContext) -> Result<Outcome, DropReason> {
    // SAFETY: nothing of this program needs to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, PROGRAM) };
    // The call returns only where the program is missing.
    Err(DropReason::Internal)
}

/// Decides a packet of family `F` (with IPv4: or ARP) that has no confirmed session.
#[inline(always)]
pub(crate) fn decide<F: Datapath>(context: &Context<'_>) -> Result<Outcome, DropReason> {
    let link = parse::link(context.frame).ok_or(DropReason::Truncated)?;
    if F::IS_V4 && link.ethertype == ETHERTYPE_ARP {
        return address::answer_arp(context, link.network);
    }
    let packet = F::parse(context.frame, link.network)?;
    if !F::IS_V4 && matches!(packet.flow, Flow::Icmp(address::NEIGHBOR_SOLICITATION)) {
        return address::answer_solicitation(context, &packet);
    }
    if link.group || F::is_local_scope(&packet) {
        return Ok(Outcome::Host);
    }
    if F::is_martian(&packet) {
        return Err(DropReason::Malformed);
    }
    let side = side(context, &packet);
    if let Some(tuple) = tuple(&packet, side)
        && let Some(session) = F::session(&tuple)
    {
        // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
        let session = unsafe { &mut *session };
        if session.generation != context.generation {
            confirm(context, &packet, &tuple, session)?;
        }
        return established(context, &packet, session, side);
    }
    if side == SIDE_INSIDE { from_inside(context, &packet) } else { from_outside(context, &packet) }
}

/// [`fast`] for an IP packet; `None` where it takes a decision.
#[inline(always)]
fn fast_ip<F: Datapath>(context: &Context<'_>, link: &Link) -> Result<Option<Outcome>, DropReason> {
    let packet = F::parse(context.frame, link.network)?;
    let side = side(context, &packet);
    let Some(tuple) = tuple(&packet, side) else { return Ok(None) };
    let Some(session) = F::session(&tuple) else { return Ok(None) };
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let session = unsafe { &mut *session };
    if session.generation != context.generation {
        return Ok(None);
    }
    established(context, &packet, session, side).map(Some)
}

/// The key of the packet's session, where it can have one.
#[inline(always)]
fn tuple<F: Datapath>(packet: &Packet<F>, side: u8) -> Option<Tuple<F>> {
    if !matches!(packet.fragment, Fragment::Whole) {
        return None;
    }
    let (source_port, destination_port) = packet.ports()?;
    Some(Tuple {
        source: packet.source,
        destination: packet.destination,
        source_port,
        destination_port,
        proto: packet.proto,
        side,
        reserved: [0; 2],
    })
}

/// Which side a packet comes from. On a one-armed interface, what is for a pool's address is an answer.
#[inline(always)]
fn side<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> u8 {
    match context.ingress.flags & (INSIDE | OUTSIDE) {
        INSIDE => SIDE_INSIDE,
        OUTSIDE => SIDE_OUTSIDE,
        _ => match address::find(&F::mapped(&packet.destination)) {
            Some(found) if found.flags & POOL != 0 => SIDE_OUTSIDE,
            _ => SIDE_INSIDE,
        },
    }
}

/// A packet of a confirmed session: the path that has to be fast.
#[inline(always)]
pub(crate) fn established<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    session: &mut Session<F>,
    side: u8,
) -> Result<Outcome, DropReason> {
    let next_hop = session.next_hop;
    forward::check(packet, &next_hop)?;
    let now = config::now();
    if session.last_seen != now {
        session.last_seen = now;
    }
    if let Flow::Tcp { flags, .. } = packet.flow {
        // A SYN begins the connection anew, also on a tuple that has been used before.
        let seen = if flags & TCP_SYN != 0 { flags } else { session.tcp_seen | flags };
        if session.tcp_seen != seen {
            session.tcp_seen = seen;
        }
    }
    if side == SIDE_OUTSIDE && session.packets == 0 && session.tcp_seen & TCP_RST == 0 {
        count::pool(u32::from(session.pool_address), |pool| pool.established += 1);
    }
    session.packets += 1;
    session.bytes += u64::from(packet.length);
    count::route(session.counter, context.bytes);
    rewrite::translate(context.frame, packet, session, side)?;
    forward::readdress::<F>(context.frame, packet.network, &next_hop)?;
    let verdict = if side == SIDE_INSIDE { Verdict::Snat } else { Verdict::Reply };
    Ok(Outcome::Send { verdict, slot: u32::from(next_hop.slot) })
}

/// Looks again at a session that was decided under another generation: cuts it where the policy does not
/// allow it any more, and refreshes its next hop. A session stays on the pool it has.
#[inline(never)]
fn confirm<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    tuple: &Tuple<F>,
    session: &mut Session<F>,
) -> Result<(), DropReason> {
    if !session::revive(tuple, session) {
        return Err(DropReason::NoSession);
    }
    let inside = tuple.side == SIDE_INSIDE;
    let (client, pool_address) =
        if inside { (packet.source, session.translated) } else { (session.translated, packet.destination) };
    if !open::owns(session.pool_address, &F::mapped(&pool_address)) {
        session::cut(tuple, session);
        return Err(DropReason::NoSession);
    }
    let next_hop = if inside {
        neighbor::back(context, packet)?;
        neighbor::towards::<F>(context, client, packet.destination)?
    } else {
        match neighbor::towards::<F>(context, packet.source, client) {
            // The host need not know the client's MAC address: the session has learned it.
            Err(DropReason::NeighborUnresolved) => session.next_hop,
            result => result?,
        }
    };
    let inside_slot = if inside { context.ingress.slot } else { u32::from(next_hop.slot) };
    let query = Query::<F> {
        source: client,
        destination: if inside { packet.destination } else { packet.source },
        proto: packet.proto,
        port: packet.server_port(inside),
    };
    let denied = match route::lookup(context.config, inside_slot, &query) {
        None => Some(DropReason::NoRoute),
        Some(found) => {
            session.counter = found.counter;
            match Target::from_number(found.target).ok_or(DropReason::Internal)? {
                Target::None => Some(DropReason::NoRoute),
                Target::Blackhole => Some(DropReason::Blackhole),
                Target::Prohibit => Some(DropReason::Prohibited),
                Target::Direct | Target::Pool | Target::Gateway | Target::Host => None,
            }
        }
    };
    if let Some(reason) = denied {
        session::cut(tuple, session);
        return Err(reason);
    }
    session.next_hop = next_hop;
    if session::confirm(session, context.generation) { Ok(()) } else { Err(DropReason::NoSession) }
}

/// A packet from the inside without a session.
#[inline(never)]
fn from_inside<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Result<Outcome, DropReason> {
    if let Some(found) = address::find(&F::mapped(&packet.destination)) {
        if found.flags & (LOCAL | BROADCAST) != 0 {
            return Ok(Outcome::Host);
        }
        return Err(DropReason::NoSession);
    }
    let back = neighbor::back(context, packet)?;
    let query = Query::<F> {
        source: packet.source,
        destination: packet.destination,
        proto: packet.proto,
        port: packet.server_port(true),
    };
    let found = route::lookup(context.config, context.ingress.slot, &query).ok_or(DropReason::NoRoute)?;
    let target = Target::from_number(found.target).ok_or(DropReason::Internal)?;
    if matches!(target, Target::Pool) {
        return open::open(context, packet, &found, back);
    }
    count::route(found.counter, context.bytes);
    match target {
        Target::None => Err(DropReason::NoRoute),
        Target::Blackhole => Err(DropReason::Blackhole),
        Target::Prohibit => Err(DropReason::Prohibited),
        Target::Host => Ok(Outcome::Host),
        Target::Direct => {
            let next_hop = neighbor::towards::<F>(context, packet.source, packet.destination)?;
            untracked(context, packet, &next_hop, Verdict::Direct)
        }
        Target::Gateway => {
            let router = route::router(found.object).ok_or(DropReason::Internal)?;
            let address = F::unmapped(&router.address);
            let next_hop = if router.ifindex == 0 {
                neighbor::towards::<F>(context, packet.source, address)?
            } else {
                neighbor::through::<F>(context, router.ifindex, packet.source, address)?
            };
            untracked(context, packet, &next_hop, Verdict::Gateway)
        }
        Target::Pool => Err(DropReason::Internal),
    }
}

/// A packet from the outside without a session.
///
/// An inside host's own address may be answered where its table sends packets to the answering host
/// untranslated; the host's IP input would let in everything, so what is for an inside host stops here.
#[inline(never)]
fn from_outside<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Result<Outcome, DropReason> {
    if let Some(found) = address::find(&F::mapped(&packet.destination)) {
        if found.flags & (LOCAL | BROADCAST) != 0 {
            return Ok(Outcome::Host);
        }
        return Err(match packet.fragment {
            Fragment::Whole => DropReason::NoSession,
            Fragment::First | Fragment::Later => DropReason::FragmentUnmatched,
        });
    }
    let next_hop = match neighbor::towards::<F>(context, packet.source, packet.destination) {
        Err(DropReason::NoRoute) => return Ok(Outcome::Host),
        result => result?,
    };
    let slot = u32::from(next_hop.slot);
    if context.config.inside_slots & (1 << (slot & 31)) == 0 {
        return Ok(Outcome::Host);
    }
    neighbor::back(context, packet)?;
    let query = Query::<F> {
        source: packet.destination,
        destination: packet.source,
        proto: packet.proto,
        port: packet.server_port(false),
    };
    let found = route::lookup(context.config, slot, &query).ok_or(DropReason::NoRoute)?;
    match Target::from_number(found.target).ok_or(DropReason::Internal)? {
        Target::Direct | Target::Gateway => {
            count::route(found.counter, context.bytes);
            untracked(context, packet, &next_hop, Verdict::Reply)
        }
        Target::None | Target::Blackhole | Target::Prohibit => Err(DropReason::NoRoute),
        Target::Pool => Err(DropReason::NoSession),
        Target::Host => Ok(Outcome::Host),
    }
}

/// Forwards a packet that is neither translated nor tracked.
#[inline(always)]
fn untracked<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    next_hop: &NextHop,
    verdict: Verdict,
) -> Result<Outcome, DropReason> {
    forward::check(packet, next_hop)?;
    forward::age(context.frame, packet, forward::TTL_DELTA)?;
    forward::readdress::<F>(context.frame, packet.network, next_hop)?;
    Ok(Outcome::Send { verdict, slot: u32::from(next_hop.slot) })
}
