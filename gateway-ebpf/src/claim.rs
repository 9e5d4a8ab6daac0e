//! The claim of an address and a port for a session.
//!
//! The insertion of the outside tuple claims the port: it fails where another flow to the same destination
//! has it, on whatever CPU. A client keeps to one address of the pool (paired pooling, RFC 4787 REQ-2); only
//! where none of its ports is free, the others follow, from the emptier of two random ones on. On an address,
//! the client's own port comes first, then random ones (RFC 6056); towards a destination that has many of the
//! address's ports, or where these are all taken, every port that is not known to be used ([`ports`]).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
};
use gateway_common::{
    DropReason, checksum,
    limit::Limit,
    mapping::SHARED,
    parse::{Flow, PROTO_TCP, Packet},
    pool::{DRAINED, IN_USE, OF_HOST},
    ports::{Search, Step},
    session::{Session, Tuple},
};

use crate::{
    count,
    family::Datapath,
    forward, limit,
    path::Context,
    pool::{self, remainder},
    ports,
    session::{self, EEXIST},
    socket,
    table::ENOSPC,
};

/// Random ports of an address that are tried before the search through all of them.
const RANDOM_TRIES: u32 = 8;
/// Ports of an address without a free one that are looked at for closed connections.
const SAMPLES: u32 = 64;
/// As many of an address that will be without a free one soon, with each session that is opened.
const SAMPLES_AHEAD: u32 = 4;
/// Of these, the ports are taken whose connections have been closed for as long as the one that has been longest, but
/// for that part of it: the oldest of a sample, since all of them in order would be a list that every FIN changes.
const ABOUT: u32 = 8;
/// Bound of `bpf_loop`, which is never reached: every call ends at the last address of the pool.
const MAX_STEPS: u32 = 1 << 23;
/// Not an error of the kernel: a socket of the host has the port.
const TAKEN_BY_HOST: i32 = 1;

/// Claims an address of the pool `number` and a port for the tuples in this CPU's scratch element: enters the
/// outside element, and completes tuple and element by what was claimed.
///
/// The caller must hold no reference to the scratch element, which the callback changes.
#[inline(always)]
pub(crate) fn claim<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    number: u32,
) -> Result<(), DropReason> {
    let place = F::scratch().ok_or(DropReason::Internal)?;
    let pool = pool::get(number).ok_or(DropReason::Internal)?;
    let (first, count) = pool::members::<F>(pool);
    let (low, high) = (pool.port_low, pool.port_high);
    if count == 0 || low > high {
        return Err(DropReason::PoolExhausted);
    }
    let secret = context.config.secret;
    // SAFETY: the scratch element is this CPU's own, and the reference ends before the callback runs.
    let scratch = unsafe { &mut *place };
    scratch.towards.server = F::mapped(&scratch.outside.source);
    scratch.towards.port = scratch.outside.source_port;
    scratch.towards.proto = packet.proto;
    // Field by field: as a whole, it would be put together on the stack.
    let claim = &mut scratch.claim;
    claim.search = Search::new(low, high, 0);
    claim.pool = number;
    (claim.first, claim.count) = (first, count);
    claim.own = pool::own_address(secret, &F::mapped(&packet.source), first, count);
    (claim.others, claim.nth, claim.step) = (0, 0, 0);
    (claim.low, claim.high) = (low, high);
    claim.ports = u32::from(high - low) + 1;
    // SAFETY: the helper has no arguments.
    claim.random = unsafe { bpf_get_prandom_u32() };
    claim.secret = secret;
    claim.closing = context.config.timeouts.tcp_closing;
    claim.client.hash = pool::client(&F::mapped(&packet.source), secret);
    claim.client_sum = F::sum(&packet.source);
    claim.pseudo_header = pseudo_header(packet);
    (claim.chosen, claim.of_host, claim.known) = (0, 0, 0);
    // A mapping is for no server.
    claim.limit = if F::is_zero(&scratch.outside.source) { Limit::default() } else { pool.limit };
    (claim.sessions, claim.refused) = (0, 0);
    claim.result = EEXIST;
    let mut held = context.frame.context();
    // SAFETY: the callback has the signature that the helper calls, and `held` outlives the call.
    unsafe {
        bpf_loop(MAX_STEPS, attempt::<F> as *mut c_void, (&raw mut held).cast(), 0);
    }
    // SAFETY: as above; the callback is through.
    let scratch = unsafe { &mut *place };
    match scratch.claim.result {
        0 => Ok(()),
        EEXIST => {
            let reason = refuse(&scratch.claim);
            // A mapping is not closed by any of its connections.
            if packet.proto == PROTO_TCP
                && !F::is_zero(&scratch.outside.source)
                && reason != DropReason::DestinationRate
                && enter_own(scratch)
            {
                cut_oldest::<F>(SAMPLES);
            }
            Err(reason)
        }
        error => {
            leave(scratch);
            Err(session::refusal(error))
        }
    }
}

