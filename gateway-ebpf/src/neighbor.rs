//! Maps `NEXT_HOPS` and `LEARNED`: small caches in front of [`crate::fib`].
//!
//! Tracked flows keep their next hop in the session. Flows that are not tracked, and the check of every
//! packet's source, meet this cache instead: it is per CPU, direct mapped, and valid for one generation.

use aya_ebpf::{
    btf_maps::{LruHashMap, PerCpuArray},
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    family::{Learned, MAX_LEARNED, MappedAddress, NextHop, is_same},
    parse::{Bytes as _, Packet},
};

use crate::{
    config, event,
    family::Datapath,
    fib::{self, Answer},
    packet::{Mac, mac_bytes},
    path::{Code, Context},
};

const CACHE_BITS: u32 = 11;

/// One cached answer.
#[repr(C)]
struct Cached {
    /// Generation for which it holds; 0: empty.
    generation: u32,
    /// The interface the question was asked for, and whether it is bound to it ([`BOUND`]).
    through: u32,
    address: MappedAddress,
    next_hop: NextHop,
}

/// Marks [`Cached::through`] of a question bound to its egress interface.
const BOUND: u32 = 1 << 31;
/// Marks [`Cached::through`] of a question that another router is no answer to.
const ON_LINK: u32 = 1 << 30;

/// A next hop.
#[derive(Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) next_hop: NextHop,
    /// Whether its MAC address is only what packets have shown, and the kernel is being asked.
    pub(crate) learned: bool,
}

#[btf_map]
static LEARNED: LruHashMap<MappedAddress, Learned, { MAX_LEARNED as usize }> = LruHashMap::new();

#[btf_map]
static NEXT_HOPS: PerCpuArray<Cached, { 1 << CACHE_BITS }> = PerCpuArray::new();

/// Where `destination` is reached, for a packet that came in through `ingress`.
///
/// # Errors
/// [`DropReason::NeighborUnresolved`] (the daemon is asked to resolve it), [`DropReason::NoRoute`] where the
/// host has no way to it through an attached interface, [`DropReason::Internal`] where it does not forward.
#[inline(always)]
pub(crate) fn towards<F: Datapath>(
    context: &Context<'_>,
    source: F::Address,
    destination: F::Address,
) -> Result<Found, DropReason> {
    let through = context.frame.ingress_ifindex();
    ask::<F>(context, &Question { source, destination, through, unresolved: Unresolved::Drop })
}

/// As [`towards`], for a packet from outside: what is not resolved on a link that is not an inside one is the
/// host's business, as if there were no way.
///
/// # Errors
/// As [`towards`].
#[inline(always)]
pub(crate) fn towards_inside<F: Datapath>(
    context: &Context<'_>,
    source: F::Address,
    destination: F::Address,
) -> Result<Found, DropReason> {
    let through = context.frame.ingress_ifindex();
    ask::<F>(context, &Question { source, destination, through, unresolved: Unresolved::DropInside })
}

/// Where `destination` is reached, if it is an inside host; on a one-armed interface, one on its link. `None`: it is
/// not.
///
/// # Errors
/// As [`towards`].
#[inline(always)]
pub(crate) fn inside<F: Datapath>(
    context: &Context<'_>,
    source: F::Address,
    destination: F::Address,
) -> Result<Option<NextHop>, DropReason> {
    let through = context.frame.ingress_ifindex() | if context.is_one_armed() { ON_LINK } else { 0 };
    let question = Question { source, destination, through, unresolved: Unresolved::DropInside };
    match ask::<F>(context, &question) {
        Ok(Found { next_hop, .. }) if context.is_inside(u32::from(next_hop.slot)) => Ok(Some(next_hop)),
        Ok(_) | Err(DropReason::NoRoute) => Ok(None),
        Err(reason) => Err(reason),
    }
}

/// Where the router `destination` is reached: on its own link, through the interface `egress` if that is not 0.
///
/// # Errors
/// As [`towards`]; a way through another router is none.
#[inline(always)]
pub(crate) fn router<F: Datapath>(
    context: &Context<'_>,
    egress: u32,
    source: F::Address,
    destination: F::Address,
) -> Result<Found, DropReason> {
    let through = if egress == 0 { context.frame.ingress_ifindex() } else { egress | BOUND } | ON_LINK;
    ask::<F>(context, &Question { source, destination, through, unresolved: Unresolved::Drop })
}

/// The way back to a packet's source, which must lead through the interface it came from (strict reverse
/// path check, RFC 3704 2.2).
///
/// A client that talks through the gateway need not be known to the host's neighbour table: where it is not,
/// the way back is the MAC address the packet came from.
///
/// # Errors
/// [`DropReason::SpoofedSource`], [`DropReason::Internal`] where the host does not forward.
#[inline(always)]
pub(crate) fn back<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Result<Found, DropReason> {
    match source(context, packet) {
        Ok(found) if u32::from(found.next_hop.slot) == context.ingress.slot => Ok(found),
        Err(DropReason::Internal) => Err(DropReason::Internal),
        _ => Err(DropReason::SpoofedSource),
    }
}

/// Checks that a packet from the outside does not come from an inside address.
///
/// Through which of several outside interfaces answers come back is up to other routers, all the more where
/// a route has sent the questions past the host's own routes (loose reverse path check, RFC 3704 2.4). On a one-armed
/// interface, what is behind a router of its link is outside.
///
/// # Errors
/// As [`back`].
#[inline(always)]
pub(crate) fn outside<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Result<(), DropReason> {
    match source(context, packet) {
        Ok(found) if !context.is_inside(u32::from(found.next_hop.slot)) => Ok(()),
        Err(DropReason::NoRoute) if context.is_one_armed() => Ok(()),
        Err(DropReason::Internal) => Err(DropReason::Internal),
        _ => Err(DropReason::SpoofedSource),
    }
}

