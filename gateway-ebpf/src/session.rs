//! Map `SESSIONS_V6`, and what both families' sessions have in common; [`crate::table`] has those of IPv4. How a session
//! lives is told in [`gateway_common::session`].

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuArray, Queue},
    macros::btf_map,
};
use gateway_common::{
    DropReason, Family, V4, V6,
    family::NextHop,
    parse::{NO_PORT, PROTO_TCP, PROTO_UDP, Packet},
    ports::Destination,
    quote::Quote,
    route::Route,
    session::{CUT, CUT_QUEUED, Cut, DEAD, MAX_CUTS, RETIRED, SIDE_INSIDE, Session, Tuple},
    tcp::{self, State},
};

use crate::{
    atomic, claim::Claim, family::Datapath, fragment::Note, path::InForce, route::Query, source::Taken,
    table::ENOSPC,
};

/// Update flag: fail where the key exists. The insertion of an outside tuple with it claims the port.
pub(crate) const NOEXIST: u64 = BPF_NOEXIST as u64;

/// An insertion failed because the key is there.
pub(crate) const EEXIST: i32 = -17;
const E2BIG: i32 = -7;
const ENOMEM: i32 = -12;

/// What any other failed insertion means.
#[inline(always)]
pub(crate) fn refusal(error: i32) -> DropReason {
    match error {
        E2BIG | ENOMEM | ENOSPC => DropReason::SessionTableFull,
        _ => DropReason::Internal,
    }
}

// The capacity is set by the loader. IPv6 takes memory as it goes, so that a gateway without IPv6 does not pay for it.
#[btf_map]
pub(crate) static SESSIONS_V6: HashMap<Tuple<V6>, Session<V6>, 2_097_152, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Sessions that were cut, for the sweep to remove.
#[btf_map]
pub(crate) static CUTS_V4: Queue<Cut<V4>, { MAX_CUTS as usize }> = Queue::new();

#[btf_map]
pub(crate) static CUTS_V6: Queue<Cut<V6>, { MAX_CUTS as usize }> = Queue::new();

/// Turns that the sweep has made.
#[btf_map]
static SWEEPS: Array<u32, 1> = Array::new();

/// Room to build a session in: two tuples and two values would fill half of the program's stack.
#[repr(C)]
pub(crate) struct Scratch<F: Family> {
    pub(crate) inside: Tuple<F>,
    pub(crate) outside: Tuple<F>,
    pub(crate) inside_session: Session<F>,
    pub(crate) outside_session: Session<F>,
    /// The pool's address and the destination of the outside tuple.
    pub(crate) towards: Destination,
    pub(crate) claim: Claim,
    /// What the client's limit counts for the session that is about to be opened; no charge outside of that.
    pub(crate) taken: Taken,
    /// A session that is cut.
    pub(crate) cut: Cut<F>,
    /// Sequence number of the SYN that wants a port, host byte order.
    pub(crate) sequence: u32,
    /// How long the closed connection has been idle whose port has rested longest, of those looked at, ticks.
    pub(crate) oldest: u32,
    /// Address and port that the pointer of a mapping shows.
    pub(crate) shown: F::Address,
    pub(crate) shown_port: [u8; 2],
}

#[btf_map]
pub(crate) static SCRATCH_V4: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static SCRATCH_V6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();