/// Cuts some closed sessions of the address and destination of a session that was opened, if most of what there may
/// be is there: then those that come need not be refused. Changes the outside tuple.
#[inline(always)]
pub(crate) fn make_room<F: Datapath>(packet: &Packet<F>) {
    let Some(place) = F::scratch() else { return };
    // SAFETY: the scratch element is this CPU's own, and the reference ends before the callback runs.
    let claim = unsafe { &mut (*place).claim };
    let most =
        if claim.limit.concurrent == 0 { claim.ports } else { claim.ports.min(claim.limit.concurrent) };
    if packet.proto != PROTO_TCP || claim.sessions < most - most / 4 {
        return;
    }
    cut_oldest::<F>(SAMPLES_AHEAD);
}

/// Cuts the closed sessions that have rested longest, of so many random ports of the address in hand. A function of its
/// own, for its caller's stack. Returns nothing of interest.
#[inline(never)]
fn cut_oldest<F: Datapath>(samples: u32) -> u64 {
    let Some(place) = F::scratch() else { return 0 };
    // SAFETY: the scratch element is this CPU's own, and nobody holds a reference while the callbacks run, which have
    // the signature that the helper calls.
    unsafe {
        ((*place).claim.step, (*place).oldest) = (0, 0);
        bpf_loop(samples, measure_closed::<F> as *mut c_void, core::ptr::null_mut(), 0);
        (*place).claim.step = 0;
        bpf_loop(samples, cut_closed::<F> as *mut c_void, core::ptr::null_mut(), 0);
    }
    0
}

/// 1 where the transport checksum covers the addresses.
#[inline(always)]
fn pseudo_header<F: Datapath>(packet: &Packet<F>) -> u32 {
    u32::from(F::IS_V4 && matches!(packet.transport_layer.flow, Flow::EchoRequest)) ^ 1
}

/// Gives back what was claimed.
#[inline(always)]
pub(crate) fn give_back<F: Datapath>(scratch: &mut session::Scratch<F>) {
    let _ = F::remove_session(&scratch.outside);
    if let Some(ports) = ports::find(&scratch.towards) {
        ports::give_back(ports, u16::from_be_bytes(scratch.outside.destination_port));
    }
    leave(scratch);
}

/// Leaves the address in hand, where the session was counted.
#[inline(always)]
fn leave<F: Datapath>(scratch: &mut session::Scratch<F>) {
    if scratch.claim.sessions != 0 {
        scratch.claim.sessions = 0;
        limit::take_back(&scratch.towards, &scratch.claim.limit, &scratch.claim.client);
    }
}

