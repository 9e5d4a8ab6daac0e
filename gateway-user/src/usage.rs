//! What `stats usage --since` needs: what the sessions between groups had carried before.
//!
//! A look at it is kept every minute. The older looks are, the fewer are kept, so that a month fits. Looks do not outlive
//! the daemon.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gateway_common::usage::Usage;
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{control::Handle, dataplane::UsageStats};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_mins(1);
/// How long looks are kept, and the time between two of that age or below.
const KEPT: [(Duration, Duration); 3] = [
    (Duration::from_hours(1), INTERVAL),
    (Duration::from_hours(24), Duration::from_mins(15)),
    (Duration::from_hours(31 * 24), Duration::from_hours(6)),
];
/// Ticks of a clock do not come to the millisecond.
const JITTER: Duration = Duration::from_secs(5);
/// Pairs of groups in all looks together: 18 MiB.
const MAX_PAIRS: usize = 262_144;

/// What was carried before.
#[derive(Default)]
pub struct History(Mutex<Vec<Look>>);

/// What had been carried at a time.
struct Look {
    at: Instant,
    time: Timestamp,
    stats: Arc<[UsageStats]>,
}

/// Looks every minute until `stop`, and at once.
pub async fn run(history: Arc<History>, control: Handle, stop: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match control.observe().usage() {
            Ok(stats) => history.note(Instant::now(), Timestamp::now(), stats),
            Err(error) => warn!("cannot look at the usage: {error:#}"),
        }
    }
}

impl History {
    /// Keeps a look, and fewer of the old ones.
    pub fn note(&self, now: Instant, time: Timestamp, stats: Arc<[UsageStats]>) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before: Option<Instant> = None;
        looks.retain(|look| {
            let age = now.saturating_duration_since(look.at);
            let Some((_, apart)) = KEPT.iter().find(|(oldest, _)| age <= *oldest) else { return false };
            let keep =
                before.is_none_or(|before| look.at.saturating_duration_since(before) + JITTER >= *apart);
            if keep {
                before = Some(look.at);
            }
            keep
        });
        // Where nothing has happened, all looks are one.
        let same = looks.last().filter(|last| last.stats == stats).map(|last| Arc::clone(&last.stats));
        looks.push(Look { at: now, time, stats: same.unwrap_or(stats) });
        let mut pairs: usize = looks.iter().map(|look| look.stats.len()).sum();
        let over = looks.iter().take_while(|look| {
            let over = pairs > MAX_PAIRS;
            pairs = pairs.saturating_sub(look.stats.len());
            over
        });
        let over = over.count();
        looks.drain(..over);
    }

    /// What has been carried in the time that is named, where `stats` has been carried by now; and from when on that is:
    /// from the last look before, or the first one there is.
    pub fn since(
        &self,
        now: Instant,
        time: Timestamp,
        since: Duration,
        stats: &[UsageStats],
    ) -> (Timestamp, Vec<UsageStats>) {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = looks.iter().rfind(|look| now.saturating_duration_since(look.at) >= since);
        match old.or(looks.first()) {
            Some(look) => (look.time, difference(&look.stats, stats)),
            None => (time, Vec::new()),
        }
    }
}

/// What was carried between two looks, of the pairs where it is anything.
fn difference(before: &[UsageStats], after: &[UsageStats]) -> Vec<UsageStats> {
    let before: HashMap<(&str, &str), &Usage> =
        before.iter().map(|stats| ((&*stats.source, &*stats.destination), &stats.usage)).collect();
    let carried = |stats: &UsageStats| {
        let known = before.get(&(&*stats.source, &*stats.destination));
        // A group of the same name that was removed in between began anew.
        let known = known.filter(|known| known.zip(&stats.usage, u64::max) == stats.usage);
        let usage = known.map_or(stats.usage, |known| stats.usage.zip(known, u64::wrapping_sub));
        UsageStats { usage, ..stats.clone() }
    };
    after.iter().map(carried).filter(|stats| stats.usage != Usage::default()).collect()
}

#[cfg(test)]
mod tests {
    use gateway_common::counter::Counter;

    use super::*;

    fn stats(source: &str, bytes: u64) -> UsageStats {
        let sent = Counter { packets: bytes / 100, bytes };
        let usage = Usage { sent, received: Counter::default(), connections: 1 };
        UsageStats { source: source.into(), destination: "other".into(), usage }
    }

    /// A history of one look a minute; the numbers are minutes, and bytes.
    fn minutes(start: Instant, count: u32) -> History {
        let history = History::default();
        for minute in 0..=count {
            let at = start + minute * INTERVAL;
            let time = Timestamp::from_second(i64::from(minute) * 60).expect("a time");
            history.note(at, time, Arc::from([stats("a", u64::from(minute) * 100)]));
        }
        history
    }

    fn ask(history: &History, now: Instant, minute: u32, minutes: u32) -> (i64, Vec<u64>) {
        let time = Timestamp::from_second(i64::from(minute) * 60).expect("a time");
        let present = [stats("a", u64::from(minute) * 100)];
        let (from, carried) = history.since(now, time, minutes * INTERVAL, &present);
        (from.as_second() / 60, carried.iter().map(|stats| stats.usage.sent.bytes).collect())
    }

    #[test]
    fn what_was_carried_is_the_difference_to_the_look_before() {
        let start = Instant::now();
        let history = minutes(start, 30);
        let now = start + 30 * INTERVAL;
        assert_eq!(ask(&history, now, 30, 10), (20, vec![1_000]));
        assert_eq!(ask(&history, now + INTERVAL / 2, 30, 10), (20, vec![1_000]));
        // Nothing is made up of the time before the first look.
        assert_eq!(ask(&history, now, 30, 600), (0, vec![3_000]));
        assert_eq!(ask(&history, now, 30, 0), (30, vec![]));
    }

    #[test]
    fn the_older_looks_are_the_fewer_are_kept() {
        let start = Instant::now();
        let days = 40;
        let count = days * 24 * 60;
        let history = minutes(start, count);
        let now = start + count * INTERVAL;
        let kept = history.0.lock().expect("no panic").len();
        assert!((200..=300).contains(&kept), "{kept}");
        for (asked, slack) in [(30, 1), (60, 15), (600, 16), (1_400, 30), (10_000, 380), (43_000, 720)] {
            let (from, _) = ask(&history, now, count, asked);
            let age = i64::from(count) - from;
            let asked = i64::from(asked);
            assert!((asked..=asked + slack).contains(&age), "{age} minutes, asked for {asked}");
        }
    }

    #[test]
    fn a_group_that_began_anew_counts_from_there() {
        assert_eq!(difference(&[stats("a", 900)], &[stats("a", 300)]), [stats("a", 300)]);
        let known = difference(&[stats("a", 900)], &[stats("a", 900), stats("b", 100)]);
        assert_eq!(known, [stats("b", 100)]);
    }

    #[test]
    fn memory_is_bounded() {
        let history = History::default();
        let start = Instant::now();
        let many: Vec<_> = (0..10_000).map(|number| stats(&number.to_string(), 100)).collect();
        for minute in 0..60_u32 {
            let mut many = many.clone();
            many.push(stats("a", u64::from(minute)));
            history.note(start + minute * INTERVAL, Timestamp::UNIX_EPOCH, many.into());
        }
        let looks = history.0.lock().expect("no panic");
        assert!(looks.iter().map(|look| look.stats.len()).sum::<usize>() <= MAX_PAIRS);
        assert!(looks.len() > 20);
    }
}
