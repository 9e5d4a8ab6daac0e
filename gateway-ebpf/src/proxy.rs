//! Maps `PROXIES`, `PROXY_HOSTS` and `PROXY_MACS`: which host of a proxy a flow goes to, and which host a frame comes
//! from. What becomes of such flows is in [`crate::redirect`].

use core::arch::asm;

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    family::{MappedAddress, NextHop},
    interface,
    parse::Bytes as _,
    proxy::{
        self, FAIL_DIRECT, FAIL_POOL, FAIL_PROXY, IN_USE, MAX_PROXIES, MAX_PROXY_HOSTS, NO_HOST, PROXIED,
        Proxy, ProxyHost, ProxyMac, RESOLVED, SLOTS, UP,
    },
    route::{Route, Target},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, Tuple},
    tunnel as common,
};

use crate::{
    family::Datapath,
    packet::{Mac, mac_bytes},
    path::{Code, Context},
    route,
    session::Subject,
    tunnel,
};

#[btf_map]
static PROXIES: Array<Proxy, { MAX_PROXIES as usize }> = Array::new();

#[btf_map]
static PROXY_HOSTS: Array<ProxyHost, { MAX_PROXY_HOSTS as usize }> = Array::new();

#[btf_map]
static PROXY_MACS: HashMap<ProxyMac, u32, { MAX_PROXY_HOSTS as usize }> = HashMap::new();

/// Proxies that one packet may be sent to in turn: that of the route, and the one that stands in for it.
const IN_TURN: u32 = 2;

/// Whose frame it is, see [`Tuple::origin`].
#[inline(always)]
pub(crate) fn origin(context: &Context<'_>) -> u16 {
    match tunnel::origin() {
        0 => origin_on_link(context),
        origin => origin,
    }
}

/// [`origin`] of a frame that did not come out of a tunnel. Asked only where hosts of proxies are behind the interface.
#[inline(always)]
pub(crate) fn origin_on_link(context: &Context<'_>) -> u16 {
    if context.ingress.flags & interface::PROXIES == 0 {
        return 0;
    }
    let Some(sender) = context.frame.read::<Mac>(6) else { return 0 };
    let key = ProxyMac { mac: mac_bytes(sender), slot: context.ingress.slot as u16 };
    // SAFETY: the value is a plain integer and is copied at once.
    match unsafe { PROXY_MACS.get(key) } {
        Some(host) => proxy::origin(*host as u16),
        None => 0,
    }
}

/// The slot that the session of a packet whose way back is `back` takes packets of the inside from: that of the way,
/// or where packets of the tunnel arrive.
#[inline(always)]
pub(crate) fn ingress(context: &Context<'_>, back: &NextHop) -> u16 {
    if common::host_of(u32::from(back.slot)).is_some() { context.ingress.slot as u16 } else { back.slot }
}

/// Completes the key of a packet that `origin` sends: it goes out, or back to a client whose flow was sent there.
#[inline(always)]
pub(crate) fn take_side<F: Datapath>(tuple: &mut Tuple<F>, origin: u16) {
    tuple.origin = origin;
    tuple.side = SIDE_OUTSIDE;
    if F::session(tuple).is_none() {
        tuple.side = SIDE_INSIDE;
    }
}

/// The host with this number, if there is one.
#[inline(always)]
pub(crate) fn host(number: u16) -> Option<&'static ProxyHost> {
    PROXY_HOSTS.get(u32::from(number)).filter(|host| host.flags & IN_USE != 0)
}

/// The host that frames of `origin` come from.
#[inline(always)]
pub(crate) fn host_of(origin: u16) -> Option<&'static ProxyHost> {
    host(origin.wrapping_sub(1))
}

/// The host that a session's packets from inside go to, if it takes them.
#[inline(always)]
pub(crate) fn host_of_session<F: Datapath>(session: &Session<F>) -> Option<&'static ProxyHost> {
    host(session.pool_address & !PROXIED).filter(|host| host.flags & (UP | RESOLVED) == UP | RESOLVED)
}

/// Whether a packet of a session may go straight on to its host: that is up, and not the frame's sender.
#[inline(always)]
pub(crate) fn goes_on<F: Datapath>(context: &Context<'_>, origin: u16, session: &Session<F>) -> bool {
    host_of_session(session).is_some() && !turns_back(context, origin, &session.next_hop)
}

/// Whether the next hop is the sender of the frame, which has this origin: nobody gets what it has sent itself.
#[inline(always)]
pub(crate) fn turns_back(context: &Context<'_>, origin: u16, next_hop: &NextHop) -> bool {
    if let Some(host) = common::host_of(u32::from(next_hop.slot)) {
        return origin == proxy::origin(host);
    }
    let sender: Mac = context.frame.read(6).unwrap_or_default();
    let [s0, s1, s2, s3, s4, s5] = mac_bytes(sender);
    let high = next_hop.ethernet[0] ^ u32::from_ne_bytes([s0, s1, s2, s3]);
    let [d4, d5, ..] = next_hop.ethernet[1].to_ne_bytes();
    u32::from(next_hop.slot) == context.ingress.slot && high == 0 && [d4, d5] == [s4, s5]
}