/// State of the search for an address and a port. It is kept in the scratch element with the tuples: what comes
/// back from a map is any value to the verifier, which so looks at one step for all.
#[repr(C)]
pub(crate) struct Claim {
    search: Search,
    /// Element of `POOLS`.
    pool: u32,
    /// First of the pool's members.
    first: u32,
    /// Number of the pool's members.
    count: u32,
    /// Which of them is the client's own.
    own: u32,
    /// With which of them the others begin.
    others: u32,
    /// Which address is in hand: 0 the client's own, then the others.
    nth: u32,
    /// Ports looked at on this address.
    step: u32,
    low: u16,
    high: u16,
    ports: u32,
    random: u32,
    secret: u32,
    /// Idle time of closed connections, ticks.
    closing: u32,
    pub(crate) client: limit::Client,
    pub(crate) client_sum: u32,
    /// 1 where the transport checksum covers the addresses.
    pseudo_header: u32,
    /// The element of `POOL_ADDRESSES` in hand.
    pub(crate) chosen: u32,
    /// Not 0 where the address in hand is the host's too.
    pub(crate) of_host: u32,
    /// 1 where `PORTS` knows which ports of the address are used.
    known: u32,
    /// What an address may open towards the destination.
    limit: Limit,
    /// Sessions of the address in hand to the destination, with this one; 0 before it is counted.
    sessions: u32,
    /// What [`limit::admit`] said of the addresses that were passed over.
    refused: u32,
    /// 0, or the error of the last insertion.
    result: i32,
}

impl Claim {
    /// What [`insert`] has to know where the address, the element `chosen`, and the port are known already.
    #[inline(always)]
    pub(crate) fn adopt<F: Datapath>(
        &mut self,
        packet: &Packet<F>,
        (client, secret): (&F::Address, u32),
        chosen: u32,
    ) {
        self.client.hash = pool::client(&F::mapped(client), secret);
        self.client_sum = F::sum(client);
        self.pseudo_header = pseudo_header(packet);
        self.chosen = chosen;
    }

    /// Leaves the address in hand.
    #[inline(always)]
    fn next_address(&mut self) -> i64 {
        self.nth += 1;
        self.step = 0;
        0
    }

    /// A random port of the pool; one random number gives all of a search, as the steps of a Weyl sequence.
    #[inline(always)]
    fn random_port(&self) -> u16 {
        let random = self.random.wrapping_add((self.nth + self.step).wrapping_mul(0x9e37_79b1)) >> 8;
        self.low.wrapping_add(remainder(random, self.ports) as u16)
    }

    /// Change of the transport checksum when address and port change.
    #[inline(always)]
    pub(crate) fn transport_delta(&self, old: u32, old_port: [u8; 2], new: u32, new_port: [u8; 2]) -> u16 {
        let ports = checksum::delta(u16::from_be_bytes(old_port).into(), u16::from_be_bytes(new_port).into());
        if self.pseudo_header == 0 { ports } else { checksum::combine(ports, checksum::delta(old, new)) }
    }
}

/// One port, or one step on the way to it; `bpf_loop` ends at the first 1.
unsafe extern "C" fn attempt<F: Datapath>(_: u32, held: *const *mut xdp_md) -> i64 {
    let Some(scratch) = F::scratch() else { return 1 };
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    if scratch.claim.step == 0 {
        if scratch.claim.nth > scratch.claim.count {
            return 1;
        }
        if !enter(scratch) {
            return scratch.claim.next_address();
        }
    }
    let session::Scratch { inside, outside, towards, claim, .. } = &mut *scratch;
    if claim.step == RANDOM_TRIES + 1 && claim.known == 0 {
        claim.known = ports::make(towards, ports::threshold(claim.ports));
    }
    let known = if claim.known == 0 { None } else { ports::find(towards) };
    let port = if claim.step == 0 {
        u16::from_be_bytes(inside.source_port)
    } else if let Some(ports) = known {
        match ports::step(ports, &mut claim.search) {
            Step::Port(port) => port,
            Step::Next => return 0,
            Step::End => {
                leave(scratch);
                return scratch.claim.next_address();
            }
        }
    } else if claim.step <= RANDOM_TRIES {
        claim.random_port()
    } else {
        // There is no room in `PORTS`, or what the destination has there is on its way out.
        let scanned = claim.step - RANDOM_TRIES - 1;
        if scanned >= claim.ports {
            leave(scratch);
            return scratch.claim.next_address();
        }
        claim.low.wrapping_add(remainder(claim.random.wrapping_add(scanned), claim.ports) as u16)
    };
    claim.step += 1;
    if port < claim.low || port > claim.high {
        return 0;
    }
    if let Some(ports) = known
        && !ports::take(ports, port)
    {
        return 0;
    }
    outside.destination_port = port.to_be_bytes();
    // Inserting where the key exists takes the bucket's lock for nothing.
    if F::session(outside).is_some() {
        return 0;
    }
    let error = if claim.of_host != 0 && is_of_host(held, outside) { TAKEN_BY_HOST } else { insert(scratch) };
    // The bit of a port that the table does not have is cleared: nobody else would.
    if error != 0
        && error != EEXIST
        && let Some(ports) = known
    {
        ports::give_back(ports, port);
    }
    if error == TAKEN_BY_HOST || error == ENOSPC {
        return 0;
    }
    scratch.claim.result = error;
    i64::from(error != EEXIST)
}

