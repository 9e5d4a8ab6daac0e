//! Maps `RECORDS`, `RECORDS_LOST`, `DENIED` and `LOG_NAMES`: what the access log is made of, see [`gateway_common::record`].
//! Maps `LIVES` and `LIVES_LOST`: the same of all sessions, for whoever watches, see [`gateway_common::watch`].
//!
//! A record is written where a session is opened and where it is removed. Nobody is woken for it: the daemon looks by
//! itself, several times a second. Who watches has functions beside those of the access log, and not within them: where
//! sessions are opened there is little stack left.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP},
    btf_maps::{HashMap, PerCpuArray, RingBuf},
    helpers::generated::bpf_ktime_get_ns,
    macros::btf_map,
};
use gateway_common::{
    DropReason, V4, V6,
    config::Config,
    counter::Counter,
    record::{
        DeniedKey, Ending, Kind, LOG_NAME_LEN, MAX_DENIED, MAX_LOG_NAMES, RECORDS_BYTES, Record, is_denial,
        period,
    },
    session::{SIDE_INSIDE, Session, Tuple},
    tcp::State,
    watch::LIVES_BYTES,
};

use crate::{
    atomic, config,
    family::Datapath,
    session::{EEXIST, NOEXIST, Scratch, Subject},
};

#[btf_map]
static RECORDS: RingBuf<Record, { RECORDS_BYTES as usize }> = RingBuf::new();

/// Records that found no room.
#[btf_map]
static RECORDS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map]
static LIVES: RingBuf<Record, { LIVES_BYTES as usize }> = RingBuf::new();

/// Records that found no room there.
#[btf_map]
static LIVES_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Packets that were dropped after the first of their kind.
#[btf_map]
static DENIED: HashMap<DeniedKey, Counter, { MAX_DENIED as usize }> = HashMap::new();

/// The daemon's alone.
#[btf_map]
static LOG_NAMES: HashMap<
    u32,
    [u8; LOG_NAME_LEN],
    { MAX_LOG_NAMES as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// Records that the session in the scratch element was opened, if its route says so, and tells whoever watches.
#[inline(always)]
pub(crate) fn opened<F: Datapath>() {
    // Whether anybody wants to know is asked there: many programs open sessions.
    if F::IS_V4 {
        record_opened_v4();
        show_opened_v4();
    } else {
        record_opened_v6();
        show_opened_v6();
    }
}

// Exported, so that the verifier looks at them once and not wherever a session is opened.

/// Records that the session in the scratch element of IPv4 was opened. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_opened_v4() -> u64 {
    write_opened::<V4>(Book::Log)
}

/// As [`record_opened_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_opened_v6() -> u64 {
    write_opened::<V6>(Book::Log)
}

/// Tells whoever watches that the session in the scratch element of IPv4 was opened. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn show_opened_v4() -> u64 {
    write_opened::<V4>(Book::Lives)
}

/// As [`show_opened_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn show_opened_v6() -> u64 {
    write_opened::<V6>(Book::Lives)
}

/// Where records are written.
#[derive(Clone, Copy)]
enum Book {
    /// `RECORDS`, those of sessions whose route says so.
    Log,
    /// `LIVES`, as long as somebody watches.
    Lives,
}

impl Book {
    /// Whether the session is to be written there.
    #[inline(always)]
    fn takes<F: Datapath>(self, session: &Session<F>, config: &Config, now: u32) -> bool {
        match self {
            Self::Log => session.log != 0,
            Self::Lives => {
                // SAFETY: the reference is valid; user space may write the field at any time.
                let policy = unsafe { (&raw const config.policy).read_volatile() };
                policy.are_sessions_watched() && now <= config.watched_until
            }
        }
    }
}

#[inline(always)]
fn write_opened<F: Datapath>(book: Book) -> u64 {
    let (Some(scratch), Some(config)) = (F::scratch(), config::config()) else { return 0 };
    // SAFETY: the scratch element is this CPU's own.
    let Scratch { inside, inside_session: session, .. } = unsafe { &*scratch };
    let now = config::now(config);
    if !book.takes(session, config, now) {
        return 0;
    }
    write(book, inside, session, |record| {
        record.kind = Kind::Open as u8;
        record.now = now;
        record.start = now;
    })
}

/// Records that a session is removed in that state, if it was recorded when it opened, and tells whoever watches;
/// `killed`: it was cut.
///
/// Leaves tuples and element in the scratch element.
#[inline(always)]
pub(crate) fn closed<F: Datapath>(
    inside: &Tuple<F>,
    outside: &Tuple<F>,
    session: &Session<F>,
    state: State,
    killed: bool,
) {
    // Not asked here whether it is: the verifier would look at all that follows twice.
    let Some(scratch) = F::scratch() else { return };
    // SAFETY: the scratch element is this CPU's own.
    unsafe {
        (*scratch).inside = *inside;
        (*scratch).outside = *outside;
        (*scratch).inside_session = *session;
    }
    let how = u64::from(state as u8) | u64::from(killed) << 8;
    if F::IS_V4 {
        record_closed_v4(how);
        show_closed_v4(how);
    } else {
        record_closed_v6(how);
        show_closed_v6(how);
    }
}

/// Records that the session in the scratch element of IPv4 is removed; `how` is the number of its state, and 256 where
/// it was cut. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_closed_v4(how: u64) -> u64 {
    write_closed::<V4>(Book::Log, how)
}

/// As [`record_closed_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_closed_v6(how: u64) -> u64 {
    write_closed::<V6>(Book::Log, how)
}

/// Tells whoever watches what [`record_closed_v4`] records. Returns nothing of interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn show_closed_v4(how: u64) -> u64 {
    write_closed::<V4>(Book::Lives, how)
}

