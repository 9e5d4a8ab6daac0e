//! The removal of sessions, in slices: the daemon walks the table with a cursor and names the sessions that
//! look idle; this program looks again, with both elements in hand, and retires or removes them.

use core::ffi::c_void;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_loop, programs::XdpContext};
use gateway_common::{
    Family, V4, V6,
    config::Timeouts,
    mapping::{HELD, SHARED},
    parse::Bytes as _,
    ports::Destination,
    proxy,
    session::{
        CUT, CUT_QUEUED, CUT_SEEN, DEAD, RETIRED, SIDE_INSIDE, SWEEP_BATCH, SWEEP_CHARGE, SWEEP_CUTS,
        SWEEP_DESTINATIONS, SWEEP_KILL, SWEEP_SOURCES, SWEEP_TURN, Session, SweepHeader, Tuple,
    },
    source::Source,
    tcp::State,
};

use crate::{
    atomic, config, count, family::Datapath, limit, mapping, packet::Frame, pool, ports, record, session,
    source, tcp, usage,
};

/// Turns that a session which was cut waits for its removal: at least one whole turn of the daemon's, 50 ms.
const GRACE: u32 = 2;

/// Looks at the sessions listed in the frame and writes the counts back into it.
#[inline(always)]
pub(crate) fn run(frame: &Frame<'_>) -> Option<()> {
    let header: [u32; 6] = frame.read(0)?;
    let [family, count, action, ..] = header;
    let config = config::config()?;
    let mut visit = Visit {
        frame: frame.context(),
        action,
        turn: session::sweeps(),
        now: config::now(config),
        timeouts: config.timeouts,
        secret: config.secret,
        retired: 0,
        removed: 0,
    };
    let count = count.min(SWEEP_BATCH as u32);
    let visit_pointer = (&raw mut visit).cast();
    if action == SWEEP_TURN {
        ports::collect();
        session::next_sweep();
    }
    // Every run is short: while it lasts, no packet passes on this CPU.
    // SAFETY: the callbacks have the signature that the helper calls, and `visit` outlives the call.
    unsafe {
        if action == SWEEP_SOURCES {
            bpf_loop(count, visit_source as *mut c_void, visit_pointer, 0);
            return Some(());
        }
        if action == SWEEP_DESTINATIONS {
            bpf_loop(count, visit_destination as *mut c_void, visit_pointer, 0);
            return Some(());
        }
        match (action == SWEEP_CUTS, family == u32::from(V4::AF)) {
            (true, true) => bpf_loop(SWEEP_BATCH as u32, visit_cut::<V4> as *mut c_void, visit_pointer, 0),
            (true, false) => bpf_loop(SWEEP_BATCH as u32, visit_cut::<V6> as *mut c_void, visit_pointer, 0),
            (false, true) => bpf_loop(count, visit_nth::<V4> as *mut c_void, visit_pointer, 0),
            (false, false) => bpf_loop(count, visit_nth::<V6> as *mut c_void, visit_pointer, 0),
        };
    }
    frame.write(12, [visit.retired, visit.removed, visit.now]).ok()
}

#[repr(C)]
struct Visit {
    frame: *mut xdp_md,
    action: u32,
    turn: u32,
    now: u32,
    timeouts: Timeouts,
    secret: u32,
    retired: u32,
    removed: u32,
}

unsafe extern "C" fn visit_nth<F: Datapath>(index: u32, visit: *mut c_void) -> i64 {
    // SAFETY: `run` passes its `Visit`.
    let visit = unsafe { &mut *visit.cast::<Visit>() };
    let context = XdpContext::new(visit.frame);
    let frame = Frame::new(&context);
    let index = (index as usize) & (SWEEP_BATCH - 1);
    let Some(tuple) = F::read_tuple(&frame, size_of::<SweepHeader>() + index * size_of::<Tuple<F>>()) else {
        return 1;
    };
    if mapping::is_key(&tuple) {
        mapping::visit(&tuple);
        return 0;
    }
    if tuple.side != SIDE_INSIDE {
        visit.removed += visit_left_behind(&tuple);
        return 0;
    }
    if let Some(session) = F::session(&tuple) {
        if visit.action == SWEEP_CHARGE {
            // SAFETY: the pointer is to a map value.
            visit.retired += source::recharge(&tuple, unsafe { &mut *session }) as u32;
            return 0;
        }
        // SAFETY: the pointer is to a map value.
        visit_session(visit, &tuple, unsafe { &mut *session });
    }
    0
}

/// An outside element that its session has left for another proxy host: removed on the second visit.
#[inline(never)]
fn visit_left_behind<F: Datapath>(outside: &Tuple<F>) -> u32 {
    let Some(session) = F::session(outside) else { return 0 };
    // SAFETY: the pointer is to a map value.
    let session = unsafe { &mut *session };
    if !session.is_proxied() || session.generation != DEAD {
        return 0;
    }
    if session.flags != CUT_SEEN {
        session.flags = CUT_SEEN;
        return 0;
    }
    usage::left_behind(outside, session);
    u32::from(F::remove_session(outside).is_ok())
}

unsafe extern "C" fn visit_destination(index: u32, visit: *mut c_void) -> i64 {
    // SAFETY: `run` passes its `Visit`.
    let visit = unsafe { &mut *visit.cast::<Visit>() };
    let context = XdpContext::new(visit.frame);
    let frame = Frame::new(&context);
    let index = (index as usize) & (SWEEP_BATCH - 1);
    match frame.read(size_of::<SweepHeader>() + index * size_of::<Destination>()) {
        Some(destination) => limit::visit(&destination),
        None => return 1,
    }
    0
}

