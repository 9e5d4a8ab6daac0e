//! Maps `POOLS`, `POOL_MEMBERS` and `POOL_ADDRESSES`; the opening of a session: address, port, two elements.
//!
//! The insertion of the outside tuple claims the port: it fails where another flow to the same destination
//! has it, on whatever CPU. The order of attempts is: on every address of the pool, beginning with the
//! client's own (paired pooling, RFC 4787 REQ-2), the client's own port and a few random ones (RFC 6056);
//! then every port of one address after the other, from a random one on.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, LruHashMap},
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
    macros::btf_map,
};
use gateway_common::{
    DropReason, Verdict, checksum,
    config::Config,
    family::{MappedAddress, is_same},
    parse::{Flow, Fragment, Packet, Transport},
    pool::{self, IN_USE, MAX_POOL_ADDRESSES, MAX_POOL_MEMBERS, MAX_POOLS, Pool, PoolAddress},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, TCP_ACK, TCP_SYN},
};

use crate::{
    config, count,
    family::Datapath,
    forward,
    path::{self, Code, Context, Outcome},
    rewrite,
    session::{self, Subject},
};

#[btf_map]
static POOLS: Array<Pool, { MAX_POOLS as usize }> = Array::new();

/// Lists of elements of `POOL_ADDRESSES`; a pool has a run of it.
#[btf_map]
static POOL_MEMBERS: Array<u32, { MAX_POOL_MEMBERS as usize }> = Array::new();

#[btf_map]
static POOL_ADDRESSES: Array<PoolAddress, { MAX_POOL_ADDRESSES as usize }> = Array::new();

/// A destination for which no port of a pool was free. Key of `FULL`.
#[repr(C)]
struct Full {
    destination: MappedAddress,
    pool: u32,
    port: u16,
    proto: u8,
    reserved: u8,
}

/// The tick in which a search from end to end found nothing: it is not repeated before the next one, or some
/// packets a second to a full destination would keep a CPU busy. A port that becomes free meanwhile waits for
/// the next tick, or for one of the random tries.
#[btf_map]
static FULL: LruHashMap<Full, u32, 4_096> = LruHashMap::new();

/// Attempts on each address before ports are tried in order: the client's own and random ones.
const FIRST_TRIES: u32 = 9;
/// Bound of all attempts of one packet: two addresses searched from end to end.
const MAX_TRIES: u32 = 131_072;

const EEXIST: i32 = -17;
const E2BIG: i32 = -7;
const ENOMEM: i32 = -12;

/// Whether the element `index` of `POOL_ADDRESSES` is `address`, in use.
#[inline(always)]
pub(crate) fn owns(index: u16, address: &MappedAddress) -> bool {
    POOL_ADDRESSES
        .get(u32::from(index))
        .is_some_and(|found| found.flags & IN_USE != 0 && is_same(&found.address, address))
}

/// Opens a session for a packet from the inside and sends the packet on its way.
#[inline(never)]
pub(crate) fn open<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    Code::from(try_open(context, subject))
}

