//! The user side of map `RECORDS`.

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use gateway_common::{
    family,
    record::{Ending, Kind, Record},
};
use jiff::{SignedDuration, Timestamp};

use super::{
    clock::{self, Scale},
    names::Meanings,
};
use crate::dataplane::{LogEvent, Logged, Records};

/// Takes records out of the ring buffer. There is one reader; the place that it has come to is in the map, so that the
/// next daemon goes on there.
pub(super) struct BpfRecords {
    ring: RingBuf<MapData>,
    meanings: Meanings,
    scale: Scale,
}

impl BpfRecords {
    pub(super) fn new(ring: RingBuf<MapData>, meanings: Meanings, scale: Scale) -> Self {
        Self { ring, meanings, scale }
    }
}

impl Records for BpfRecords {
    fn read(&mut self, most: usize, into: &mut Vec<Logged>) -> Result<usize> {
        let now = Timestamp::now();
        let monotonic = clock::monotonic()?;
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
            let ago = SignedDuration::from_nanos((monotonic.saturating_sub(record.time)).cast_signed());
            let time = now - ago;
            let age = self.scale.duration(record.now.saturating_sub(record.start));
            into.extend(logged(&record, time, time - age, &self.meanings));
        }
        Ok(count)
    }
}

/// The record in `bytes`.
fn plain(bytes: &[u8]) -> Option<Record> {
    // SAFETY: there are as many bytes as a record has, and any of them are one.
    (bytes.len() == size_of::<Record>()).then(|| unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() })
}

fn logged(record: &Record, time: Timestamp, start: Timestamp, meanings: &Meanings) -> Option<Logged> {
    let event = match Kind::from_number(record.kind)? {
        Kind::Open => LogEvent::Open,
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
        translated: (record.proxied == 0).then(|| end(record.translated, record.translated_port)),
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
