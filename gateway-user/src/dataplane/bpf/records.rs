//! The user side of maps `RECORDS` and `DENIED`.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use gateway_common::{
    DropReason,
    counter::Counter,
    family::{self, MappedAddress},
    record::{DeniedKey, Ending, Kind, PERIOD_SHIFT, Record, period},
};
use jiff::Timestamp;

use super::{
    clock::{self, Clock},
    names::Meanings,
    pins::Pins,
    sys::{self, Cursor},
};
use crate::dataplane::{LogEvent, Logged, Records};

/// Elements that one call reads.
const READ: usize = 4_096;
/// How often dropped packets are asked for that have no record of their own.
const DENIED_INTERVAL: Duration = Duration::from_secs(1);

/// Takes records out of the ring buffer. There is one reader; the place that it has come to is in the map, so that the
/// next daemon goes on there.
pub(super) struct BpfRecords {
    ring: RingBuf<MapData>,
    meanings: Meanings,
    clock: Clock,
    denied: OwnedFd,
    /// When `DENIED` was last looked at.
    looked: Instant,
}

impl BpfRecords {
    pub(super) fn new(pins: &Pins, meanings: Meanings, clock: Clock) -> Result<Self> {
        let (ring, denied) = (pins.open("RECORDS")?, sys::open_pin(&pins.map("DENIED"))?);
        Ok(Self { ring, meanings, clock, denied, looked: Instant::now() })
    }

    /// Makes records of the packets that were dropped in periods that are over, but for those that have their own.
    fn read_denied(&self, now: Timestamp, into: &mut Vec<Logged>) -> Result<()> {
        let tick = self.clock.now()?;
        let (mut cursor, mut keys, mut values) = (Cursor::default(), Vec::new(), Vec::<Counter>::new());
        let (mut all, mut more) = (Vec::new(), true);
        while more {
            more = sys::lookup_batch(self.denied.as_fd(), &mut cursor, &mut keys, &mut values, READ)
                .context("cannot read map DENIED")?;
            all.extend(keys.drain(..).zip(values.drain(..)));
        }
        // A packet may have read the clock a moment ago.
        let present = period(tick.saturating_sub(1));
        all.retain(|(key, _): &(DeniedKey, Counter)| key.period < present);
        for (key, sent) in all {
            sys::delete(self.denied.as_fd(), &key).context("cannot clear map DENIED")?;
            if sent.packets == 0 {
                continue;
            }
            let start = key.period << PERIOD_SHIFT;
            let end = |address, port| (family::to_ip(address), u16::from_be_bytes(port));
            into.push(Logged {
                event: LogEvent::Deny {
                    reason: DropReason::from_number(key.reason).unwrap_or(DropReason::Internal),
                    sent,
                },
                time: to_microseconds(now),
                start: to_microseconds(ago(now, self.clock.since(tick, start))),
                proto: key.proto,
                source: end(&key.source, [0; 2]),
                translated: None,
                destination: end(&key.destination, key.destination_port),
                names: self.meanings.of(key.log),
            });
        }
        Ok(())
    }
}

impl Records for BpfRecords {
    fn read(&mut self, most: usize, into: &mut Vec<Logged>) -> Result<usize> {
        let now = Timestamp::now();
        let monotonic = clock::monotonic()?;
        if self.looked.elapsed() >= DENIED_INTERVAL {
            self.looked = Instant::now();
            self.read_denied(now, into)?;
        }
        let mut count = 0;
        while count < most
            && let Some(item) = self.ring.next()
        {
            count += 1;
            let Some(record) = plain(&item) else {
                tracing::warn!(bytes = item.len(), "map RECORDS holds a record of another size");
                continue;
            };
            drop(item);
            // The clock of the host may be set at any time; that of the kernel goes on.
            let time = ago(now, Duration::from_nanos(monotonic.saturating_sub(record.time)));
            let age = self.clock.since(record.now, record.start);
            into.extend(logged(&record, time, ago(time, age), &self.meanings));
        }
        Ok(count)
    }
}

/// The time so long before `time`.
fn ago(time: Timestamp, age: Duration) -> Timestamp {
    time.checked_sub(age).unwrap_or(time)
}

/// The record in `bytes`.
pub(super) fn plain(bytes: &[u8]) -> Option<Record> {
    // SAFETY: there are as many bytes as a record has, and any of them are one.
    (bytes.len() == size_of::<Record>()).then(|| unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() })
}

fn logged(record: &Record, time: Timestamp, start: Timestamp, meanings: &Meanings) -> Option<Logged> {
    let event = match Kind::from_number(record.kind)? {
        Kind::Open => LogEvent::Open,
        Kind::Deny => LogEvent::Deny {
            reason: DropReason::from_number(record.reason).unwrap_or(DropReason::Internal),
            sent: record.sent,
        },
        Kind::Close => {
            let reason = Ending::from_number(record.reason).map_or("unknown", Ending::name);
            LogEvent::Close { reason, sent: record.sent, received: record.received }
        }
    };
    let end = |address, port| (family::to_ip(&address), u16::from_be_bytes(port));
    Some(Logged {
        event,
        time: to_microseconds(time),
        start: to_microseconds(start),
        proto: record.proto,
        source: end(record.source, record.source_port),
        translated: (record.proxied == 0 && record.translated != MappedAddress::default())
            .then(|| end(record.translated, record.translated_port)),
        destination: end(record.destination, record.destination_port),
        names: meanings.of(record.log),
    })
}

/// Nobody reads more digits.
fn to_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// Records that found no room in the ring buffer.
pub(super) fn lost(map: &PerCpuArray<MapData, u64>) -> Result<u64> {
    let values = map.get(&0, 0).context("cannot read map RECORDS_LOST")?;
    Ok(values.iter().sum())
}
