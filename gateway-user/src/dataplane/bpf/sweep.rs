//! The expiry of sessions: walks the tables with a cursor, a slice at a time, and names what looks idle to the
//! program `sweep`, which looks again and decides.
//!
//! The walk reads whole buckets; a run of the program takes a batch of
//! [`SWEEP_BATCH`] sessions, some microseconds. The packet path never waits longer than that.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{MapData, PerCpuArray},
    programs::ProgramFd,
};
use gateway_common::{
    DropReason, Family, V4, V6,
    config::Timeouts,
    counter::Counter,
    limit::Bucket,
    mapping,
    ports::Destination,
    proxy,
    session::{
        DEAD, RETIRED, SIDE_INSIDE, SWEEP_BATCH, SWEEP_CHARGE, SWEEP_CUTS, SWEEP_DESTINATIONS, SWEEP_IDLE,
        SWEEP_SOURCES, SWEEP_TURN, Session, SweepHeader, Tuple,
    },
    source::Source,
    tcp::State,
};

use super::{
    observe,
    pins::Pins,
    recount::{Found, Recount},
    sys::{self, Cursor},
    table::{SessionTable, Stored},
    usage::Meter,
};
use crate::{
    dataplane::{Sweeper, Swept},
    model,
};

/// Time that a slice may take; a tenth of [`crate::dataplane::SWEEP_INTERVAL`].
const SLICE: Duration = Duration::from_millis(5);
/// Sessions that look idle in one slice, from which on there is much to do: a million that expire at once are gone
/// in seconds, and a walk that finds little takes a tenth of a processor.
const BUSY: usize = 256;
/// Elements that one call reads.
const READ: usize = 4_096;
/// Time between two walks through the buckets of destinations or sources.
const BUCKETS_INTERVAL: Duration = Duration::from_secs(1);

/// Removes sessions, on a thread of its own.
pub(super) struct BpfSweeper {
    sweep: Mutex<Sweep>,
    /// Apart, and held for no longer than a copy takes: a change does not wait for a slice of a thread that gives
    /// way to everybody.
    timeouts: Mutex<Timeouts>,
    /// Whether limits of sources have changed since the last slice.
    recharge: AtomicBool,
    /// Whether counts are to be compared now.
    recount: AtomicBool,
}

/// The walk through the session tables.
struct Sweep {
    program: Arc<Program>,
    v4: Walk<V4>,
    v6: Walk<V6>,
    destinations: Buckets<Destination>,
    sources: Buckets<Source>,
    /// The walk that has sessions counted under other limits of sources.
    charges: Option<Charges>,
    recount: Recount,
    meter: Meter,
    /// Whether the IPv6 table is next.
    v6_next: bool,
    /// Packets by reason of their drop.
    drops: PerCpuArray<MapData, Counter>,
    /// Packets that found no room for their session, as of this turn.
    refused: Option<u64>,
    /// Whether there were more of them than a turn ago.
    urgent: bool,
}

struct Walk<F: Family> {
    table: SessionTable<F>,
    cursor: Cursor,
    elements: Vec<(Tuple<F>, Session<F>)>,
}

/// A walk through both session tables that looks at every session once.
struct Charges {
    v4: Walk<V4>,
    v6: Walk<V6>,
    /// Turns until it begins: packets that saw the limits before have opened their sessions by then.
    turns: u32,
    /// Whether the IPv4 table is done.
    v4_done: bool,
}

/// A walk through buckets of destinations or sources.
struct Buckets<K> {
    /// What the program is told.
    action: u32,
    map: OwnedFd,
    cursor: Cursor,
    keys: Vec<K>,
    values: Vec<Bucket>,
    /// When the walk began that goes on or was the last.
    began: Instant,
}

impl BpfSweeper {
    /// Begins with the idle times that are in force; `found` gets to know what counts differ by.
    pub(super) fn new(
        program: Arc<Program>,
        pins: &Pins,
        timeouts: Timeouts,
        found: Arc<Found>,
        meter: Meter,
    ) -> Result<Self> {
        let (v4, v6) = (SessionTable::open(pins)?, SessionTable::open(pins)?);
        let sweep = Sweep {
            program,
            recount: Recount::new(pins, &v4, &v6, found)?,
            meter,
            v4: Walk::new(v4),
            v6: Walk::new(v6),
            destinations: Buckets::new(SWEEP_DESTINATIONS, sys::open_pin(&pins.map("DESTINATIONS"))?),
            sources: Buckets::new(SWEEP_SOURCES, sys::open_pin(&pins.map("SOURCES"))?),
            charges: None,
            v6_next: false,
            drops: pins.open("DROPS")?,
            refused: None,
            urgent: false,
        };
        // A daemon before this one may have died between a change of limits and its walk.
        let recharge = AtomicBool::new(true);
        Ok(Self {
            sweep: Mutex::new(sweep),
            timeouts: Mutex::new(timeouts),
            recharge,
            recount: AtomicBool::new(false),
        })
    }

