//! Maps `LIMITS`, `SOURCES` and `LIMIT_COUNTERS`: what clients may open, and have.
//!
//! A flow from inside is counted in the bucket of its client ([`admit`]) before anything else is claimed for it. The
//! count passes to the session with [`Session::charge`], or is given back ([`settle`]). The sweep takes it off with the
//! session. So each bucket has the number of sessions whose charge names it, whatever becomes of limits. When limits
//! change, the sweep looks at every session once and moves those that another bucket has to count ([`recharge`]).
//! Packets never change a charge.
//!
//! Not counted: what comes from hosts of proxies, because the flows that led there were; and what is opened from
//! outside, or strangers could use a client's limit up.

use aya_ebpf::{
    btf_maps::{HashMap, LpmTrie, PerCpuArray},
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    config::Policy,
    family::MappedAddress,
    limit::Limit,
    mapping::INWARD,
    session::{Session, Tuple},
    source::{Charge, LimitCounters, LimitKey, MAX_LIMITS, Source, SourceLimit},
};

use crate::{
    atomic,
    bucket::{self, Buckets, NO_ROOM, OVER_RATE, REFUSED},
    family::Datapath,
    path::{Code, Context},
    route::as_key,
    session::Subject,
};

/// Both halves, of which [`Policy::limits`] names one.
#[btf_map]
static LIMITS: LpmTrie<LimitKey, SourceLimit, { 2 * MAX_LIMITS as usize }> = LpmTrie::new();

#[btf_map]
static SOURCES: Buckets<Source> = HashMap::new();

#[btf_map]
static LIMIT_COUNTERS: PerCpuArray<LimitCounters, { MAX_LIMITS as usize + 1 }> = PerCpuArray::new();

/// Attempts at a change that packets make at the same time.
const ATTEMPTS: u32 = 8;

/// What a packet has taken that is about to open a session: part of the scratch element. Whoever opens the session
/// takes it over ([`Taken::hand_over`]).
#[repr(C)]
pub(crate) struct Taken {
    source: Source,
    /// [`Limit::interval`] of the limit.
    interval: u32,
}

impl Taken {
    /// The charge of the session that was opened, which [`settle`] leaves alone from now on.
    #[inline(always)]
    pub(crate) fn hand_over(&mut self) -> Charge {
        let charge = Charge::from_number(self.source.charge as u16);
        self.source.charge = 0;
        charge
    }

    /// As [`Taken::hand_over`], before it is known whether the session is opened.
    #[inline(always)]
    pub(crate) const fn charge(&self) -> Charge {
        Charge::from_number(self.source.charge as u16)
    }
}

/// Counts the flow that the packet in the subject begins, if its client may open one. [`settle`] has to follow.
///
/// A function of its own, for its stack.
#[inline(never)]
pub(crate) fn admit<F: Datapath>(context: &Context<'_>, subject: &Subject<F>) -> Code {
    let policy = context.policy;
    if policy.limits() == 0 || subject.tuple.origin != 0 {
        return Code::OK;
    }
    let Some(scratch) = F::scratch() else { return Code::drop(DropReason::Internal) };
    let client = F::mapped(&subject.packet.source);
    let Some(found) = find(policy, &client, F::IS_V4) else { return Code::OK };
    let charge = Charge::from_number(found.charge as u16);
    // SAFETY: the scratch element is this CPU's own.
    let taken = unsafe { &mut (*scratch).taken };
    taken.source = Source::of(charge, client);
    taken.interval = found.limit.interval;
    let said = enter(&taken.source, &found.limit);
    if said & REFUSED == 0 {
        count(charge, |counters| counters.admitted += 1);
        return Code::OK;
    }
    taken.source.charge = 0;
    Code::drop(if said & NO_ROOM != 0 {
        DropReason::SessionTableFull
    } else if said & OVER_RATE != 0 {
        count(charge, |counters| counters.over_rate += 1);
        DropReason::SourceRate
    } else {
        count(charge, |counters| counters.over_concurrent += 1);
        DropReason::SourceConcurrent
    })
}

/// See [`bucket::made`].
#[inline(always)]
fn enter(source: &Source, limit: &Limit) -> u32 {
    bucket::made(|| try_enter(source, limit), || bucket::make(&SOURCES, source, source.tag(), bucket::now()))
}

/// See [`bucket::admit`]. A function of its own, for its caller's stack.
#[inline(never)]
fn try_enter(source: &Source, limit: &Limit) -> u32 {
    bucket::admit(&SOURCES, source, source.tag(), (limit, bucket::now()), |_, _| 0)
}

