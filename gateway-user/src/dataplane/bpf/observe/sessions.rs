//! Sessions: all, one, and the largest.
//!
//! A session is two elements, which are far from each other in the table: what is read in its order is one half, and the
//! other half is a system call. With a million sessions these are most of the time, so nobody gets the other half who
//! does not ask for it, and the largest sessions are found without most of them.

use std::{
    cell::Cell,
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    net::IpAddr,
};

use anyhow::Result;
use aya::Pod;
use gateway_common::{
    Family,
    counter::Counter,
    family, mapping,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP},
    proxy::PROXIED,
    session::{DEAD, SIDE_INSIDE, SIDE_OUTSIDE, Session, Tuple},
    tcp::State,
};

use super::{
    super::{
        sys::Cursor,
        table::{SessionTable, Stored},
    },
    BpfObserve, READ,
};
use crate::{
    dataplane::{Glance, Order, SessionRow},
    model::RouteKey,
};

/// Halves that are kept of each side, for each session that is wanted, and at least.
const KEPT: usize = 4;
const KEPT_AT_LEAST: usize = 4_096;

impl BpfObserve {
    /// Shows `filter` each session of the table.
    pub(super) fn walk<F: Stored>(
        &self,
        table: &SessionTable<F>,
        filter: &mut dyn FnMut(&dyn Glance) -> bool,
        limit: usize,
        rows: &mut Vec<SessionRow>,
    ) -> Result<()>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        self.elements(table, |now, tuple, session, failed| {
            let full = limit != 0 && rows.len() == limit;
            if !full && tuple.side == SIDE_INSIDE {
                let half = Half { observe: self, table, now, tuple, session, failed };
                if filter(&half) {
                    rows.push(half.row());
                }
            }
            !full
        })
    }

    /// The first `limit` sessions by `order`, and how many there are; `None` if that cannot be told from what is kept.
    ///
    /// One pass keeps the largest halves of either side. Then sessions are looked up from the largest half down, until
    /// the last one that is wanted is as large as what any other one can be: the largest half of either side that was
    /// not looked up, together (Fagin, Lotem, Naor, Optimal aggregation algorithms for middleware, 2001).
    pub(super) fn rank<F: Stored>(
        &self,
        table: &SessionTable<F>,
        filter: &mut dyn FnMut(&dyn Glance) -> bool,
        order: Order,
        limit: usize,
    ) -> Result<Option<(Vec<SessionRow>, u64)>>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let keep = (KEPT * limit).max(KEPT_AT_LEAST);
        let (mut inside, mut outside) = (Largest::new(keep), Largest::new(keep));
        let mut total = 0;
        // One time for all: ages are compared.
        let now = self.clock.now()?;
        self.elements(table, |_, tuple, session, failed| {
            if tuple.side == SIDE_INSIDE {
                if filter(&Half { observe: self, table, now, tuple, session, failed }) {
                    total += 1;
                    inside.offer(order.half(session, || 0), *tuple);
                }
            } else {
                let age = || self.clock.since(now, session.mark).as_nanos() as u64;
                outside.offer(order.half(session, age), tuple.pair(session));
            }
            true
        })?;
        let (inside, outside) = (inside.finish(), outside.finish());
        let is_whole = !inside.cut && !outside.cut;
        let (mut seen, mut rows) = (HashSet::new(), Vec::new());
        // The weights of the largest so far, the least of them on top.
        let mut weights = BinaryHeap::new();
        for depth in 0..inside.halves.len().max(outside.halves.len()) {
            for (_, tuple) in [&inside, &outside].into_iter().filter_map(|side| side.halves.get(depth)) {
                if !seen.insert(*tuple) {
                    continue;
                }
                let Some(row) = self.look_up(table, now, tuple)? else { continue };
                if filter(&row) {
                    weights.push(Reverse(order.weight(&row)));
                    if weights.len() > limit {
                        weights.pop();
                    }
                    rows.push(row);
                    if rows.len() >= 2 * limit.max(KEPT_AT_LEAST) {
                        order.cut(&mut rows, limit);
                    }
                }
            }
            // All that the filter lets through have been looked at.
            if !inside.cut && depth + 1 >= inside.halves.len() {
                break;
            }
            let below = inside.below(depth).saturating_add(outside.below(depth));
            let last = weights.peek().filter(|_| weights.len() == limit);
            // Of equals, those are shown whose tuples come first, unless there are too many to look at all.
            if last.is_some_and(|Reverse(last)| if is_whole { *last > below } else { *last >= below }) {
                return Ok(Some((rows, total)));
            }
        }
        Ok((!inside.cut).then_some((rows, total)))
    }

    /// The session that a packet belongs to.
    pub(super) fn find_session<F: Stored>(
        &self,
        table: &SessionTable<F>,
        proto: u8,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> Result<Option<SessionRow>>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let now = self.clock.now()?;
        let key = |side| Tuple::<F> {
            source: F::unmapped(&family::from_ip(source.0)),
            destination: F::unmapped(&family::from_ip(destination.0)),
            source_port: source.1.to_be_bytes(),
            destination_port: destination.1.to_be_bytes(),
            proto,
            side,
            origin: 0,
        };
        if let Some(row) = self.look_up(table, now, &key(SIDE_INSIDE))? {
            return Ok(Some(row));
        }
        let Some(answer) = table.find(&key(SIDE_OUTSIDE))? else { return Ok(None) };
        self.look_up(table, now, &key(SIDE_OUTSIDE).pair(&answer))
    }

    /// The session of an inside tuple.
    fn look_up<F: Stored>(
        &self,
        table: &SessionTable<F>,
        now: u32,
        tuple: &Tuple<F>,
    ) -> Result<Option<SessionRow>>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let Some(session) = table.find(tuple)?.filter(|session| session.generation != DEAD) else {
            return Ok(None);
        };
        let answer = table.find(&tuple.pair(&session))?;
        Ok(Some(self.row(now, tuple, &session, answer.as_ref())))
    }

    /// Calls `each` with the time and each half of a session, until it says `false` or leaves an error.
    fn elements<F: Stored>(
        &self,
        table: &SessionTable<F>,
        mut each: impl FnMut(u32, &Tuple<F>, &Session<F>, &Failed) -> bool,
    ) -> Result<()>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let failed = Failed::default();
        let mut cursor = Cursor::default();
        let (mut reader, mut elements) = (table.try_clone()?, Vec::new());
        loop {
            let more = reader.read(&mut cursor, &mut elements, READ)?;
            let now = self.clock.now()?;
            for (tuple, session) in &elements {
                if session.generation == DEAD || mapping::is_key(tuple) {
                    continue;
                }
                let goes_on = each(now, tuple, session, &failed);
                if let Some(error) = failed.take() {
                    return Err(error);
                }
                if !goes_on {
                    return Ok(());
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn row<F: Family>(
        &self,
        now: u32,
        tuple: &Tuple<F>,
        session: &Session<F>,
        answer: Option<&Session<F>>,
    ) -> SessionRow {
        let counter = |session: &Session<F>| Counter { packets: session.packets, bytes: session.bytes };
        let seen = session.last_seen.max(answer.map_or(0, |answer| answer.last_seen));
        let (destination, destination_port) = destination(tuple);
        SessionRow {
            proto: tuple.proto,
            source: ip::<F>(&tuple.source),
            source_port: u16::from_be_bytes(tuple.source_port),
            translated: ip::<F>(&session.translated),
            translated_port: u16::from_be_bytes(session.translated_port),
            destination,
            destination_port,
            pool: self.pool_of(session),
            proxy: self.proxy_of(session),
            route: self.route_of(session),
            state: state(tuple.proto, session, answer),
            // Without its other half, a session is being removed.
            age: self.clock.since(now, answer.map_or(now, |answer| answer.mark)),
            idle: self.clock.since(now, seen),
            sent: counter(session),
            received: answer.map_or_else(Counter::default, counter),
        }
    }

    fn pool_of<F: Family>(&self, session: &Session<F>) -> Option<String> {
        let numbers = self.numbers();
        let counted = numbers.pool_addresses.get(&u32::from(session.pool_address));
        counted.map(|counted| counted.pool.clone())
    }

    fn proxy_of<F: Family>(&self, session: &Session<F>) -> Option<(String, IpAddr)> {
        let number = (session.pool_address & PROXIED != 0).then_some(session.pool_address & !PROXIED)?;
        self.numbers().proxy_hosts.get(&u32::from(number)).cloned()
    }

    fn route_of<F: Family>(&self, session: &Session<F>) -> Option<(String, RouteKey)> {
        let numbers = self.numbers();
        let route = numbers.routes.get(&session.counter.into());
        route.map(|route| (route.table.to_string(), route.key))
    }
}

/// What has gone wrong where there is nobody to tell.
type Failed = Cell<Option<anyhow::Error>>;

/// The inside half of a session.
struct Half<'a, F: Stored>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    observe: &'a BpfObserve,
    table: &'a SessionTable<F>,
    now: u32,
    tuple: &'a Tuple<F>,
    session: &'a Session<F>,
    failed: &'a Failed,
}

impl<F: Stored> Half<'_, F>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    fn answer(&self) -> Option<Session<F>> {
        self.table.find(&self.tuple.pair(self.session)).unwrap_or_else(|error| {
            self.failed.set(Some(error));
            None
        })
    }
}

