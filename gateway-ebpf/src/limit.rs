//! Map `DESTINATIONS`: what each address of a pool has open towards each destination, and how fast it opens more.
//! A session is counted before its outside element is entered, and until that is removed.
//!
//! # How clients share a destination that is at its limit
//!
//! `SHARES` has what each client has of each destination: the sessions, which are counted as those of the bucket are, and
//! what it has opened of late. While nobody is refused who has little, clients are served as they come. Once one is, the
//! destination is contended for half a minute (`CONTENTIONS`), and who has more leaves the last of what there is to those
//! who have less, by the thresholds of [`gateway_common::share`]. Who is alone is never held back.
//!
//! Both maps are arrays whose elements are found by hashes, so that clients and destinations without end take no memory.
//! Where hashes meet, a client is taken to have what another has, too, or a destination to be contended: while clients are
//! refused there anyway, some stand back that need not. No limit depends on these maps.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    limit::Limit,
    ports::Destination,
    route::Target,
    session::Session,
    share::{self, CONTENTION, MAX_CONTENTIONS, MAX_SHARES, Share},
};

use crate::{
    atomic,
    bucket::{self, Buckets, NO_ROOM, OVER_CONCURRENT, OVER_RATE},
    claim,
    family::Datapath,
    path::Code,
    pool,
    session::Subject,
};

pub(crate) use crate::bucket::REFUSED;

#[btf_map]
static DESTINATIONS: Buckets<Destination> = HashMap::new();

#[btf_map]
static SHARES: Array<Share, { MAX_SHARES as usize }> = Array::new();

/// The last round in which clients have to share.
#[btf_map]
static CONTENTIONS: Array<u32, { MAX_CONTENTIONS as usize }> = Array::new();

/// Why a connection was refused, after what all of [`admit`] have said together.
#[inline(always)]
pub(crate) const fn reason(refused: u32) -> Option<DropReason> {
    if refused & OVER_RATE != 0 {
        Some(DropReason::DestinationRate)
    } else if refused & OVER_CONCURRENT != 0 {
        Some(DropReason::DestinationConcurrent)
    } else if refused & NO_ROOM != 0 {
        Some(DropReason::SessionTableFull)
    } else {
        None
    }
}

/// Who wants to open something, part of the scratch element.
#[repr(C)]
pub(crate) struct Client {
    /// [`Destination::tag`] of what [`admit`] was last asked for: it is long to compute.
    tag: u64,
    /// See [`crate::pool::client`].
    pub(crate) hash: u32,
}

impl Client {
    #[inline(always)]
    pub(crate) const fn new(hash: u32) -> Self {
        Self { tag: 0, hash }
    }
}

/// See [`bucket::admit`].
#[inline(always)]
pub(crate) fn admit(destination: &Destination, limit: &Limit, client: &mut Client) -> u32 {
    let refused = stand_back(destination, limit, client);
    let said = if refused == 0 { enter(destination, limit, client) } else { refused };
    note(destination, limit, client, said);
    said
}

/// [`REFUSED`] and why, if the client leaves what there is to others. As the next two, a function of its own, for its
/// stack.
#[inline(never)]
fn stand_back(destination: &Destination, limit: &Limit, client: &mut Client) -> u32 {
    client.tag = destination.tag();
    let now = bucket::now();
    let round = share::round(now);
    let Some(contention) = CONTENTIONS.get_ptr(share::contention(client.tag)) else { return 0 };
    // SAFETY: the pointer is to a map value, which other CPUs write.
    if !share::is_contended(unsafe { contention.read_volatile() }, round) {
        return 0;
    }
    let Some(share) = SHARES.get_ptr(share::share(client.tag, client.hash)) else { return 0 };
    // SAFETY: as above.
    let mine = unsafe { share.read_volatile() };
    let reason = bucket::refuse(&DESTINATIONS, destination, |sessions, full| {
        if limit.is_crowded_by(mine.sessions, sessions) {
            OVER_CONCURRENT
        } else if limit.is_drained_by(mine.opened(round), full, now) {
            OVER_RATE
        } else {
            0
        }
    });
    if reason == 0 { 0 } else { REFUSED | reason }
}

