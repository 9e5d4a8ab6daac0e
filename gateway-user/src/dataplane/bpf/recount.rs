//! Whether what is counted for destinations, sources and ports is what the session tables have.
//!
//! Packets go on meanwhile. So the check compares what is certain: a bucket that has admitted nothing and lost nothing
//! from before a walk through the tables until after it must have as many sessions as the walk has met. What differs is
//! looked at in a second walk, for packets that were between a bucket and the table. What differs again, by the same, is
//! drift.
//!
//! A round looks at some [`AT_ONCE`] buckets, the next one at others, so that it takes little memory however many there are.

use std::{
    collections::HashMap,
    hash::Hash,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::Pod;
use gateway_common::{
    Family, V4, V6,
    limit::Bucket,
    mapping,
    ports::{Destination, LIVE, Ports},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, Tuple},
    source::Source,
};
use tracing::warn;

use super::{
    pins::Pins,
    sys::{self, Cursor},
    table::{SessionTable, Stored},
};
use crate::dataplane::Drift;

/// Time between two rounds.
const INTERVAL: Duration = Duration::from_mins(1);
/// Buckets of destinations, and of sources, that a round looks at, about.
const AT_ONCE: usize = 65_536;
/// Elements that one call reads.
const READ: usize = 4_096;
/// As many of the ports of destinations, which are large.
const READ_PORTS: usize = 64;

/// What rounds have found, for who asks.
#[derive(Default)]
pub(super) struct Found {
    destinations: AtomicU64,
    sources: AtomicU64,
    ports: AtomicU64,
    rounds: AtomicU64,
}

impl Found {
    pub(super) fn drift(&self) -> Drift {
        Drift {
            destinations: self.destinations.load(Ordering::Relaxed),
            sources: self.sources.load(Ordering::Relaxed),
            ports: self.ports.load(Ordering::Relaxed),
            rounds: self.rounds.load(Ordering::Relaxed),
        }
    }
}

/// The check, a slice at a time.
pub(super) struct Recount {
    v4: SessionTable<V4>,
    v6: SessionTable<V6>,
    destinations: OwnedFd,
    sources: OwnedFd,
    ports: OwnedFd,
    found: Arc<Found>,
    /// When the round began that goes on or was the last.
    began: Instant,
    /// Into how many parts keys are divided, and which of them the next round looks at.
    parts: usize,
    part: usize,
    /// What each part had when it was looked at last.
    drifts: Vec<Drift>,
    round: Option<Round>,
}

/// One round.
struct Round {
    destinations: Counts<Destination>,
    sources: Counts<Source>,
    /// Ports that are marked as used in all of the round, and have not been met, with the bucket of their destination.
    ports: HashMap<Destination, (Bucket, Box<[u64]>)>,
    cursor: Cursor,
    v4_done: bool,
    /// Whether this is the second walk.
    again: bool,
    /// As those of [`Recount`].
    parts: usize,
    part: usize,
    /// Into how many parts to divide keys from the next round on.
    next_parts: usize,
}

/// Keys of buckets that are looked at, with what they had before the walk, and what it has met.
type Counts<K> = HashMap<K, Count>;

#[derive(Clone, Copy)]
struct Count {
    before: Bucket,
    met: u32,
    /// What there was too much, or too little, in the first walk.
    differs: i64,
}

/// A key of buckets.
trait Key: Pod + Eq + Hash {
    fn tag(&self) -> u64;
}

impl Key for Destination {
    fn tag(&self) -> u64 {
        Self::tag(self)
    }
}

impl Key for Source {
    fn tag(&self) -> u64 {
        Self::tag(self)
    }
}

impl Recount {
    pub(super) fn new(
        pins: &Pins,
        v4: &SessionTable<V4>,
        v6: &SessionTable<V6>,
        found: Arc<Found>,
    ) -> Result<Self> {
        Ok(Self {
            v4: v4.try_clone()?,
            v6: v6.try_clone()?,
            destinations: sys::open_pin(&pins.map("DESTINATIONS"))?,
            sources: sys::open_pin(&pins.map("SOURCES"))?,
            ports: sys::open_pin(&pins.map("PORTS"))?,
            found,
            began: Instant::now(),
            parts: 1,
            part: 0,
            drifts: Vec::new(),
            round: None,
        })
    }