#[inline(always)]
fn try_open<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Result<Outcome, DropReason> {
    let Subject { packet, route, back, forth: next_hop, .. } = subject;
    let Transport { source_port, destination_port, .. } = packet.transport_layer;
    forward::check(packet, next_hop)?;
    let pool = POOLS.get(route.object).ok_or(DropReason::Internal)?;
    let (count, low, high) = (pool.count, u32::from(pool.port_low), u32::from(pool.port_high));
    if count == 0 || low > high {
        return Err(DropReason::PoolExhausted);
    }
    let scratch = F::scratch().ok_or(DropReason::Internal)?;
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    let now = config::now(context.config);
    scratch.inside.source = packet.source;
    scratch.inside.destination = packet.destination;
    scratch.inside.source_port = source_port;
    scratch.inside.destination_port = destination_port;
    scratch.inside.proto = packet.proto;
    scratch.inside.side = SIDE_INSIDE;
    scratch.outside.source = packet.destination;
    scratch.outside.source_port = destination_port;
    scratch.outside.proto = packet.proto;
    scratch.outside.side = SIDE_OUTSIDE;

    let answer = &mut scratch.outside_session;
    // A way back that was only learned is asked for again with the first answer.
    answer.generation = if subject.learned == 0 { context.generation } else { session::STALE };
    answer.last_seen = now;
    answer.packets = 0;
    answer.bytes = 0;
    answer.next_hop = *back;
    answer.translated = packet.source;
    answer.translated_port = source_port;
    answer.tcp_seen = 0;
    answer.flags = 0;
    answer.counter = route.counter;
    answer.created = now;

    let mut claim = Claim {
        pool: route.object,
        first: pool.first,
        count,
        start: remainder(start::<F>(context.config, &packet.source), count),
        low,
        ports: high - low + 1,
        // SAFETY: the helper has no arguments.
        random: unsafe { bpf_get_prandom_u32() },
        client_sum: F::sum(&packet.source),
        pseudo_header: u32::from(F::IS_V4 && matches!(packet.transport_layer.flow, Flow::EchoRequest)) ^ 1,
        chosen: 0,
        result: EEXIST,
    };
    let full = Full {
        destination: F::mapped(&packet.destination),
        pool: route.object,
        port: u16::from_be_bytes(destination_port),
        proto: packet.proto,
        reserved: 0,
    };
    // SAFETY: the value is copied at once.
    let searched = unsafe { FULL.get(&full) }.copied() == Some(now);
    let scan = if searched { 0 } else { claim.ports * count };
    let tries = (count * FIRST_TRIES + scan).min(MAX_TRIES);
    // SAFETY: the callback has the signature that the helper calls, and `claim` outlives the call.
    unsafe {
        bpf_loop(tries, attempt::<F> as *mut c_void, (&raw mut claim).cast(), 0);
    }
    if claim.result != 0 {
        if claim.result == EEXIST && !searched {
            let _ = FULL.insert(&full, now, 0);
        }
        return Err(refuse(&claim));
    }

    let translated = scratch.outside.destination;
    let port = scratch.outside.destination_port;
    let forward = &mut scratch.inside_session;
    *forward = scratch.outside_session;
    forward.generation = context.generation;
    forward.ingress = context.ingress.slot as u16;
    forward.next_hop = *next_hop;
    forward.translated = translated;
    forward.translated_port = port;
    // The way out changes the checksums by the opposite of what the way back does, and one hop.
    let pool_sum = F::sum(&translated);
    forward.network_delta =
        checksum::combine(checksum::delta(claim.client_sum, pool_sum), forward::TTL_DELTA);
    forward.transport_delta = claim.transport_delta(claim.client_sum, source_port, pool_sum, port);
    forward.packets = 1;
    forward.bytes = u64::from(packet.length);
    if matches!(packet.transport_layer.flow, Flow::Tcp) {
        forward.tcp_seen = packet.transport_layer.detail;
    }
    if let Err(error) = F::insert_session(&scratch.inside, forward) {
        // Give the port back. Nobody can have used it: no packet has left with it.
        let _ = F::remove_session(&scratch.outside);
        if error == EEXIST
            && let Some(session) = F::session(&scratch.inside)
        {
            // Another CPU opened the session with an earlier packet of this flow.
            // SAFETY: the pointer is to a map value.
            return path::established_code(context, packet, unsafe { &mut *session }, SIDE_INSIDE).result();
        }
        return Err(reason(error));
    }
    count::session(packet.proto, |sessions| sessions.created += 1);
    count::pool(claim.chosen, |pool| {
        pool.attempts += 1;
        pool.opened += 1;
    });
    rewrite::translate(context.frame, packet, forward, SIDE_INSIDE)?;
    forward::readdress::<F>(context.frame, packet.network(), next_hop)?;
    Ok(Outcome { verdict: Verdict::Snat, slot: u32::from(next_hop.slot) })
}

/// Whether a packet may open a session.
#[inline(always)]
pub(crate) fn may_open<F: Datapath>(packet: &Packet<F>) -> Result<(), DropReason> {
    if !matches!(packet.fragment, Fragment::Whole) {
        return Err(DropReason::FragmentUnmatched);
    }
    match packet.transport_layer.flow {
        // Only a SYN opens a connection: what belongs to one that the gateway does not know is not let out
        // under an address its server has never seen.
        Flow::Tcp if packet.transport_layer.detail & (TCP_SYN | TCP_ACK) != TCP_SYN => {
            Err(DropReason::NoSession)
        }
        Flow::EchoReply | Flow::Icmp => Err(DropReason::NoSession),
        Flow::Other => Err(DropReason::UnsupportedProtocol),
        Flow::Tcp | Flow::Udp | Flow::EchoRequest => Ok(()),
    }
}

/// Where a client begins in the list of a pool's addresses: always at the same one.
#[inline(always)]
fn start<F: Datapath>(config: &Config, client: &F::Address) -> u32 {
    pool::spread(&F::mapped(client), config.secret)
}

/// `a % b` without the check for 0 that would panic; 0 there.
#[inline(always)]
fn remainder(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(0)
}