/// The packet that [`crate::path::decide`] looks at, and the key of its session.
///
/// Kept in a map for two reasons: the stack is small, and what comes back from a map is any value to the
/// verifier, so that it looks at the stages behind the parser once and not once for every shape of a header.
#[repr(C)]
pub(crate) struct Subject<F: Datapath> {
    pub(crate) packet: Packet<F>,
    pub(crate) tuple: Tuple<F>,
    /// What decides it.
    pub(crate) in_force: InForce,
    /// 1 where the tuple is that of a flow: the packet shows ports or a query identifier, or its first fragment has.
    pub(crate) shown: u8,
    /// For a fragment: what `FRAGMENTS` knows of its datagram, or gets to know.
    pub(crate) note: Note,
    /// For an ICMP error about a packet of a session: that packet.
    pub(crate) quote: Quote<F>,
    /// For the second half of a hairpin: the packet as its sender has sent it, and it is in the frame.
    pub(crate) sent: Packet<F>,
    /// And what it quotes there.
    pub(crate) quoted: Quote<F>,
    /// And what the first half was, [`crate::inward::BY_SESSION`] or [`crate::inward::BY_EIP`].
    pub(crate) half: u8,
    /// For a packet to an inside host without a session: what its table is asked.
    pub(crate) query: Query<F>,
    /// 1 where it has to be.
    pub(crate) asks: u8,
    /// For a packet without a session: the route that decides.
    pub(crate) route: Route,
    /// For a new session: the way back to the client.
    pub(crate) back: NextHop,
    /// For a new session, for an ICMP error and for an EIP: the way out.
    pub(crate) forth: NextHop,
    /// Where the packet is from inside, whom it is for: 0, [`TO_EIP`], [`TO_MAPPING`] or [`TO_POOL`].
    pub(crate) hairpin: u8,
    /// For a new session: 1 where the way back is only what the packet has shown.
    pub(crate) learned: u8,
    /// 1 where the packet's session was cut and is in the way of another one.
    pub(crate) cut: u8,
    /// 1 where the packet has a session of a proxy host.
    pub(crate) redirected: u8,
    /// Timestamp of a client's TCP segment, see [`crate::stamp`].
    pub(crate) stamp: u32,
    /// MTU of the way out, for the sender of a packet that is too large for it.
    pub(crate) mtu: u16,
}

/// [`Subject::hairpin`]: an EIP.
pub(crate) const TO_EIP: u8 = 1;
/// [`Subject::hairpin`]: an address of a pool with endpoint-independent mappings.
pub(crate) const TO_MAPPING: u8 = 2;
/// [`Subject::hairpin`]: an address of another pool, where only answers are for somebody.
pub(crate) const TO_POOL: u8 = 3;

#[btf_map]
pub(crate) static SUBJECT_V4: PerCpuArray<Subject<V4>, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static SUBJECT_V6: PerCpuArray<Subject<V6>, 1> = PerCpuArray::new();

/// Generation of a session that was saved from removal and must be confirmed by its next packet.
pub(crate) const STALE: u32 = 1;

/// Keeps the session of `tuple` from being removed while its generation is [`RETIRED`].
///
/// The inside element decides over life and death. Returns `false` where the session is beyond saving.
#[inline(always)]
pub(crate) fn revive<F: Datapath>(tuple: &Tuple<F>, session: &Session<F>) -> bool {
    let owner = if tuple.side == SIDE_INSIDE {
        core::ptr::from_ref(session).cast_mut()
    } else {
        match F::session(&tuple.pair(session)) {
            Some(owner) => owner,
            None => return false,
        }
    };
    // SAFETY: the pointer is to a map value; the field is a `u32`.
    unsafe {
        let generation = &raw mut (*owner).generation;
        match generation.read_volatile() {
            RETIRED => atomic::replace(generation, RETIRED, STALE),
            DEAD => false,
            _ => true,
        }
    }
}

/// Whether the session of `tuple` is neither idle nor cut, so that its elements stay what they are for a while.
#[inline(always)]
pub(crate) fn is_live<F: Datapath>(tuple: &Tuple<F>, session: &Session<F>) -> bool {
    let owner = if tuple.side == SIDE_INSIDE {
        core::ptr::from_ref(session).cast_mut()
    } else {
        match F::session(&tuple.pair(session)) {
            Some(owner) => owner,
            None => return false,
        }
    };
    // SAFETY: the pointer is to a map value; the field is a `u32`.
    let generation = unsafe { (&raw const (*owner).generation).read_volatile() };
    !matches!(generation, RETIRED | DEAD)
}

/// The server's port of a session for route selectors, see [`Packet::server_port`].
#[inline(always)]
pub(crate) fn server_port<F: Datapath>(tuple: &Tuple<F>) -> u32 {
    let port = if tuple.side == SIDE_INSIDE { tuple.destination_port } else { tuple.source_port };
    if matches!(tuple.proto, PROTO_TCP | PROTO_UDP) { u32::from(u16::from_be_bytes(port)) } else { NO_PORT }
}