    /// Limits of sources have changed: sessions are counted under those in force from now on.
    pub(super) fn recharge(&self) {
        self.recharge.store(true, Ordering::Release);
    }

    /// Other groups of usage from now on. Waits for a slice that goes on, and walks through the tables: groups seldom
    /// change.
    pub(super) fn set_groups(&self, groups: &BTreeMap<String, model::Group>) -> Result<()> {
        self.sweep.lock().unwrap_or_else(PoisonError::into_inner).set_groups(groups)
    }

    /// Other idle times from now on.
    pub(super) fn set_timeouts(&self, timeouts: Timeouts) {
        *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner) = timeouts;
    }
}

impl Sweeper for BpfSweeper {
    fn sweep(&self, turn: bool) -> Result<Swept> {
        let timeouts = *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sweep = self.sweep.lock().unwrap_or_else(PoisonError::into_inner);
        if self.recharge.swap(false, Ordering::AcqRel) {
            sweep.charges = Some(Charges::new(&sweep.v4.table, &sweep.v6.table)?);
        }
        // After the walk that moves sessions to other buckets.
        if sweep.charges.is_none() {
            let now = self.recount.swap(false, Ordering::AcqRel);
            if now {
                sweep.meter.hurry();
            }
            sweep.recount.slice(now, SLICE / 2)?;
        }
        sweep.slice(turn, &timeouts)
    }

    fn recount(&self) {
        self.recount.store(true, Ordering::Release);
    }
}

impl Sweep {
    /// Removes what was cut and continues the walk, for one slice and at most once through both tables. It is
    /// busy when there was much to do, and is more of it before the end of the tables.
    fn slice(&mut self, turn: bool, timeouts: &Timeouts) -> Result<Swept> {
        let start = Instant::now();
        if turn {
            self.program.run::<Tuple<V4>>(V4::AF, SWEEP_TURN, &[])?;
            let key = u32::from(DropReason::SessionTableFull as u8);
            let drops = self.drops.get(&key, 0).context("cannot read map DROPS")?;
            let refused = Some(observe::sum(&drops).packets);
            self.urgent = self.refused.is_some_and(|before| Some(before) != refused);
            self.refused = refused;
        }
        // Half of the slice belongs to the walk, however many are cut.
        for family in [V4::AF, V6::AF] {
            while start.elapsed() < SLICE / 2
                && self.program.run::<Tuple<V4>>(family, SWEEP_CUTS, &[])?.retired == SWEEP_BATCH as u32
            {
            }
        }
        if turn {
            self.destinations.step(&self.program)?;
            self.sources.step(&self.program)?;
        }
        if let Some(charges) = &mut self.charges
            && charges.slice(turn, &self.program)?
        {
            self.charges = None;
        }
        let (mut tables_left, mut idle) = (2, 0);
        while tables_left > 0 && start.elapsed() < SLICE {
            if !self.v6_next && self.v4.cursor.is_start() {
                self.meter.begin()?;
            }
            let (more, looked_idle) = if self.v6_next {
                self.v6.step(&self.program, timeouts, &mut self.meter)?
            } else {
                self.v4.step(&self.program, timeouts, &mut self.meter)?
            };
            idle += looked_idle;
            if !more {
                if self.v6_next {
                    self.meter.end()?;
                }
                self.v6_next = !self.v6_next;
                tables_left -= 1;
            }
        }
        Ok(Swept { busy: tables_left > 0 && idle >= BUSY, urgent: self.urgent })
    }
}

impl Sweep {
    /// Puts other groups of usage in force. What has been carried so far counts for those before.
    fn set_groups(&mut self, groups: &BTreeMap<String, model::Group>) -> Result<()> {
        let changes = !self.meter.has(groups)?;
        if changes && self.meter.is_on() {
            self.count_usage()?;
        }
        self.meter.set(groups)?;
        if changes { self.count_usage() } else { Ok(()) }
    }

    /// Walks through all of both tables. Nothing is removed meanwhile.
    fn count_usage(&mut self) -> Result<()> {
        self.meter.hurry();
        self.meter.begin()?;
        Walk::new(self.v4.table.try_clone()?).count_usage(&mut self.meter)?;
        Walk::new(self.v6.table.try_clone()?).count_usage(&mut self.meter)?;
        self.meter.end()
    }
}

