//! Map `DESTINATIONS`: what each address of a pool has open towards each destination, and how fast it opens more.
//! A session is counted before its outside element is entered, and until that is removed.
//!
//! # How clients share a destination that is at its limit
//!
//! Where much of what there may be is taken, `SHARES` has what each client has of it: the sessions that began since
//! ([`SHARED`] marks them), and what it has opened of late. While nobody is refused who has little, clients are served as
//! they come. Once one is, the destination is contended for half a minute (`CONTENTIONS`), and who has more leaves the last
//! of what there is to those who have less, by the thresholds of [`gateway_common::share`]. Elsewhere, a new connection
//! costs its bucket and nothing else.
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
    mapping::SHARED,
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

/// Who wants to open something, part of the scratch element. All but the hash is what [`admit`] has said last.
#[repr(C)]
pub(crate) struct Client {
    /// [`Destination::tag`]: it is long to compute.
    tag: u64,
    /// When it was.
    now: u64,
    /// See [`crate::pool::client`].
    pub(crate) hash: u32,
    /// [`SHARED`] where it is noted what the client has, else 0.
    pub(crate) shared: u32,
}

/// See [`bucket::admit`].
#[inline(always)]
pub(crate) fn admit(destination: &Destination, limit: &Limit, client: &mut Client) -> u32 {
    let said = bucket::made(|| enter(destination, limit, client), || make(destination));
    if client.shared != 0 {
        note(destination, limit, client, said);
    }
    said
}

/// As the next two, a function of its own, for its stack.
#[inline(never)]
fn enter(destination: &Destination, limit: &Limit, client: &mut Client) -> u32 {
    (client.tag, client.now, client.shared) = (destination.tag(), bucket::now(), 0);
    let (tag, now) = (client.tag, client.now);
    bucket::admit(&DESTINATIONS, destination, tag, (limit, now), |sessions, full| {
        if limit.is_shared(sessions, full, now) {
            client.shared = SHARED.into();
            stand_back(limit, client, sessions, full)
        } else {
            0
        }
    })
}

#[inline(never)]
fn make(destination: &Destination) -> u32 {
    bucket::make(&DESTINATIONS, destination, destination.tag(), bucket::now())
}

/// Why the client leaves what there is to others; 0: it does not.
#[inline(never)]
fn stand_back(limit: &Limit, client: &Client, sessions: u32, full: u64) -> u32 {
    let round = share::round(client.now);
    let Some(contention) = CONTENTIONS.get_ptr(share::contention(client.tag)) else { return 0 };
    // SAFETY: the pointer is to a map value, which other CPUs write.
    if !share::is_contended(unsafe { contention.read_volatile() }, round) {
        return 0;
    }
    let Some(share) = SHARES.get_ptr(share::share(client.tag, client.hash)) else { return 0 };
    // SAFETY: as above.
    let mine = unsafe { share.read_volatile() };
    if limit.is_crowded_by(mine.sessions, sessions) {
        OVER_CONCURRENT
    } else if limit.is_drained_by(mine.opened(round), full, client.now) {
        OVER_RATE
    } else {
        0
    }
}

/// Notes what has been `said` to a client. Returns nothing of interest.
#[inline(never)]
fn note(destination: &Destination, limit: &Limit, client: &Client, said: u32) -> u32 {
    let Some(share) = SHARES.get_ptr_mut(share::share(client.tag, client.hash)) else { return 0 };
    let round = share::round(client.now);
    // SAFETY: the pointers are to map values, which other CPUs write. Where two of them open something for the client
    // at once, one of the two is not noted as recent.
    unsafe {
        let mine = share.read_volatile();
        if said & REFUSED == 0 {
            atomic::add(&raw mut (*share).sessions, 1);
            (&raw mut (*share).recent).write_volatile(mine.after(round, limit));
            return 0;
        }
        let sessions = sessions(destination);
        let has_little = said & OVER_CONCURRENT != 0 && Limit::has_few(mine.sessions, sessions)
            || said & OVER_RATE != 0 && limit.has_opened_few(&mine, round, sessions);
        if has_little && let Some(contention) = CONTENTIONS.get_ptr_mut(share::contention(client.tag)) {
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
    if client.shared != 0 {
        unshare(client.tag, client.hash);
    }
    0
}

/// See [`bucket::ended`]. `client` is the hash of the one whose session was [`SHARED`].
#[inline(always)]
pub(crate) fn ended(destination: &Destination, client: Option<u32>) {
    bucket::ended(&DESTINATIONS, destination);
    if let Some(client) = client {
        unshare(destination.tag(), client);
    }
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