/// `a / b`, as [`remainder`].
#[inline(always)]
fn quotient(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(0)
}

/// State of the search for an address and a port; the tuples are in the scratch element.
#[repr(C)]
struct Claim {
    /// Element of `POOLS`.
    pool: u32,
    first: u32,
    count: u32,
    start: u32,
    low: u32,
    ports: u32,
    random: u32,
    client_sum: u32,
    /// 1 where the transport checksum covers the addresses.
    pseudo_header: u32,
    /// The element of `POOL_ADDRESSES` in hand.
    chosen: u32,
    /// 0, or the error of the last insertion.
    result: i32,
}

impl Claim {
    /// Which address and which port the attempt `index` tries; `None` is the client's own port.
    #[inline(always)]
    fn candidate(&self, index: u32) -> (u32, Option<u32>) {
        let scan = self.count * FIRST_TRIES;
        if index >= scan {
            let at = index - scan;
            return (
                quotient(at, self.ports),
                Some(self.low + remainder(self.random.wrapping_add(at), self.ports)),
            );
        }
        let attempt = index % FIRST_TRIES;
        let address = index / FIRST_TRIES;
        if attempt == 0 {
            return (address, None);
        }
        // One random number gives all the ports of a search: the steps of a Weyl sequence.
        let random = self.random.wrapping_add(index.wrapping_mul(0x9e37_79b1)) >> 8;
        (address, Some(self.low + remainder(random, self.ports)))
    }

    /// Change of the transport checksum when address and port change.
    #[inline(always)]
    fn transport_delta(&self, old: u32, old_port: [u8; 2], new: u32, new_port: [u8; 2]) -> u16 {
        let ports = checksum::delta(u16::from_be_bytes(old_port).into(), u16::from_be_bytes(new_port).into());
        if self.pseudo_header == 0 { ports } else { checksum::combine(ports, checksum::delta(old, new)) }
    }
}

/// One attempt; `bpf_loop` ends at the first 1.
unsafe extern "C" fn attempt<F: Datapath>(index: u32, claim: *mut c_void) -> i64 {
    // SAFETY: `open` passes its `Claim`.
    let claim = unsafe { &mut *claim.cast::<Claim>() };
    let Some(scratch) = F::scratch() else { return 1 };
    // SAFETY: the scratch element is this CPU's own.
    let scratch = unsafe { &mut *scratch };
    let (nth, port) = claim.candidate(index);
    let Some(member) = POOL_MEMBERS.get(claim.first + remainder(claim.start + nth, claim.count)) else {
        return 0;
    };
    let Some(address) = POOL_ADDRESSES.get(*member) else { return 0 };
    // The records of a pool are not written at once: a member of another pool may stand in its place.
    if address.flags & IN_USE == 0 || address.pool != claim.pool || !F::is_member(&address.address) {
        return 0;
    }
    let own = u32::from(u16::from_be_bytes(scratch.inside.source_port));
    let port = port.unwrap_or(own);
    if port < claim.low || port - claim.low >= claim.ports {
        return 0;
    }
    let port = (port as u16).to_be_bytes();
    let pool_address = F::unmapped(&address.address);
    scratch.outside.destination = pool_address;
    scratch.outside.destination_port = port;
    claim.chosen = *member;
    // Inserting where the key exists takes the bucket's lock for nothing.
    if F::session(&scratch.outside).is_some() {
        return 0;
    }
    let pool_sum = F::sum(&pool_address);
    let client_port = scratch.inside.source_port;
    let answer = &mut scratch.outside_session;
    answer.pool_address = *member as u16;
    answer.network_delta = checksum::combine(checksum::delta(pool_sum, claim.client_sum), forward::TTL_DELTA);
    answer.transport_delta = claim.transport_delta(pool_sum, port, claim.client_sum, client_port);
    claim.result = match F::insert_session(&scratch.outside, answer) {
        Ok(()) => 0,
        Err(error) => error,
    };
    i64::from(claim.result != EEXIST)
}

/// Counts a search that found nothing.
#[inline(always)]
fn refuse(claim: &Claim) -> DropReason {
    if claim.result != EEXIST {
        return reason(claim.result);
    }
    if let Some(member) = POOL_MEMBERS.get(claim.first + claim.start) {
        count::pool(*member, |pool| {
            pool.attempts += 1;
            pool.allocation_errors += 1;
        });
    }
    DropReason::PoolExhausted
}

/// What a failed insertion means.
#[inline(always)]
fn reason(error: i32) -> DropReason {
    match error {
        E2BIG | ENOMEM => DropReason::SessionTableFull,
        _ => DropReason::Internal,
    }
}