/// Whether the host itself uses the port of the outside tuple.
#[inline(always)]
fn is_of_host<F: Datapath>(held: *const *mut xdp_md, outside: &Tuple<F>) -> bool {
    // SAFETY: `open` passes the place of the program's context.
    socket::has(unsafe { *held }, outside) != 0
}

/// Goes to the next address; `false` where it is not one to use.
#[inline(always)]
fn enter<F: Datapath>(scratch: &mut session::Scratch<F>) -> bool {
    if scratch.claim.nth == 1 {
        scratch.claim.others = emptier_of_two(scratch);
    }
    let session::Scratch { outside, towards, claim, .. } = scratch;
    let at = if claim.nth == 0 { claim.own } else { remainder(claim.others + claim.nth - 1, claim.count) };
    if claim.nth != 0 && at == claim.own {
        return false;
    }
    let Some((element, address)) = pool::member(claim.first + at) else { return false };
    // The records of a pool are not written at once: a member of another pool may stand in its place.
    if address.flags & (IN_USE | DRAINED) != IN_USE
        || address.pool != claim.pool
        || !F::is_member(&address.address)
    {
        return false;
    }
    claim.chosen = element;
    claim.of_host = address.flags & OF_HOST;
    claim.search = Search::new(claim.low, claim.high, claim.random.wrapping_mul(claim.nth | 1));
    towards.address = address.address;
    outside.destination = F::unmapped(&address.address);
    let said = limit::admit(towards, &claim.limit, &mut claim.client);
    if said & limit::REFUSED != 0 {
        claim.refused |= said;
        return false;
    }
    claim.sessions = said;
    let threshold = ports::threshold(claim.ports);
    claim.known = if said > threshold { ports::make(towards, threshold) } else { 0 };
    true
}

/// The member of the pool with fewer sessions to this destination, of two random ones.
///
/// Two choices come close to the best of all (Mitzenmacher, 2001), and the counts are there already. What runs
/// out is ports towards a destination, so its sessions are the load that matters.
#[inline(always)]
fn emptier_of_two<F: Datapath>(scratch: &mut session::Scratch<F>) -> u32 {
    let Claim { random, count, .. } = scratch.claim;
    let (first, second) = (remainder(random >> 16, count), remainder(random & 0xffff, count));
    if load(scratch, first) <= load(scratch, second) { first } else { second }
}

/// The number of sessions to this destination on a member of the pool.
#[inline(always)]
fn load<F: Datapath>(scratch: &mut session::Scratch<F>, at: u32) -> u32 {
    let Some((_, address)) = pool::member(scratch.claim.first + at) else { return u32::MAX };
    if address.flags & DRAINED != 0 {
        return u32::MAX;
    }
    scratch.towards.address = address.address;
    limit::sessions(&scratch.towards)
}