/// Notes the interface that the packets of an inside element come from.
#[inline(always)]
pub(crate) fn set_slot<F: Datapath>(session: &mut Session<F>, slot: u32) {
    if session.slot() == slot {
        return;
    }
    // SAFETY: the reference is to a map value; the word is a `u32`.
    unsafe {
        let word = (&raw mut *session).cast::<u32>().add(Session::<F>::PEER);
        let observed = word.read_volatile();
        // Where it fails, the next packet notes it.
        atomic::replace(word, observed, Session::<F>::with_slot(observed, slot as u16));
    }
}

/// Marks a session as confirmed by `generation`. Returns `false` where it is being deleted.
#[inline(always)]
pub(crate) fn confirm<F: Datapath>(session: &mut Session<F>, generation: u32) -> bool {
    let word = &raw mut session.generation;
    // SAFETY: the pointer is to a map value.
    unsafe {
        let observed = word.read_volatile();
        if observed == DEAD {
            return false;
        }
        // Where it fails, another CPU has confirmed the session at the same time, or the sweep has retired it.
        observed == generation || atomic::replace(word, observed, generation) || word.read_volatile() != DEAD
    }
}

/// Cuts the session that `tuple` belongs to: no packet uses it again, and the sweep removes it.
///
/// Packets never remove elements themselves. Another CPU may be reading them at this moment, and a removed
/// element is given to another flow at once.
#[inline(always)]
pub(crate) fn cut<F: Datapath>(tuple: &Tuple<F>, session: &Session<F>) {
    let Some(scratch) = F::scratch() else { return };
    // SAFETY: the scratch element is this CPU's own.
    let cut = unsafe { &mut (*scratch).cut };
    cut.tuple = if tuple.side == SIDE_INSIDE { *tuple } else { tuple.pair(session) };
    if let Some(owner) = F::session(&cut.tuple) {
        // SAFETY: the pointer is to the map value of the tuple.
        unsafe { cut_owner(cut, owner) };
    }
}

/// The inside element of an outside tuple's session whose connection is closed and rests, so that its port may serve a
/// SYN with `sequence`, and for how long it has been idle. `closing` is the idle time of closed connections, `cut` is
/// room in the scratch element, which gets the inside tuple.
#[inline(always)]
pub(crate) fn reusable<F: Datapath>(
    outside: &Tuple<F>,
    answer: &Session<F>,
    now: u32,
    (closing, sequence): (u32, u32),
    cut: &mut Cut<F>,
) -> (Option<*mut Session<F>>, u32) {
    if !State::from_number(answer.state).is_closed() {
        return (None, 0);
    }
    cut.tuple = outside.pair(answer);
    let Some(owner) = F::session(&cut.tuple) else { return (None, 0) };
    // SAFETY: the pointer is to the map value of the tuple; plain integers are read.
    let (state, mark, last_seen) =
        unsafe { (State::from_number((*owner).state), u32::from_be((*owner).mark), (*owner).last_seen) };
    let idle = now.saturating_sub(last_seen.max(answer.last_seen));
    if state.is_reusable(idle, closing, tcp::is_ahead(sequence, mark)) {
        (Some(owner), idle)
    } else {
        (None, 0)
    }
}

/// Cuts the session of the tuple in `cut`.
///
/// # Safety
/// `owner` is to the map value of that tuple.
#[inline(always)]
pub(crate) unsafe fn cut_owner<F: Datapath>(cut: &mut Cut<F>, owner: *mut Session<F>) {
    // SAFETY: the caller vouches for the pointer; the fields are plain integers.
    unsafe {
        let generation = &raw mut (*owner).generation;
        let observed = generation.read_volatile();
        if observed == DEAD || !atomic::replace(generation, observed, DEAD) {
            return;
        }
        // Before it is in the queue: the sweep looks for the mark.
        (&raw mut (*owner).flags).write_volatile(CUT_QUEUED);
        cut.sweeps = sweeps();
        let cut: &Cut<F> = cut;
        if F::cuts().push(cut, 0).is_err() {
            (&raw mut (*owner).flags).write_volatile(CUT);
        }
    }
}

/// Begins a turn of the sweep.
#[inline(always)]
pub(crate) fn next_sweep() {
    if let Some(count) = SWEEPS.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map value that only the sweep writes.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}

/// Turns that the sweep has begun.
#[inline(always)]
pub(crate) fn sweeps() -> u32 {
    // SAFETY: the pointer is to a map value.
    SWEEPS.get_ptr(0).map_or(0, |count| unsafe { count.read_volatile() })
}
