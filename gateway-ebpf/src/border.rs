//! The border table: where replies from outside go, once they are translated back.

use gateway_common::{DropReason, Verdict, family::NextHop, route::Target, session::Session};

use crate::{
    count,
    family::Datapath,
    neighbor::{self, Found},
    path::{self, Code, Context, Outcome},
    route,
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
            // A router that is not resolved soon will be.
            if !matches!(reason, DropReason::NeighborUnresolved) {
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
        // User space enters none of these.
        Target::None | Target::Pool | Target::Host | Target::Eip | Target::Proxy => Err(DropReason::Internal),
    }
}