impl<F: Stored> Walk<F>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    fn new(table: SessionTable<F>) -> Self {
        Self { table, cursor: Cursor::default(), elements: Vec::new() }
    }

    /// Reads some buckets and has the program look at what may go. Returns `false` at the end of the table, and how
    /// many sessions looked idle.
    fn step(&mut self, program: &Program, timeouts: &Timeouts, meter: &mut Meter) -> Result<(bool, usize)> {
        let more = self.table.read(&mut self.cursor, &mut self.elements, READ)?;
        meter.meet(&self.elements);
        let now = program.now()?;
        let candidates: Vec<Tuple<F>> = self
            .elements
            .iter()
            .filter(|(tuple, session)| may_go(now, timeouts, tuple, session))
            .map(|(tuple, _)| *tuple)
            .collect();
        for batch in candidates.chunks(SWEEP_BATCH) {
            program.run(F::AF, SWEEP_IDLE, batch)?;
        }
        Ok((more, candidates.len()))
    }

    /// Reads all of the table, for the usage.
    fn count_usage(mut self, meter: &mut Meter) -> Result<()> {
        while self.table.read(&mut self.cursor, &mut self.elements, READ)? {
            meter.meet(&self.elements);
        }
        meter.meet(&self.elements);
        Ok(())
    }

    /// Reads some buckets and has the program look at who counts their sessions. Returns `false` at the end of the table.
    fn charge(&mut self, program: &Program) -> Result<bool> {
        let more = self.table.read(&mut self.cursor, &mut self.elements, READ)?;
        let tuples = self.elements.iter().map(|(tuple, _)| *tuple);
        let inside: Vec<_> =
            tuples.filter(|tuple| tuple.side == SIDE_INSIDE && !mapping::is_key(tuple)).collect();
        for batch in inside.chunks(SWEEP_BATCH) {
            program.run(F::AF, SWEEP_CHARGE, batch)?;
        }
        Ok(more)
    }
}

impl Charges {
    fn new(v4: &SessionTable<V4>, v6: &SessionTable<V6>) -> Result<Self> {
        let (v4, v6) = (Walk::new(v4.try_clone()?), Walk::new(v6.try_clone()?));
        Ok(Self { v4, v6, turns: 2, v4_done: false })
    }

    /// Continues for one slice; whether it is through.
    fn slice(&mut self, turn: bool, program: &Program) -> Result<bool> {
        if self.turns > 0 {
            self.turns -= u32::from(turn);
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < SLICE {
            if !self.v4_done {
                self.v4_done = !self.v4.charge(program)?;
            } else if !self.v6.charge(program)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<K: Pod> Buckets<K> {
    fn new(action: u32, map: OwnedFd) -> Self {
        let (cursor, keys, values) = (Cursor::default(), Vec::new(), Vec::new());
        Self { action, map, cursor, keys, values, began: Instant::now() }
    }

    /// Reads some buckets and has the program look at what may go.
    fn step(&mut self, program: &Program) -> Result<()> {
        if self.cursor.is_start() {
            if self.began.elapsed() < BUCKETS_INTERVAL {
                return Ok(());
            }
            self.began = Instant::now();
        }
        sys::lookup_batch(self.map.as_fd(), &mut self.cursor, &mut self.keys, &mut self.values, READ)
            .context("cannot read the buckets of destinations or sources")?;
        let unused: Vec<K> = self
            .keys
            .iter()
            .zip(&self.values)
            .filter(|(_, bucket)| bucket.sessions as u32 == 0)
            .map(|(key, _)| *key)
            .collect();
        for batch in unused.chunks(SWEEP_BATCH) {
            program.run(V4::AF, self.action, batch)?;
        }
        Ok(())
    }
}

/// The program `sweep`, loaded.
pub(super) struct Program(ProgramFd);

impl Program {
    pub(super) fn new(descriptor: ProgramFd) -> Self {
        Self(descriptor)
    }

    /// The present tick, of the clock that the programs use.
    pub(super) fn now(&self) -> Result<u32> {
        self.run::<Tuple<V4>>(V4::AF, SWEEP_IDLE, &[]).map(|header| header.now)
    }

    /// Has the program look at the sessions of a batch.
    fn run<T: Pod>(&self, family: u8, action: u32, batch: &[T]) -> Result<SweepHeader> {
        let header = SweepHeader {
            family: family.into(),
            count: batch.len() as u32,
            action,
            ..SweepHeader::default()
        };
        let mut input = Vec::with_capacity(size_of::<SweepHeader>() + size_of_val(batch));
        input.extend_from_slice(bytes_of(std::slice::from_ref(&header)));
        input.extend_from_slice(bytes_of(batch));
        sys::run(self.0.as_fd(), &input).context("cannot run the program `sweep`")
    }
}

/// Whether the element alone does not rule out that its session or mapping may go.
fn may_go<F: Family>(now: u32, timeouts: &Timeouts, tuple: &Tuple<F>, session: &Session<F>) -> bool {
    if mapping::is_key(tuple) {
        return mapping::is_claim(tuple) && (session.mark == 0 || session.generation != mapping::LIVE);
    }
    if tuple.side != SIDE_INSIDE {
        // Left behind by a session that went to another proxy host.
        return session.is_proxied() && session.generation == DEAD;
    }
    let state = State::from_number(session.state);
    let state = if session.is_proxied() { proxy::state_for_idle_time(state, false) } else { state };
    let timeout = timeouts.of(tuple.proto, tuple.destination_port, state);
    matches!(session.generation, RETIRED | DEAD) || now.saturating_sub(session.last_seen) >= timeout
}

/// The memory of plain values.
fn bytes_of<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` values have no padding in this crate's use (their sizes are asserted) and live as long as
    // the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
