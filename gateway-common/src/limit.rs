//! Limits of what an address of a pool opens towards one destination, or of what a source opens: so many new
//! connections a second, so many at a time.
//!
//! The rate is kept by the generic cell rate algorithm (ITU-T I.371, annex A, "virtual scheduling"): one word says
//! when the bucket is full again, and moves by one interval with each connection. So one compare and swap takes a
//! token, and nobody has to fill the bucket.

use crate::pod;

/// A limit. 0 stands for "no limit" wherever a user writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Time between two connections at the highest rate, nanoseconds; 0: any rate.
    pub interval: u32,
    /// Connections at a time; 0: any number.
    pub concurrent: u32,
    /// How far [`Bucket::full`] may be ahead of the clock when a connection is admitted, nanoseconds: the burst but one,
    /// in intervals.
    pub ahead: u64,
}

/// What is known of a destination or a source. Value of `DESTINATIONS`, whose key is a [`crate::ports::Destination`],
/// and of `SOURCES`, whose key is a [`crate::source::Source`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When the bucket is full again, nanoseconds of the monotonic clock.
    pub full: u64,
    /// The number of sessions there are, or [`GONE`], below a hash of the key ([`crate::ports::Destination::tag`],
    /// [`crate::source::Source::tag`]): whoever changes the number changes no other bucket's.
    pub sessions: u64,
    /// Connections that were admitted.
    pub admitted: u64,
    /// Connections that were refused because of the rate.
    pub over_rate: u64,
    /// Connections that were refused because there were too many at the time.
    pub over_concurrent: u64,
}

impl Bucket {
    /// The number of sessions; 0 where the bucket is being removed.
    #[inline(always)]
    #[must_use]
    pub const fn count(&self) -> u32 {
        match self.sessions as u32 {
            GONE => 0,
            count => count,
        }
    }
}

/// In place of the number of sessions: the bucket is being removed.
pub const GONE: u32 = u32::MAX;

/// Elements of `DESTINATIONS`, and of `SOURCES`, for so many sessions: as many, and some for those of small gateways that
/// were there a moment ago.
#[must_use]
pub const fn capacity(sessions: u32) -> u32 {
    if sessions < 65_536 { 65_536 } else { sessions }
}

/// Highest number of connections at a time that can be configured.
pub const MAX_CONCURRENT: u32 = (1 << 31) - 1;
/// Highest rate that can be configured, connections per second.
pub const MAX_RATE: u32 = 10_000_000;
/// Largest burst that can be configured.
pub const MAX_BURST: u32 = 100_000_000;

impl Limit {
    /// `rate` connections per second, of which `burst` may come at once, and `concurrent` at a time.
    #[must_use]
    pub const fn new(rate: u32, burst: u32, concurrent: u32) -> Self {
        let interval = match 1_000_000_000u32.checked_div(rate) {
            Some(interval) => interval,
            None => 0,
        };
        Self { interval, concurrent, ahead: interval as u64 * burst.saturating_sub(1) as u64 }
    }

    /// Takes a token of a bucket that is full at `full`: when it is full then. `None`: there is no token.
    #[inline(always)]
    #[must_use]
    pub const fn take(&self, full: u64, now: u64) -> Option<u64> {
        let full = if full < now { now } else { full };
        if self.interval != 0 && full - now > self.ahead { None } else { Some(full + self.interval as u64) }
    }

    /// How many tokens a bucket has that is full at `full`; `None`: any number.
    #[must_use]
    pub const fn tokens(&self, full: u64, now: u64) -> Option<u32> {
        match (self.ahead + self.interval as u64)
            .saturating_sub(full.saturating_sub(now))
            .checked_div(self.interval as u64)
        {
            Some(tokens) => Some(tokens as u32),
            None => None,
        }
    }

    /// Whether there is room for one more beside `sessions`.
    #[inline(always)]
    #[must_use]
    pub const fn has_room(&self, sessions: u32) -> bool {
        (self.concurrent == 0 || sessions < self.concurrent) && sessions < MAX_CONCURRENT
    }
}

const _: () = assert!(size_of::<Limit>() == 16);
const _: () = assert!(size_of::<Bucket>() == 40);

pod!(Limit, Bucket);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// How many of the connections that come every `gap` nanoseconds until `end` are admitted.
    fn admitted(limit: Limit, gap: u64, end: u64) -> u64 {
        let (mut full, mut count, mut now) = (0, 0, SECOND);
        while now < SECOND + end {
            if let Some(next) = limit.take(full, now) {
                full = next;
                count += 1;
            }
            now += gap;
        }
        count
    }

    #[test]
    fn a_burst_and_then_the_rate_is_admitted() {
        for (rate, burst) in [(100, 100), (900, 900), (900, 10), (50_000, 50_000), (7, 3)] {
            let count = admitted(Limit::new(rate, burst, 0), SECOND / 200_000, 10 * SECOND);
            let wanted = u64::from(burst) + 10 * u64::from(rate);
            assert!(
                count.abs_diff(wanted) <= 1 + wanted / 1_000,
                "{rate}/s, burst {burst}: {count} of {wanted}"
            );
        }
    }

    #[test]
    fn without_a_rate_all_are_admitted() {
        assert_eq!(admitted(Limit::new(0, 0, 0), 1_000, SECOND / 1_000), 1_000);
        assert!(Limit::new(0, 0, 0).has_room(1_000_000));
    }

    #[test]
    fn there_is_room_up_to_the_limit() {
        let limit = Limit::new(0, 0, 2);
        assert!(limit.has_room(1) && !limit.has_room(2));
    }

    proptest! {
        #[test]
        fn no_second_sees_more_than_burst_and_rate(
            rate in 1u32..2_000,
            burst in 1u32..2_000,
            gaps in proptest::collection::vec(0u64..5_000_000, 1..2_000),
        ) {
            let limit = Limit::new(rate, burst, 0);
            let (mut full, mut now) = (0, SECOND);
            let mut times = Vec::new();
            for gap in gaps {
                now += gap;
                if let Some(next) = limit.take(full, now) {
                    full = next;
                    times.push(now);
                }
            }
            for (at, begin) in times.iter().enumerate() {
                let within = times[at..].iter().take_while(|time| **time < begin + SECOND).count() as u64;
                // The interval is rounded down to nanoseconds.
                let most = u64::from(burst) + SECOND / u64::from(limit.interval) + 1;
                prop_assert!(within <= most, "{within} of {most}");
            }
        }
    }
}