/// Claims the port of the outside tuple; 0, or the error of the insertion.
#[inline(always)]
pub(crate) fn insert<F: Datapath>(scratch: &mut session::Scratch<F>) -> i32 {
    let session::Scratch { inside, outside, outside_session: answer, claim, .. } = scratch;
    let pool_sum = F::sum(&outside.destination);
    let (port, client_port) = (outside.destination_port, inside.source_port);
    answer.pool_address = claim.chosen as u16;
    answer.flags = answer.flags & !SHARED | claim.client.shared as u8;
    answer.network_delta = checksum::combine(checksum::delta(pool_sum, claim.client_sum), forward::TTL_DELTA);
    answer.transport_delta = claim.transport_delta(pool_sum, port, claim.client_sum, client_port);
    match F::insert_session(outside, answer) {
        Ok(()) => 0,
        Err(error) => error,
    }
}

/// Goes back to the client's own address; `false` where it is not one to use.
#[inline(always)]
fn enter_own<F: Datapath>(scratch: &mut session::Scratch<F>) -> bool {
    let session::Scratch { outside, claim, .. } = scratch;
    let Some((_, address)) = pool::member(claim.first + claim.own) else { return false };
    outside.destination = F::unmapped(&address.address);
    claim.step = 0;
    F::is_member(&address.address)
}

/// Looks at a random port of an address that has no free one, for how long a closed connection has been idle there.
unsafe extern "C" fn measure_closed<F: Datapath>(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = F::scratch() else { return 1 };
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    let (_, idle) = closed(scratch);
    scratch.oldest = scratch.oldest.max(idle);
    0
}

/// Looks at the same port again, and cuts the session there if its connection has been closed for about as long as
/// the one that has been longest, of those looked at. The flow that found no port is refused all the same: what is cut
/// rests until the sweep has removed it, and a client repeats its SYN after a second.
unsafe extern "C" fn cut_closed<F: Datapath>(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = F::scratch() else { return 1 };
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    let (owner, idle) = closed(scratch);
    let oldest = scratch.oldest;
    if let Some(owner) = owner
        && idle >= oldest - oldest / ABOUT
    {
        // SAFETY: the pointer is to the map value of the tuple in `cut`.
        unsafe { session::cut_owner(&mut scratch.cut, owner) };
    }
    0
}

/// The session of the next random port, if its connection is closed and the port may serve the SYN in hand, and for
/// how long it has been idle, ticks. Its tuple is in `cut` then.
#[inline(always)]
fn closed<F: Datapath>(scratch: &mut session::Scratch<F>) -> (Option<*mut Session<F>>, u32) {
    let session::Scratch { outside, outside_session, claim, cut, sequence, .. } = scratch;
    claim.step += 1;
    outside.destination_port = claim.random_port().to_be_bytes();
    let Some(answer) = F::session(outside) else { return (None, 0) };
    // SAFETY: the pointer is to a map value.
    let answer = unsafe { &*answer };
    // The session that found no port would have begun now.
    let now = outside_session.last_seen;
    session::reusable(outside, answer, now, (claim.closing, *sequence), cut)
}

/// Counts a search that found nothing, and says why. Where some addresses have no port and others are at their limit,
/// it is the limit: it passes.
#[inline(always)]
fn refuse(claim: &Claim) -> DropReason {
    let reason = limit::reason(claim.refused).unwrap_or(DropReason::PoolExhausted);
    if let Some((element, _)) = pool::member(claim.first + claim.own) {
        refused(element, reason);
    }
    reason
}

/// Counts a flow that was refused for that reason.
#[inline(always)]
pub(crate) fn refused(element: u32, reason: DropReason) {
    count::pool(element, |pool| {
        pool.attempts += 1;
        if matches!(reason, DropReason::DestinationRate) {
            pool.over_rate += 1;
        } else if matches!(reason, DropReason::DestinationConcurrent) {
            pool.over_concurrent += 1;
        } else {
            pool.allocation_errors += 1;
        }
    });
}