/// Where the host's tables have a packet's source.
///
/// # Errors
/// As [`towards`], but for an unknown MAC address: the frame's sender stands for it.
#[inline(always)]
fn source<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Result<Found, DropReason> {
    let question = Question {
        source: packet.destination,
        destination: packet.source,
        // On a one-armed interface, the clients are those on its link: all else is behind a router, and which
        // of the routers is an inside one nobody says.
        through: context.frame.ingress_ifindex() | if context.is_one_armed() { ON_LINK } else { 0 },
        unresolved: Unresolved::Learn,
    };
    ask::<F>(context, &question)
}

/// What is asked of the host's tables.
struct Question<F: Datapath> {
    source: F::Address,
    destination: F::Address,
    /// Ifindex of the ingress interface, or with [`BOUND`] of the egress interface.
    through: u32,
    unresolved: Unresolved,
}

/// What is to be done where the next hop's MAC address is not known.
#[derive(Clone, Copy)]
enum Unresolved {
    /// The packet is dropped, unless the next hop is in `LEARNED`.
    Drop,
    /// As [`Unresolved::Drop`] on inside interfaces; elsewhere there is no way.
    DropInside,
    /// The question is about the frame's source, and the frame's sender will do for it.
    Learn,
}

/// Answers from the cache, or asks the host's tables.
#[inline(always)]
fn ask<F: Datapath>(context: &Context<'_>, question: &Question<F>) -> Result<Found, DropReason> {
    let mut next_hop = NextHop::default();
    let code = answer::<F>(context, question, &mut next_hop);
    code.result()?;
    Ok(Found { next_hop, learned: code.is_learned() })
}

/// [`ask`] as a function of its own, for its stack.
#[inline(never)]
fn answer<F: Datapath>(context: &Context<'_>, question: &Question<F>, next_hop: &mut NextHop) -> Code {
    match try_answer(context, question) {
        Ok(found) => {
            *next_hop = found.next_hop;
            if found.learned { Code::LEARNED } else { Code::OK }
        }
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_answer<F: Datapath>(context: &Context<'_>, question: &Question<F>) -> Result<Found, DropReason> {
    let through = question.through;
    let address = F::mapped(&question.destination);
    let slot = NEXT_HOPS.get_ptr_mut(hash(&address, through) >> (32 - CACHE_BITS));
    if let Some(entry) = slot {
        // SAFETY: the element is this CPU's own and programs do not preempt each other.
        let entry = unsafe { &*entry };
        if entry.generation == context.generation
            && entry.through == through
            && is_same(&entry.address, &address)
        {
            return Ok(Found { next_hop: entry.next_hop, learned: false });
        }
    }
    let ifindex = through & !(BOUND | ON_LINK);
    let (output, on_link) = (through & BOUND != 0, through & ON_LINK != 0);
    let answer =
        fib::lookup::<F>(context.frame, question.source, question.destination, ifindex, output, on_link);
    let next_hop = match answer {
        Answer::Hop(next_hop) => next_hop,
        Answer::Unresolved { slot, .. }
            if matches!(question.unresolved, Unresolved::DropInside) && !context.is_inside(slot) =>
        {
            return Err(DropReason::NoRoute);
        }
        Answer::Unresolved { slot, ifindex, mtu, address } => {
            // Not for the cache: the kernel's answer is better, and will be there soon.
            event::unresolved(context.config, ifindex, address);
            let learn = matches!(question.unresolved, Unresolved::Learn);
            return learned(context, learn, slot, ifindex, mtu, &address);
        }
        Answer::Disabled => return Err(DropReason::Internal),
        Answer::Elsewhere => return Err(DropReason::NoRoute),
    };
    if let Some(entry) = slot {
        // SAFETY: as above.
        let entry = unsafe { &mut *entry };
        entry.generation = context.generation;
        entry.through = through;
        entry.address = address;
        entry.next_hop = next_hop;
    }
    Ok(Found { next_hop, learned: false })
}

/// The next hop as its own packets have shown it, where the kernel does not know it.
///
/// An inside host that the kernel has never spoken to is known by what it sent, so that the first answer
/// reaches it. Only a host on its link could pretend to be another one, as it can by ARP.
#[inline(always)]
fn learned(
    context: &Context<'_>,
    learn: bool,
    slot: u32,
    ifindex: u32,
    mtu: u16,
    address: &MappedAddress,
) -> Result<Found, DropReason> {
    if learn {
        let sender: Mac = context.frame.read(6).ok_or(DropReason::Truncated)?;
        let mac = mac_bytes(sender);
        if slot == context.ingress.slot {
            let _ = LEARNED.insert(address, Learned { slot, mac, reserved: [0; 2] }, 0);
        }
        let next_hop = NextHop::new(slot as u16, mtu, mac, context.ingress.mac);
        return Ok(Found { next_hop, learned: true });
    }
    // SAFETY: the value is copied at once; an element that is being reused may be of another neighbour for one
    // packet, which then does not arrive.
    let found = unsafe { LEARNED.get(address) }.copied();
    match (found, config::interface(ifindex)) {
        (Some(found), Some(egress)) if found.slot == slot => {
            let next_hop = NextHop::new(slot as u16, mtu, found.mac, egress.mac);
            Ok(Found { next_hop, learned: true })
        }
        _ => Err(DropReason::NeighborUnresolved),
    }
}

/// Multiplicative hash; the useful bits are the high ones.
#[inline(always)]
fn hash(address: &MappedAddress, through: u32) -> u32 {
    let mixed = address[3] ^ address[2].rotate_left(7) ^ address[1].rotate_left(14) ^ address[0] ^ through;
    mixed.wrapping_mul(0x9e37_79b1)
}