/// As [`show_closed_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn show_closed_v6(how: u64) -> u64 {
    write_closed::<V6>(Book::Lives, how)
}

#[inline(always)]
fn write_closed<F: Datapath>(book: Book, how: u64) -> u64 {
    let (Some(scratch), Some(config)) = (F::scratch(), config::config()) else { return 0 };
    // SAFETY: the scratch element is this CPU's own.
    let Scratch { inside, outside, inside_session: session, .. } = unsafe { &*scratch };
    let now = config::now(config);
    if !book.takes(session, config, now) {
        return 0;
    }
    write(book, inside, session, |record| {
        let ending = if how >> 8 != 0 {
            Ending::Killed
        } else {
            Ending::of(State::from_number(how as u8), session.is_proxied())
        };
        record.kind = Kind::Close as u8;
        record.reason = ending as u8;
        record.now = now;
        record.start = now;
        if let Some(answer) = F::session(outside) {
            // SAFETY: the pointer is to a map value; plain integers are read.
            unsafe {
                record.start = (*answer).mark;
                record.received = Counter { packets: (*answer).packets, bytes: (*answer).bytes };
            }
        }
    })
}

/// Records that the packet from inside in the subject is dropped for `reason`, if that denies it something and its route
/// says so.
#[inline(always)]
pub(crate) fn denied<F: Datapath>(reason: DropReason) {
    if !is_denial(reason) {
        return;
    }
    if F::IS_V4 {
        record_denied_v4(reason as u64);
    } else {
        record_denied_v6(reason as u64);
    }
}

/// Records that the packet in the subject of IPv4 is dropped for the reason with this number. Returns nothing of
/// interest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_denied_v4(reason: u64) -> u64 {
    write_denied::<V4>(reason as u8)
}

/// As [`record_denied_v4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_denied_v6(reason: u64) -> u64 {
    write_denied::<V6>(reason as u8)
}

#[inline(always)]
fn write_denied<F: Datapath>(reason: u8) -> u64 {
    let (Some(subject), Some(config)) = (F::subject(), config::config()) else { return 0 };
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let Subject { packet, tuple, route, .. } = unsafe { &*subject };
    let log = if reason == DropReason::NoRoute as u8 { config.unrouted as u16 } else { route.log };
    if log == 0 || tuple.side != SIDE_INSIDE {
        return 0;
    }
    let now = config::now(config);
    let key = DeniedKey {
        source: F::mapped(&packet.source),
        destination: F::mapped(&packet.destination),
        period: period(now),
        destination_port: packet.transport_layer.destination_port,
        log,
        proto: packet.proto,
        reason,
        reserved: [0; 2],
    };
    let bytes = u64::from(packet.length);
    if count_denied(&key, bytes) {
        return 0;
    }
    match DENIED.insert(key, Counter::default(), NOEXIST) {
        Ok(()) => {}
        // Another CPU has dropped one like it.
        Err(EEXIST) if count_denied(&key, bytes) => return 0,
        Err(_) => return lose(),
    }
    let Some(mut entry) = RECORDS.reserve(0) else { return lose() };
    entry.write(Record {
        // SAFETY: the helper has no arguments.
        time: unsafe { bpf_ktime_get_ns() },
        kind: Kind::Deny as u8,
        proto: packet.proto,
        reason,
        log,
        now,
        start: now,
        source: key.source,
        destination: key.destination,
        source_port: packet.transport_layer.source_port,
        destination_port: key.destination_port,
        sent: Counter { packets: 1, bytes },
        ..Record::default()
    });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}

/// Counts a packet that is not the first of its kind; `false` where it is.
#[inline(always)]
fn count_denied(key: &DeniedKey, bytes: u64) -> bool {
    let Some(counter) = DENIED.get_ptr_mut(key) else { return false };
    // SAFETY: the pointer is to a map value.
    unsafe {
        atomic::add_long(&raw mut (*counter).packets, 1);
        atomic::add_long(&raw mut (*counter).bytes, bytes);
    }
    true
}

/// Counts a record that found no room. Returns nothing of interest.
#[inline(always)]
fn lose() -> u64 {
    count_lost(&RECORDS_LOST)
}

#[inline(always)]
fn count_lost(lost: &PerCpuArray<u64, 1>) -> u64 {
    if let Some(lost) = lost.get_ptr_mut(0) {
        // SAFETY: the element is this CPU's own and programs do not preempt each other.
        unsafe { *lost += 1 };
    }
    0
}

/// Writes a record of a session, which `complete` completes, or counts that it is lost.
#[inline(always)]
fn write<F: Datapath>(
    book: Book,
    inside: &Tuple<F>,
    session: &Session<F>,
    complete: impl FnOnce(&mut Record),
) -> u64 {
    let (entry, lost) = match book {
        Book::Log => (RECORDS.reserve(0), &RECORDS_LOST),
        Book::Lives => (LIVES.reserve(0), &LIVES_LOST),
    };
    let Some(mut entry) = entry else { return count_lost(lost) };
    let record = entry.write(Record {
        // SAFETY: the helper has no arguments.
        time: unsafe { bpf_ktime_get_ns() },
        proto: inside.proto,
        proxied: u8::from(session.is_proxied()),
        log: match book {
            Book::Log => session.log,
            Book::Lives => session.slot() as u16,
        },
        counter: session.counter,
        source: F::mapped(&inside.source),
        translated: F::mapped(&session.translated),
        destination: F::mapped(&inside.destination),
        source_port: inside.source_port,
        translated_port: session.translated_port,
        destination_port: inside.destination_port,
        pool_address: session.pool_address,
        sent: Counter { packets: session.packets, bytes: session.bytes },
        ..Record::default()
    });
    complete(record);
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}