unsafe extern "C" fn visit_source(index: u32, visit: *mut c_void) -> i64 {
    // SAFETY: `run` passes its `Visit`.
    let visit = unsafe { &mut *visit.cast::<Visit>() };
    let context = XdpContext::new(visit.frame);
    let frame = Frame::new(&context);
    let index = (index as usize) & (SWEEP_BATCH - 1);
    match frame.read(size_of::<SweepHeader>() + index * size_of::<Source>()) {
        Some(source) => source::visit(&source),
        None => return 1,
    }
    0
}

/// Removes the first of the sessions that were cut, if it has waited long enough.
unsafe extern "C" fn visit_cut<F: Datapath>(_: u32, visit: *mut c_void) -> i64 {
    // SAFETY: `run` passes its `Visit`.
    let visit = unsafe { &mut *visit.cast::<Visit>() };
    let Ok(Some(cut)) = F::cuts().peek() else { return 1 };
    if visit.turn.wrapping_sub(cut.sweeps) < GRACE {
        return 1;
    }
    // Nobody else takes elements out: one sweep runs at a time.
    let _ = F::cuts().pop();
    visit.retired += 1;
    if let Some(session) = F::session(&cut.tuple) {
        // SAFETY: the pointer is to a map value.
        let session = unsafe { &mut *session };
        // Whoever cuts marks before the element is in the queue; what is not marked is another session.
        if session.generation == DEAD && session.flags == CUT_QUEUED {
            // For the walk, should the removal fail.
            session.flags = CUT_SEEN;
            remove(visit, &cut.tuple, &cut.tuple.pair(session), session);
        }
    }
    0
}

#[inline(always)]
fn visit_session<F: Datapath>(visit: &mut Visit, tuple: &Tuple<F>, session: &mut Session<F>) {
    let pair = tuple.pair(session);
    let answer = F::session(&pair);
    // SAFETY: the pointer is to a map value; a plain integer is read.
    let answer_seen = answer.map_or(0, |answer| unsafe { (*answer).last_seen });
    let generation = &raw mut session.generation;
    // SAFETY: the pointer is to a map value.
    unsafe {
        match generation.read_volatile() {
            DEAD if session.flags == CUT_QUEUED => {}
            DEAD if session.flags == CUT_SEEN => {
                remove(visit, tuple, &pair, session);
            }
            DEAD => session.flags = CUT_SEEN,
            RETIRED => {
                if atomic::replace(generation, RETIRED, DEAD) {
                    remove(visit, tuple, &pair, session);
                }
            }
            observed if visit.action == SWEEP_KILL => {
                if atomic::replace(generation, observed, DEAD) {
                    session.flags = CUT;
                    visit.retired += 1;
                }
            }
            observed => {
                let seen = session.last_seen.max(answer_seen);
                let idle = visit.now.saturating_sub(seen);
                let answered = answer.is_some_and(|answer| (*answer).packets != 0);
                let state = State::from_number(session.state);
                let state = proxy::state_for_idle_time(state, answered || !session.is_proxied());
                if idle >= visit.timeouts.of(tuple.proto, tuple.destination_port, state)
                    && atomic::replace(generation, observed, RETIRED)
                {
                    if let Some(answer) = answer {
                        (&raw mut (*answer).generation).write_volatile(RETIRED);
                    }
                    visit.retired += 1;
                }
            }
        }
    }
}

/// Removes both elements of a session whose inside element is marked [`DEAD`].
///
/// The inside element goes first: while the outside one is there, nobody can claim its port, so that neither
/// removal can hit an element of a younger session. A function of its own, for its callers' stack. Returns nothing of
/// interest.
#[inline(never)]
fn remove<F: Datapath>(
    visit: &mut Visit,
    inside: &Tuple<F>,
    outside: &Tuple<F>,
    session: &mut Session<F>,
) -> u32 {
    // No packet moves the state from here on: what it stands for is given back once.
    let Some(state) = tcp::take(session) else { return 0 };
    tcp::leave(state);
    let closed = proxy::state_for_idle_time(state, !session.is_proxied()).is_closed();
    let killed = session.flags != 0 && !closed;
    let pool_address = u32::from(session.pool_address);
    // SAFETY: the pointer is to a map value; a plain integer is read.
    let flags = F::session(outside).map_or(0, |answer| unsafe { (*answer).flags });
    let proxied = session.is_proxied();
    let charge = session.charge();
    record::closed(inside, outside, session, state, killed);
    // By what the record has left in the scratch element.
    usage::removed::<F>();
    if F::remove_session(inside).is_ok() && !proxied && flags & HELD != 0 {
        mapping::let_go(outside);
    }
    let _ = F::remove_session(outside);
    source::ended(charge, F::mapped(&inside.source));
    if proxied {
        count::flows(session.pool_address, -1);
    } else if let Some(scratch) = F::scratch() {
        // SAFETY: the scratch element is this CPU's own.
        let towards = unsafe { &mut (*scratch).towards };
        towards.address = F::mapped(&outside.destination);
        towards.server = F::mapped(&outside.source);
        towards.port = outside.source_port;
        towards.proto = outside.proto;
        let client = pool::client(&F::mapped(&inside.source), visit.secret);
        let client = if flags & SHARED == 0 { None } else { Some(client) };
        ports::removed(towards, outside.destination_port, client);
    }
    count::session(inside.proto, |sessions| {
        if killed {
            sessions.killed += 1;
        } else if closed {
            sessions.closed += 1;
        } else {
            sessions.expired += 1;
        }
    });
    count::pool(pool_address, |pool| {
        pool.closed += 1;
        if !killed && !closed {
            pool.idle_timeouts += 1;
        }
    });
    visit.removed += 1;
    0
}