impl<F: Stored> Glance for Half<'_, F>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    fn proto(&self) -> u8 {
        self.tuple.proto
    }

    fn source(&self) -> (IpAddr, u16) {
        (ip::<F>(&self.tuple.source), u16::from_be_bytes(self.tuple.source_port))
    }

    fn translated(&self) -> (IpAddr, u16) {
        (ip::<F>(&self.session.translated), u16::from_be_bytes(self.session.translated_port))
    }

    fn destination(&self) -> (IpAddr, u16) {
        destination(self.tuple)
    }

    fn pool(&self) -> Option<String> {
        self.observe.pool_of(self.session)
    }

    fn proxy(&self) -> Option<String> {
        self.observe.proxy_of(self.session).map(|(name, _)| name)
    }

    fn route(&self) -> Option<(String, RouteKey)> {
        self.observe.route_of(self.session)
    }

    fn state(&self) -> &'static str {
        // That of TCP is in this half.
        let answer = if self.tuple.proto == PROTO_TCP { None } else { self.answer() };
        state(self.tuple.proto, self.session, answer.as_ref())
    }

    fn row(&self) -> SessionRow {
        self.observe.row(self.now, self.tuple, self.session, self.answer().as_ref())
    }
}

/// The largest halves of one side, under the inside tuples of their sessions.
struct Largest<F: Family> {
    halves: Vec<(u64, Tuple<F>)>,
    keep: usize,
    /// Whether there were more.
    cut: bool,
}

