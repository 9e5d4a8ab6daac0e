//! The border table: where replies from outside go, once they are translated back, and what comes back from there.

use gateway_common::{
    DropReason, Verdict,
    family::NextHop,
    proxy::{self as common, RESOLVED},
    route::{Route, Target},
    session::Session,
};

use crate::{
    address, count,
    family::Datapath,
    neighbor::{self, Found},
    path::{self, Code, Context, Outcome},
    proxy, route,
    session::{self, Subject},
};

/// Puts the way that the border table has to `client` in the place of `next_hop`, the host's own way to it, for
/// packets that `remote` sends from outside. [`Code::OK`] also where the table does not say, [`Code::LEARNED`] where the
/// router's MAC address is only what packets have shown.
///
/// A function of its own, for its stack.
#[inline(never)]
pub(crate) fn lead<F: Datapath>(
    context: &Context<'_>,
    remote: &F::Address,
    client: &F::Address,
    next_hop: &mut NextHop,
) -> Code {
    match try_lead::<F>(context, *remote, *client) {
        Ok(Some(found)) => {
            *next_hop = found.next_hop;
            if found.learned { Code::LEARNED } else { Code::OK }
        }
        Ok(None) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

/// Chooses the way of a session's packets from outside, whose own is in the subject, and confirms it. A route that
/// denies cuts it. [`Code::OPEN`]: it was cut before.
#[inline(never)]
pub(crate) fn confirm<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &mut Session<F>,
) -> Code {
    match try_lead::<F>(context, subject.packet.source, session.translated) {
        Ok(Some(found)) => {
            subject.forth = found.next_hop;
            subject.learned = u8::from(found.learned);
        }
        Ok(None) => {}
        Err(reason) => {
            // A router or a host that cannot be reached denies nothing, and may be back.
            if matches!(reason, DropReason::Blackhole | DropReason::Prohibited) {
                session::cut(&subject.tuple, session);
            }
            return Code::drop(reason);
        }
    }
    session.next_hop = subject.forth;
    let generation = if subject.learned != 0 { session::STALE } else { context.generation };
    if session::confirm(session, generation) { Code::OK } else { Code::OPEN }
}

/// Sends an answer to an untranslated packet on, whose own way is in the subject.
#[inline(never)]
pub(crate) fn pass<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    Code::from(try_pass(context, subject))
}

#[inline(always)]
fn try_pass<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<Outcome, DropReason> {
    let packet = &subject.packet;
    if let Some(found) = try_lead::<F>(context, packet.source, packet.destination)? {
        subject.forth = found.next_hop;
    }
    let next_hop = subject.forth;
    path::untracked(context, subject, &next_hop, Verdict::Reply)
}

#[inline(always)]
fn try_lead<F: Datapath>(
    context: &Context<'_>,
    remote: F::Address,
    client: F::Address,
) -> Result<Option<Found>, DropReason> {
    let table = context.policy.border();
    if table == 0 {
        return Ok(None);
    }
    let Some(found) = F::route(table, client) else { return Ok(None) };
    count::route(found.counter, context.bytes);
    match Target::from_number(found.target).ok_or(DropReason::Internal)? {
        Target::Direct => Ok(None),
        Target::Blackhole => Err(DropReason::Blackhole),
        Target::Prohibit => Err(DropReason::Prohibited),
        Target::Gateway => {
            let router = route::router(found.object).ok_or(DropReason::Internal)?;
            let address = F::unmapped(&router.address);
            let way = neighbor::router::<F>(context, router.ifindex, remote, address)?;
            // What is for a client does not leave to the outside.
            if context.is_inside(way.next_hop.slot.into()) { Ok(Some(way)) } else { Err(DropReason::NoRoute) }
        }
        Target::Proxy => {
            let mut next_hop = NextHop::default();
            let code = through::<F>(context, found, &remote, &client, &mut next_hop);
            code.result()?;
            Ok(code.is_learned().then_some(Found { next_hop, learned: true }))
        }
        // User space enters none of these.
        Target::None | Target::Pool | Target::Host | Target::Eip => Err(DropReason::Internal),
    }
}

/// The way to the host of a proxy that the flow between the two has: [`Code::LEARNED`], because the session must ask
/// again, who knows nothing of the health of hosts. [`Code::OK`]: no host is up, and the proxy does without.
#[inline(never)]
fn through<F: Datapath>(
    context: &Context<'_>,
    found: &Route,
    remote: &F::Address,
    client: &F::Address,
    next_hop: &mut NextHop,
) -> Code {
    let slot = common::slot(&F::mapped(remote), &F::mapped(client), context.config.secret);
    let mut route = *found;
    let chosen = proxy::choose(&mut route, slot);
    if !chosen.is_open() {
        return chosen;
    }
    let Some(host) = proxy::host(route.object as u16) else { return Code::drop(DropReason::ProxyDown) };
    if host.flags & RESOLVED == 0 {
        return Code::drop(DropReason::NeighborUnresolved);
    }
    *next_hop = host.next_hop;
    Code::LEARNED
}

/// Decides again about a packet from inside where `code` says that its source is spoofed: a router of the border table
/// may have sent on a reply.
#[inline(always)]
pub(crate) fn reconsider<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, code: Code) -> Code {
    if code.is_spoofed() && context.policy.border() != 0 { relayed(context, subject) } else { code }
}

/// Lets a reply through that a router of the border table sends on: its source is one of the outside, and the frame
/// comes from where the table sends what is for that client.
#[inline(never)]
fn relayed<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    Code::from(try_relayed(context, subject))
}

#[inline(always)]
fn try_relayed<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<Outcome, DropReason> {
    let packet = &subject.packet;
    let (remote, client) = (packet.source, packet.destination);
    let found = F::route(context.policy.border(), client).ok_or(DropReason::SpoofedSource)?;
    if found.target != Target::Gateway as u8 || address::find(&F::mapped(&remote)).is_some() {
        return Err(DropReason::SpoofedSource);
    }
    neighbor::outside(context, packet)?;
    let router = route::router(found.object).ok_or(DropReason::Internal)?;
    let address = F::unmapped(&router.address);
    match neighbor::router::<F>(context, router.ifindex, remote, address) {
        Ok(Found { next_hop, .. }) if proxy::turns_back(context, subject.tuple.origin, &next_hop) => {}
        _ => return Err(DropReason::SpoofedSource),
    }
    match neighbor::inside::<F>(context, remote, client)? {
        // A client behind the router is not the gateway's to deliver to.
        Some(next_hop) if !proxy::turns_back(context, subject.tuple.origin, &next_hop) => {
            path::untracked(context, subject, &next_hop, Verdict::Reply)
        }
        _ => Err(DropReason::SpoofedSource),
    }
}