/// The way back to the proxy host that the frame comes from.
#[inline(always)]
pub(crate) fn back(context: &Context<'_>, origin: u16) -> Result<NextHop, DropReason> {
    if tunnel::origin() != 0 {
        return towards(origin);
    }
    let sender: Mac = context.frame.read(6).ok_or(DropReason::Truncated)?;
    let (slot, mtu) = (context.ingress.slot as u16, context.ingress.mtu);
    Ok(NextHop::new(slot, mtu, mac_bytes(sender), context.ingress.mac))
}

/// The way to the host that frames of `origin` come from.
///
/// # Errors
/// [`DropReason::NoSession`] where it is no host of a proxy any more, [`DropReason::NeighborUnresolved`].
#[inline(always)]
pub(crate) fn towards(origin: u16) -> Result<NextHop, DropReason> {
    let host = host_of(origin).ok_or(DropReason::NoSession)?;
    if host.flags & RESOLVED == 0 { Err(DropReason::NeighborUnresolved) } else { Ok(host.next_hop) }
}

/// The address that the policy knows the sender of a flow by: its own, or that of the proxy host that the frames
/// come from. `None`: that is none any more.
#[inline(always)]
pub(crate) fn bound_address<F: Datapath>(source: F::Address, origin: u16) -> Option<MappedAddress> {
    if origin == 0 { Some(F::mapped(&source)) } else { host_of(origin).map(|host| host.address) }
}

/// Decides what the route of the subject, of target `proxy`, comes to for its packet: leaves the number of a host in
/// it, or what the proxy does without hosts.
#[inline(never)]
pub(crate) fn resolve<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    let slot =
        proxy::slot(&F::mapped(&packet.source), &F::mapped(&packet.destination), context.config.secret);
    let chosen = choose(&mut subject.route, slot);
    if !chosen.is_open() {
        return chosen;
    }
    let origin = subject.tuple.origin;
    let Some(host) = host(subject.route.object as u16) else { return Code::drop(DropReason::ProxyDown) };
    if host.flags & UP == 0 {
        return Code::drop(DropReason::ProxyDown);
    }
    if host.flags & RESOLVED == 0 {
        return Code::drop(DropReason::NeighborUnresolved);
    }
    // Nothing leads on for what comes out of the proxy that it would go into.
    let own = origin != 0 && host_of(origin).is_some_and(|from| from.proxy == host.proxy);
    if own || turns_back(context, origin, &host.next_hop) {
        return Code::drop(DropReason::NoRoute);
    }
    subject.forth = host.next_hop;
    subject.mtu = host.next_hop.mtu;
    Code::OK
}

/// Follows a route of target `proxy` to a host: [`Code::OPEN`], with its number in the route. [`Code::OK`]: no host
/// takes the flow, and the route is what the proxy does then.
#[inline(always)]
pub(crate) fn choose(route: &mut Route, slot: usize) -> Code {
    for _ in 0..IN_TURN {
        let Some(proxy) = PROXIES.get(route.object) else { break };
        if proxy.in_use == 0 {
            break;
        }
        let host = slot_of(proxy, slot);
        if host != NO_HOST {
            route.object = u32::from(host);
            return Code::OPEN;
        }
        let fail = proxy.fail;
        if fail == FAIL_DIRECT {
            route.target = Target::Direct as u8;
            return Code::OK;
        }
        if fail == FAIL_POOL {
            route.target = Target::Pool as u8;
            route.object = proxy.object;
            return Code::OK;
        }
        if fail != FAIL_PROXY {
            break;
        }
        route.object = proxy.object;
    }
    Code::drop(DropReason::ProxyDown)
}

/// For a packet to an inside host, whose own route for the answer is in the subject: where that is one to a proxy,
/// puts the route that the proxy's host has for the answer in its place. So what a proxy host sends on without a
/// session of the gateway may be answered. Which way the packet takes, the border table says.
#[inline(never)]
pub(crate) fn beyond<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    if subject.route.target != Target::Proxy as u8 {
        return Code::OK;
    }
    match try_beyond(context, subject) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_beyond<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<(), DropReason> {
    let Subject { query, route, .. } = subject;
    let slot = proxy::slot(&F::mapped(&query.source), &F::mapped(&query.destination), context.config.secret);
    let chosen = choose(route, slot);
    if !chosen.is_open() {
        // Without hosts, what goes out does so by itself.
        return chosen.result().map(|_| ());
    }
    let host = host(route.object as u16).ok_or(DropReason::ProxyDown)?;
    if host.flags & RESOLVED == 0 {
        return Err(DropReason::NeighborUnresolved);
    }
    *route = route::lookup_for(context.policy, u32::from(host.next_hop.slot), &host.address, query)?;
    Ok(())
}

#[inline(always)]
fn slot_of(proxy: &Proxy, mut slot: usize) -> u16 {
    // The verifier does not follow a remainder: without this the compiler leaves out the check that it wants to see.
    // SAFETY: the instruction does nothing.
    unsafe { asm!("{0} = {0}", inout(reg) slot, options(nomem, nostack, preserves_flags, pure)) };
    if slot < SLOTS { proxy.slots[slot] } else { NO_HOST }
}