impl<F: Family> Largest<F> {
    fn new(keep: usize) -> Self {
        Self { halves: Vec::new(), keep, cut: false }
    }

    fn offer(&mut self, weight: u64, tuple: Tuple<F>) {
        self.halves.push((weight, tuple));
        if self.halves.len() >= 2 * self.keep {
            self.halves.select_nth_unstable_by_key(self.keep - 1, |(weight, _)| Reverse(*weight));
            self.halves.truncate(self.keep);
            self.cut = true;
        }
    }

    /// The largest first.
    fn finish(mut self) -> Self {
        self.halves.sort_unstable_by_key(|(weight, _)| Reverse(*weight));
        self.cut |= self.halves.len() > self.keep;
        self.halves.truncate(self.keep);
        self
    }

    /// The weight that no half behind this place exceeds.
    fn below(&self, depth: usize) -> u64 {
        match self.halves.get(depth + 1) {
            Some((weight, _)) => *weight,
            None if self.cut => self.halves.last().map_or(0, |(weight, _)| *weight),
            None => 0,
        }
    }
}

impl Order {
    /// What a half adds to the weight of its session. `age` is that of an outside half, in nanoseconds.
    fn half<F: Family>(self, session: &Session<F>, age: impl FnOnce() -> u64) -> u64 {
        match self {
            Self::Bytes => session.bytes,
            Self::Packets => session.packets,
            Self::Age => age(),
        }
    }
}

fn ip<F: Family>(address: &F::Address) -> IpAddr {
    family::to_ip(&F::mapped(address))
}

/// Server address and port; what stands for a port of ICMP is not one.
fn destination<F: Family>(tuple: &Tuple<F>) -> (IpAddr, u16) {
    let icmp = matches!(tuple.proto, PROTO_ICMP | PROTO_ICMPV6);
    (ip::<F>(&tuple.destination), if icmp { 0 } else { u16::from_be_bytes(tuple.destination_port) })
}

/// The word for a session's state.
fn state<F: Family>(proto: u8, session: &Session<F>, answer: Option<&Session<F>>) -> &'static str {
    if proto == PROTO_TCP {
        State::from_number(session.state).name()
    } else if session.packets > 0 && answer.is_some_and(|answer| answer.packets > 0) {
        "replied"
    } else {
        "active"
    }
}
