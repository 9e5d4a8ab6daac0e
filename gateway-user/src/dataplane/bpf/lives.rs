//! The user side of maps `LIVES` and `LIVES_LOST`: sessions that open and end, for those who want to see them.
//!
//! The packet path shows all sessions while anybody wants to see one. Who wants which is asked here, before anything is
//! made of a record: there may be a million of them a second.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use gateway_common::{
    family,
    proxy::PROXIED,
    record::{Ending, Kind, Record},
};
use jiff::Timestamp;

use super::{
    clock::{self, Clock},
    numbers::Numbers,
    pins::Pins,
    records,
};
use crate::dataplane::watch::{Filter, Life, MOST};

/// Time in which [`Filter::rate`] sessions are told.
const SECOND: Duration = Duration::from_secs(1);

/// Who is shown sessions.
pub(super) struct Lives {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    seats: [Seat; MOST],
}

/// Somebody who may want to see sessions.
#[derive(Default)]
struct Seat {
    filter: Option<Filter>,
    /// Name of [`Filter::ingress`].
    ingress: Option<String>,
    /// Sessions of this second.
    since: Option<Instant>,
    count: u32,
    /// What the packet path had lost when the seat was taken.
    known: u64,
    /// What was lost until then, and what was above the rate.
    lost: u64,
}

impl Lives {
    pub(super) fn new(pins: &Pins) -> anyhow::Result<Self> {
        Ok(Self { ring: pins.open("LIVES")?, lost: pins.open("LIVES_LOST")?, seats: Default::default() })
    }

    /// Says who watches what.
    pub(super) fn set(&mut self, filters: &[Option<Filter>; MOST], numbers: &Numbers) -> anyhow::Result<()> {
        let lost = self.lost_of_all()?;
        for (seat, filter) in self.seats.iter_mut().zip(filters) {
            let filter = filter.as_ref().filter(|filter| filter.sessions());
            if seat.filter.as_ref() == filter {
                continue;
            }
            seat.lost = seat.lost_by(lost);
            seat.known = lost;
            seat.ingress = filter.and_then(|filter| filter.ingress).map(|ifindex| {
                let known = numbers.interfaces.iter().find(|interface| interface.index == ifindex);
                known.map(|known| known.name.clone()).unwrap_or_default()
            });
            seat.filter = filter.cloned();
        }
        Ok(())
    }

    /// Adds sessions that somebody wants to see, as [`crate::dataplane::watch::Watchers::read`] does.
    pub(super) fn read(
        &mut self,
        most: usize,
        clock: &Clock,
        numbers: &Numbers,
        mut add: impl FnMut(u32, Arc<Life>),
    ) -> anyhow::Result<usize> {
        let (now, monotonic, instant) = (Timestamp::now(), clock::monotonic()?, Instant::now());
        let mut count = 0;
        while count < most
            && let Some(item) = self.ring.next()
        {
            count += 1;
            let Some((record, Ok(ending))) = records::plain(&item).map(|record| (record, ending_of(&record)))
            else {
                tracing::warn!(bytes = item.len(), "map LIVES holds something that makes no sense");
                continue;
            };
            drop(item);
            let whom = self
                .seats
                .iter_mut()
                .zip(0..)
                .filter_map(|(seat, number)| {
                    seat.takes(&record, ending, numbers, instant).then_some(1 << number)
                })
                .sum();
            if whom == 0 {
                continue;
            }
            let age = Duration::from_nanos(monotonic.saturating_sub(record.time));
            let time = now.checked_sub(age).unwrap_or(now);
            let start = time.checked_sub(clock.since(record.now, record.start)).unwrap_or(time);
            add(whom, Arc::new(life(numbers, &record, ending, (start, time))));
        }
        Ok(count)
    }

    /// What each should have seen and has not.
    pub(super) fn lost(&self) -> anyhow::Result<[u64; MOST]> {
        let lost = self.lost_of_all()?;
        Ok(std::array::from_fn(|number| self.seats[number].lost_by(lost)))
    }

    fn lost_of_all(&self) -> anyhow::Result<u64> {
        let values = self.lost.get(&0, 0).context("cannot read map LIVES_LOST")?;
        Ok(values.iter().sum())
    }
}

impl Seat {
    /// What is lost by now, `lost` of it by the packet path since the beginning.
    fn lost_by(&self, lost: u64) -> u64 {
        self.lost + if self.filter.is_some() { lost.saturating_sub(self.known) } else { 0 }
    }

    /// Whether this session is to be shown; counts it where there were too many in this second.
    fn takes(&mut self, record: &Record, ending: Option<Ending>, numbers: &Numbers, now: Instant) -> bool {
        let Some(filter) = &self.filter else { return false };
        let server = (ip(record.destination), u16::from_be_bytes(record.destination_port));
        if !filter.wants(ending, record.proto, ip(record.source), server) {
            return false;
        }
        if let Some(wanted) = &self.ingress
            && numbers.slots.get(&record.log.into()) != Some(wanted)
        {
            return false;
        }
        if self.since.is_none_or(|since| now.duration_since(since) >= SECOND) {
            (self.since, self.count) = (Some(now), 0);
        }
        if self.count >= filter.rate {
            self.lost += 1;
            return false;
        }
        self.count += 1;
        true
    }
}

fn ip(address: family::MappedAddress) -> IpAddr {
    family::to_ip(&address)
}

/// A record that is of no session.
struct Senseless;

/// How a session has ended; `None`: it has opened.
fn ending_of(record: &Record) -> Result<Option<Ending>, Senseless> {
    match Kind::from_number(record.kind) {
        Some(Kind::Open) => Ok(None),
        Some(Kind::Close) => Ending::from_number(record.reason).map(Some).ok_or(Senseless),
        Some(Kind::Deny) | None => Err(Senseless),
    }
}

fn life(
    numbers: &Numbers,
    record: &Record,
    ending: Option<Ending>,
    (start, time): (Timestamp, Timestamp),
) -> Life {
    let end = |address, port| (ip(address), u16::from_be_bytes(port));
    let peer = u32::from(record.pool_address & !PROXIED);
    let target = if record.proxied == 0 {
        numbers.pool_addresses.get(&peer).map(|counted| format!("pool {}", counted.pool))
    } else {
        numbers.proxy_hosts.get(&peer).map(|(proxy, _)| format!("proxy {proxy}"))
    };
    let number = u32::from(record.counter);
    let counted = numbers.routes.get(&number);
    let shared = || numbers.shared.get(&number).map(|(table, _)| table.clone());
    Life {
        time,
        start,
        ending,
        proto: record.proto,
        source: end(record.source, record.source_port),
        translated: (record.proxied == 0).then(|| end(record.translated, record.translated_port)),
        destination: end(record.destination, record.destination_port),
        ingress: numbers.slots.get(&record.log.into()).cloned(),
        target,
        table: counted.map(|counted| counted.table.to_string()).or_else(shared),
        route: counted.map(|counted| counted.key),
        sent: record.sent,
        received: record.received,
    }
}