    /// Begins a round, unless one goes on, or continues it; `now`: although none is due. For one slice at most.
    pub(super) fn slice(&mut self, now: bool, slice: Duration) -> Result<()> {
        let start = Instant::now();
        if self.round.is_none() {
            if !now && self.began.elapsed() < INTERVAL {
                return Ok(());
            }
            self.began = start;
            self.round = Some(self.begin()?);
        }
        while let Some(round) = &mut self.round
            && start.elapsed() < slice
        {
            if !round.v4_done {
                round.v4_done = !round.walk(&mut self.v4)?;
            } else if !round.walk(&mut self.v6)? {
                self.end()?;
            }
        }
        Ok(())
    }

    /// Reads the buckets of the next part.
    fn begin(&mut self) -> Result<Round> {
        let (mut destinations, mut sources) = (Counts::new(), Counts::new());
        let all = read::<Destination, Bucket>(&self.destinations, READ, |key, bucket| {
            if is_of(&key, self.parts, self.part) {
                destinations.insert(key, Count::of(bucket));
            }
        })?;
        let all = all.max(read::<Source, Bucket>(&self.sources, READ, |key, bucket| {
            if is_of(&key, self.parts, self.part) {
                sources.insert(key, Count::of(bucket));
            }
        })?);
        let mut ports = HashMap::new();
        read::<Destination, Ports>(&self.ports, READ_PORTS, |key, known| {
            // What is on its way out is used by nobody.
            if let Some(count) = destinations.get(&key).filter(|_| known.state == LIVE) {
                ports.insert(key, (count.before, Box::from(known.used)));
            }
        })?;
        Ok(Round {
            destinations,
            sources,
            ports,
            cursor: Cursor::default(),
            v4_done: false,
            again: false,
            parts: self.parts,
            part: self.part,
            next_parts: all / AT_ONCE + 1,
        })
    }

