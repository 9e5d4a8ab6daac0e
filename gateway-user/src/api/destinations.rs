//! `stats destinations`: the fullest destinations, how fast they fill, and who fills them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use gateway_common::parse::{PROTO_ICMP, PROTO_ICMPV6};

use super::{
    sessions::{self, Page},
    types::{DestinationQuery, DestinationRow, Endpoint, SourceShare},
};
use crate::dataplane::{DestinationStats, Observe};

/// Time between two looks, to see how fast destinations fill.
const BETWEEN: Duration = Duration::from_secs(1);

/// Address of a pool, server, port and protocol.
type Key = (IpAddr, IpAddr, u16, u8);

/// The fullest destinations; of those that are as full, the ones that were refused most. Takes a second, unless there are
/// none.
pub(super) fn show(observe: &dyn Observe, query: &DestinationQuery) -> anyhow::Result<Page<DestinationRow>> {
    let limit = query.limit.unwrap_or(DestinationQuery::DEFAULT_LIMIT) as usize;
    let most = query.sources.unwrap_or(DestinationQuery::DEFAULT_SOURCES) as usize;
    let began = Instant::now();
    let before: HashMap<Key, (u64, u32)> =
        observe.destinations()?.iter().map(|stats| (key(stats), (stats.admitted, stats.sessions))).collect();
    if !before.is_empty() {
        thread::sleep(BETWEEN);
    }
    let stats = observe.destinations()?;
    let time = began.elapsed();
    let total = stats.len() as u64;
    let fullest = fullest(stats, limit);
    let mut sources = if most == 0 { HashMap::new() } else { sources(observe, &fullest)? };
    let rows = fullest.into_iter().map(|stats| {
        let of_row = sources.remove(&key(&stats)).unwrap_or_default();
        let then = before.get(&key(&stats)).copied().unwrap_or_default();
        row(stats, then, time, largest(of_row, most))
    });
    Ok(Page { items: rows.collect(), total })
}

fn key(stats: &DestinationStats) -> Key {
    (stats.address, stats.destination, stats.port, stats.proto)
}

/// The `limit` fullest, the fullest first.
fn fullest(mut stats: Vec<DestinationStats>, limit: usize) -> Vec<DestinationStats> {
    let fill = |row: &DestinationStats| {
        let full = u64::from(row.sessions) * 1_000_000 / u64::from(row.room.max(1));
        Reverse((full, row.over_rate + row.over_concurrent, row.admitted))
    };
    stats.sort_by(|a, b| {
        let key = |row: &DestinationStats| (row.destination, row.port, row.proto, row.address);
        fill(a).cmp(&fill(b)).then_with(|| key(a).cmp(&key(b)))
    });
    stats.truncate(limit);
    stats
}

/// The sessions of each source towards these destinations.
fn sources(
    observe: &dyn Observe,
    destinations: &[DestinationStats],
) -> anyhow::Result<HashMap<Key, BTreeMap<IpAddr, u64>>> {
    // Sessions of ICMP are shown without the number that stands for a port.
    let keys: HashMap<Key, Key> = destinations
        .iter()
        .map(|stats| {
            let port = if matches!(stats.proto, PROTO_ICMP | PROTO_ICMPV6) { 0 } else { stats.port };
            ((stats.address, stats.destination, port, stats.proto), key(stats))
        })
        .collect();
    let mut sources: HashMap<Key, BTreeMap<IpAddr, u64>> = HashMap::new();
    if destinations.iter().all(|stats| stats.sessions == 0) {
        return Ok(sources);
    }
    observe.sessions(
        &mut |session| {
            let (server, port) = session.destination();
            if let Some(key) = keys.get(&(session.translated().0, server, port, session.proto())) {
                *sources.entry(*key).or_default().entry(session.source().0).or_default() += 1;
            }
            false
        },
        0,
    )?;
    Ok(sources)
}

/// The sources with most sessions, the one with most first.
fn largest(sources: BTreeMap<IpAddr, u64>, most: usize) -> Vec<SourceShare> {
    let mut sources: Vec<_> =
        sources.into_iter().map(|(address, sessions)| SourceShare { address, sessions }).collect();
    sources.sort_by_key(|source| Reverse(source.sessions));
    sources.truncate(most);
    sources
}

/// `then` are the connections that had been admitted, and the sessions that there were, `time` ago.
fn row(
    stats: DestinationStats,
    then: (u64, u32),
    time: Duration,
    sources: Vec<SourceShare>,
) -> DestinationRow {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    // Where the bucket is a new one, all that it has admitted came since.
    let admitted = stats.admitted.checked_sub(then.0).unwrap_or(stats.admitted);
    let more = u64::from(stats.sessions.saturating_sub(then.1));
    let headroom = u64::from(stats.room.saturating_sub(stats.sessions));
    DestinationRow {
        pool: stats.pool,
        address: stats.address,
        proto: sessions::proto(stats.proto),
        destination: Endpoint { address: stats.destination, port: stats.port },
        sessions: stats.sessions.into(),
        room: stats.room.into(),
        headroom,
        connections_per_second: (admitted * 1_000 + milliseconds / 2) / milliseconds,
        exhausted_in: (headroom * milliseconds).checked_div(more).map(|left| left / 1_000),
        tokens: stats.tokens.map(u64::from),
        admitted: stats.admitted,
        over_rate: stats.over_rate,
        over_concurrent: stats.over_concurrent,
        sources,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(port: u16, sessions: u32, admitted: u64) -> DestinationStats {
        DestinationStats {
            pool: "nat".to_owned(),
            address: [198, 51, 100, 10].into(),
            destination: [203, 0, 113, 10].into(),
            port,
            proto: 6,
            sessions,
            room: 1_000,
            tokens: None,
            admitted,
            over_rate: 0,
            over_concurrent: 0,
        }
    }

    #[test]
    fn a_destination_that_fills_says_when_it_is_full() {
        let filling = row(stats(443, 400, 900), (700, 300), Duration::from_secs(2), Vec::new());
        assert_eq!((filling.headroom, filling.connections_per_second), (600, 100));
        assert_eq!(filling.exhausted_in, Some(12));
        let steady = row(stats(443, 300, 900), (700, 300), Duration::from_secs(1), Vec::new());
        assert_eq!((steady.connections_per_second, steady.exhausted_in), (200, None));
        let full = row(stats(443, 1_000, 900), (700, 900), Duration::from_secs(1), Vec::new());
        assert_eq!((full.headroom, full.exhausted_in), (0, Some(0)));
        let anew = row(stats(443, 5, 5), (700, 300), Duration::from_secs(1), Vec::new());
        assert_eq!((anew.connections_per_second, anew.exhausted_in), (5, None));
    }

    #[test]
    fn the_fullest_destinations_and_the_largest_sources_come_first() {
        let rows = fullest(vec![stats(1, 5, 0), stats(2, 500, 0), stats(3, 50, 0)], 2);
        assert_eq!(rows.iter().map(|row| row.port).collect::<Vec<_>>(), [2, 3]);
        let source = |host: u8| IpAddr::from([10, 0, 1, host]);
        let sources = largest(BTreeMap::from([(source(2), 1), (source(3), 9), (source(4), 4)]), 2);
        let addresses: Vec<_> = sources.iter().map(|share| (share.address, share.sessions)).collect();
        assert_eq!(addresses, [(source(3), 9), (source(4), 4)]);
    }
}