#[inline(never)]
fn enter(destination: &Destination, limit: &Limit, client: &Client) -> u32 {
    bucket::admit(&DESTINATIONS, destination, client.tag, limit)
}

/// Notes what has been `said` to a client. Returns nothing of interest.
#[inline(never)]
fn note(destination: &Destination, limit: &Limit, client: &Client, said: u32) -> u32 {
    let Some(share) = SHARES.get_ptr_mut(share::share(client.tag, client.hash)) else { return 0 };
    let round = share::round(bucket::now());
    // SAFETY: the pointers are to map values, which other CPUs write. Where two of them open something for the client
    // at once, one of the two is not noted as recent.
    unsafe {
        let mine = share.read_volatile();
        if said & REFUSED == 0 {
            atomic::add(&raw mut (*share).sessions, 1);
            (&raw mut (*share).recent).write_volatile(mine.after(round, limit));
        } else if said & NO_ROOM == 0
            && share::has_little(mine.sessions, sessions(destination))
            && let Some(contention) = CONTENTIONS.get_ptr_mut(share::contention(client.tag))
        {
            let until = round.wrapping_add(CONTENTION);
            if contention.read_volatile() != until {
                contention.write_volatile(until);
            }
        }
    }
    0
}

/// Takes a token for a connection that begins on the subject's session, which is counted already. The pool says what its
/// client is told where there is none. Who stands back does so for sessions, not for tokens that its own one takes.
#[inline(never)]
pub(crate) fn renew<F: Datapath>(subject: &mut Subject<F>, session: &Session<F>) -> Code {
    let element = u32::from(session.pool_address);
    let Some(number) = pool::number(element) else { return Code::OK };
    let (Some(pool), Some(scratch)) = (pool::get(number), F::scratch()) else { return Code::OK };
    // SAFETY: the scratch element is this CPU's own.
    let towards = unsafe { &mut (*scratch).towards };
    towards.address = F::mapped(&session.translated);
    towards.server = F::mapped(&subject.tuple.destination);
    towards.port = subject.tuple.destination_port;
    towards.proto = subject.tuple.proto;
    if bucket::renew(&DESTINATIONS, towards, &pool.limit) == 0 {
        return Code::OK;
    }
    claim::refused(element, DropReason::DestinationRate);
    // The route of a packet with a session is not looked for.
    (subject.route.target, subject.route.object) = (Target::Pool as u8, number);
    Code::drop(DropReason::DestinationRate)
}

/// Undoes [`renew`], directly after it. Returns nothing of interest.
#[inline(never)]
pub(crate) fn give_back<F: Datapath>(session: &Session<F>) -> u32 {
    let number = pool::number(u32::from(session.pool_address));
    if let (Some(pool), Some(scratch)) = (number.and_then(pool::get), F::scratch()) {
        // SAFETY: the scratch element is this CPU's own.
        bucket::give_back(&DESTINATIONS, unsafe { &(*scratch).towards }, pool.limit.interval);
    }
    0
}

/// See [`bucket::take_back`]. Returns nothing of interest.
#[inline(never)]
pub(crate) fn take_back(destination: &Destination, limit: &Limit, client: &Client) -> u32 {
    bucket::take_back(&DESTINATIONS, destination, limit.interval);
    unshare(client.tag, client.hash);
    0
}

/// See [`bucket::ended`].
#[inline(always)]
pub(crate) fn ended(destination: &Destination, client: u32) {
    bucket::ended(&DESTINATIONS, destination);
    unshare(destination.tag(), client);
}

/// Takes a session off what a client has.
#[inline(always)]
fn unshare(tag: u64, client: u32) {
    if let Some(share) = SHARES.get_ptr_mut(share::share(tag, client)) {
        // SAFETY: the pointer is to a map value.
        unsafe { atomic::add(&raw mut (*share).sessions, u32::MAX) };
    }
}

/// The number of sessions to a destination.
#[inline(always)]
pub(crate) fn sessions(destination: &Destination) -> u32 {
    bucket::sessions(&DESTINATIONS, destination)
}

/// See [`bucket::visit`].
#[inline(always)]
pub(crate) fn visit(destination: &Destination) {
    bucket::visit(&DESTINATIONS, destination, destination.tag());
}