    /// Compares, after a walk, and walks again where something differs.
    fn end(&mut self) -> Result<()> {
        let Some(mut round) = self.round.take() else { return Ok(()) };
        keep_lost(&mut round.ports, &self.ports, &self.destinations)?;
        keep_differing(&mut round.destinations, &self.destinations)?;
        keep_differing(&mut round.sources, &self.sources)?;
        let differs = !round.destinations.is_empty() || !round.sources.is_empty() || !round.ports.is_empty();
        if differs && !round.again {
            (round.again, round.v4_done) = (true, false);
            self.round = Some(round);
            return Ok(());
        }
        let drift = Drift {
            destinations: sum(&round.destinations),
            sources: sum(&round.sources),
            ports: round
                .ports
                .values()
                .flat_map(|(_, lost)| lost)
                .map(|word| u64::from(word.count_ones()))
                .sum(),
            rounds: 0,
        };
        if drift != Drift::default() {
            let Drift { destinations, sources, ports, .. } = drift;
            warn!(destinations, sources, ports, "what is counted is not what the session table has");
        }
        self.drifts.resize(self.parts, Drift::default());
        if let Some(of_part) = self.drifts.get_mut(self.part) {
            *of_part = drift;
        }
        self.part = (self.part + 1) % self.parts;
        if round.next_parts != self.parts {
            (self.parts, self.part) = (round.next_parts, 0);
            self.drifts = vec![drift];
        }
        let all = |of: fn(&Drift) -> u64| self.drifts.iter().map(of).sum();
        self.found.destinations.store(all(|drift| drift.destinations), Ordering::Relaxed);
        self.found.sources.store(all(|drift| drift.sources), Ordering::Relaxed);
        self.found.ports.store(all(|drift| drift.ports), Ordering::Relaxed);
        self.found.rounds.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Round {
    /// Counts some sessions; `false` at the end of the table.
    fn walk<F: Stored>(&mut self, table: &mut SessionTable<F>) -> Result<bool>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let mut elements = Vec::new();
        let more = table.read(&mut self.cursor, &mut elements, READ)?;
        for (tuple, session) in &elements {
            self.meet(tuple, session);
        }
        Ok(more)
    }

    /// Counts an element where the packet path does.
    fn meet<F: Family>(&mut self, tuple: &Tuple<F>, session: &Session<F>) {
        // In the second walk, only what differed in the first one.
        let wanted = (!self.again).then_some((self.parts, self.part));
        let claim = mapping::is_claim(tuple);
        if mapping::is_key(tuple) && !claim {
            return;
        }
        if tuple.side == SIDE_INSIDE && !claim {
            let charge = session.charge();
            if charge.is_some() {
                count(&mut self.sources, Source::of(charge, F::mapped(&tuple.source)), wanted);
            }
        } else if (tuple.side == SIDE_OUTSIDE || claim) && !session.is_proxied() {
            let destination = Destination {
                address: F::mapped(&tuple.destination),
                server: F::mapped(&tuple.source),
                port: tuple.source_port,
                proto: tuple.proto,
                reserved: 0,
            };
            count(&mut self.destinations, destination, wanted);
            if let Some((_, used)) = self.ports.get_mut(&destination) {
                let port = usize::from(u16::from_be_bytes(tuple.destination_port));
                if let Some(word) = used.get_mut(port / 64) {
                    *word &= !(1 << (port % 64));
                }
            }
        }
    }
}

impl Count {
    fn of(before: Bucket) -> Self {
        Self { before, met: 0, differs: 0 }
    }
}

/// Counts a session in the bucket that counts it. One that was not there before the walk begins with nothing, if it is
/// `wanted`: of one of so many parts.
fn count<K: Key>(counts: &mut Counts<K>, key: K, wanted: Option<(usize, usize)>) {
    if let Some(count) = counts.get_mut(&key) {
        count.met += 1;
    } else if wanted.is_some_and(|(parts, part)| is_of(&key, parts, part)) {
        counts.insert(key, Count { met: 1, ..Count::of(Bucket::default()) });
    }
}

/// Keeps the ports that are still marked as used and that the walk has not met, of destinations where nothing has
/// happened.
fn keep_lost(
    ports: &mut HashMap<Destination, (Bucket, Box<[u64]>)>,
    map: &OwnedFd,
    buckets: &OwnedFd,
) -> Result<()> {
    let mut lost = HashMap::new();
    for (key, (before, mut used)) in ports.drain() {
        let known: Option<Ports> = sys::lookup(map.as_fd(), &key).context("cannot read map PORTS")?;
        let Some(known) = known.filter(|known| known.state == LIVE) else { continue };
        used.iter_mut().zip(&known.used).for_each(|(before, now)| *before &= now);
        if used.iter().any(|word| *word != 0) && is_same(&before, &key, buckets)? {
            lost.insert(key, (before, used));
        }
    }
    *ports = lost;
    Ok(())
}

/// Whether nothing has happened in a bucket, if it was there at all.
fn is_same<K: Key>(before: &Bucket, key: &K, map: &OwnedFd) -> Result<bool> {
    let now: Option<Bucket> = sys::lookup(map.as_fd(), key).context("cannot read a bucket")?;
    // What was there has a tag.
    let now = now.unwrap_or_default();
    Ok(now.sessions == before.sessions && now.admitted == before.admitted)
}

/// Keeps the keys of buckets where nothing has happened and which have other sessions than the walk has met: after a
/// second walk, by as many as after the first one. Ready for another walk.
fn keep_differing<K: Key>(counts: &mut Counts<K>, map: &OwnedFd) -> Result<()> {
    let mut differing = Counts::new();
    for (key, count) in counts.drain() {
        let differs = i64::from(count.before.count()) - i64::from(count.met);
        if differs == 0 || count.differs != 0 && count.differs != differs {
            continue;
        }
        if is_same(&count.before, &key, map)? {
            differing.insert(key, Count { met: 0, differs, ..count });
        }
    }
    *counts = differing;
    Ok(())
}

/// By how many sessions buckets differ from the tables.
fn sum<K>(counts: &Counts<K>) -> u64 {
    counts.values().map(|count| count.differs.unsigned_abs()).sum()
}

/// Whether a key belongs to one of so many parts.
fn is_of<K: Key>(key: &K, parts: usize, part: usize) -> bool {
    (key.tag() >> 32) as usize % parts == part
}

/// Reads all of a hash map; the number of its elements.
fn read<K: Pod, V: Pod>(map: &OwnedFd, max: usize, mut each: impl FnMut(K, V)) -> Result<usize> {
    let (mut cursor, mut keys, mut values) = (Cursor::default(), Vec::<K>::new(), Vec::<V>::new());
    let (mut count, mut more) = (0, true);
    while more {
        more = sys::lookup_batch(map.as_fd(), &mut cursor, &mut keys, &mut values, max)
            .context("cannot read what is counted")?;
        count += keys.len();
        keys.drain(..).zip(values.drain(..)).for_each(|(key, value)| each(key, value));
    }
    Ok(count)
}