/// Takes a token for a connection that begins on a session, which is counted already.
#[inline(never)]
pub(crate) fn renew<F: Datapath>(context: &Context<'_>, tuple: &Tuple<F>, session: &Session<F>) -> Code {
    let (policy, charge) = (context.policy, session.charge());
    if policy.limits() == 0 || !charge.is_some() {
        return Code::OK;
    }
    let client = F::mapped(&tuple.source);
    // Where it is another limit's by now, the sweep is about to count it there.
    let Some(found) = find(policy, &client, F::IS_V4).filter(|found| found.charge as u16 == charge.number())
    else {
        return Code::OK;
    };
    if bucket::renew(&SOURCES, &Source::of(charge, client), &found.limit) == 0 {
        count(charge, |counters| counters.admitted += 1);
        return Code::OK;
    }
    count(charge, |counters| counters.over_rate += 1);
    Code::drop(DropReason::SourceRate)
}

/// Gives back what [`admit`] has taken, unless a session has it. Returns nothing of interest.
#[inline(never)]
pub(crate) fn settle<F: Datapath>() -> u64 {
    let Some(scratch) = F::scratch() else { return 0 };
    // SAFETY: the scratch element is this CPU's own.
    let taken = unsafe { &mut (*scratch).taken };
    if taken.source.charge != 0 {
        count(taken.charge(), |counters| counters.admitted -= 1);
        bucket::take_back(&SOURCES, &taken.source, taken.interval);
        taken.source.charge = 0;
    }
    0
}

/// Takes note that a session of `client` is gone.
#[inline(always)]
pub(crate) fn ended(charge: Charge, client: MappedAddress) {
    if charge.is_some() {
        bucket::ended(&SOURCES, &Source::of(charge, client));
    }
}

/// Removes a bucket that nobody needs. For the sweep.
#[inline(always)]
pub(crate) fn visit(source: &Source) {
    bucket::visit(&SOURCES, source, source.tag());
}

/// Has the session of an inside tuple counted under the limits that are in force, whether they have room or not. For
/// the sweep, which alone changes charges and removes sessions.
#[inline(never)]
pub(crate) fn recharge<F: Datapath>(tuple: &Tuple<F>, session: &mut Session<F>) -> u64 {
    let Some(config) = crate::config::config() else { return 0 };
    let policy = config.policy;
    let client = F::mapped(&tuple.source);
    let wanted = if tuple.origin != 0 || policy.limits() == 0 || is_inward(tuple, session) {
        Charge::NONE
    } else {
        find(policy, &client, F::IS_V4).map_or(Charge::NONE, |found| Charge::from_number(found.charge as u16))
    };
    let present = session.charge();
    if wanted == present {
        return 0;
    }
    if wanted.is_some() {
        let source = Source::of(wanted, client);
        if enter(&source, &Limit::default()) & REFUSED != 0 {
            return 0;
        }
    }
    // SAFETY: the reference is to a map value; the word is a `u32`.
    let word = unsafe { (&raw mut *session).cast::<u32>().add(Session::<F>::PEER) };
    for _ in 0..ATTEMPTS {
        // SAFETY: as above.
        unsafe {
            let observed = word.read_volatile();
            if atomic::replace(word, observed, Session::<F>::with_charge(observed, wanted)) {
                ended(present, client);
                return 1;
            }
        }
    }
    ended(wanted, client);
    0
}

/// Whether a packet from outside has opened the session.
#[inline(always)]
fn is_inward<F: Datapath>(tuple: &Tuple<F>, session: &Session<F>) -> bool {
    // SAFETY: the pointer is to a map value; a plain integer is read.
    F::session(&tuple.pair(session)).is_some_and(|answer| unsafe { (*answer).flags } & INWARD != 0)
}

/// The limit of a client.
#[inline(always)]
fn find(policy: Policy, client: &MappedAddress, ipv4: bool) -> Option<&'static SourceLimit> {
    let [w0, w1, w2, w3] = *client;
    let key = [64 + 128, LimitKey::realm(policy.limits() - 1, ipv4), 0, w0, w1, w2, w3];
    // SAFETY: prefix length, realm, zero and four words.
    LIMITS.get(unsafe { as_key::<_, LimitKey>(&key) }).filter(|found| found.charge != 0)
}

/// Updates the counters of a limit.
#[inline(always)]
fn count(charge: Charge, update: impl FnOnce(&mut LimitCounters)) {
    if let Some(counters) = LIMIT_COUNTERS.get_ptr_mut(charge.limit()) {
        // SAFETY: the element is this CPU's own and programs do not preempt each other.
        update(unsafe { &mut *counters });
    }
}
