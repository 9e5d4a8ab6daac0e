//! When to tell the data plane: soon after a change, and not all the time while changes go on.

use std::time::{Duration, Instant};

/// Changes that come together are told together: `ip link set up` alone makes half a dozen events.
const TOGETHER: Duration = Duration::from_millis(20);
/// Every telling makes each session look up its next hop again with its next packet. While changes go on
/// (a routing protocol at work), they are told at most this often.
const BUSY: Duration = Duration::from_millis(500);

/// Decides when the next telling is due.
#[derive(Debug)]
pub(super) struct Pace {
    due: Option<Instant>,
    last: Option<Instant>,
    gap: Duration,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { due: None, last: None, gap: TOGETHER }
    }

    /// Something changed.
    pub(super) fn poke(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |last| last + self.gap);
        self.due.get_or_insert_with(|| earliest.max(now + TOGETHER));
    }

    /// Something changed that cannot wait.
    pub(super) fn rush(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// When to tell, if there is something to tell.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It was told.
    pub(super) fn done(&mut self, now: Instant) {
        let busy = self.last.is_some_and(|last| now.duration_since(last) < 2 * self.gap);
        self.gap = if busy { (2 * self.gap).min(BUSY) } else { TOGETHER };
        self.last = Some(now);
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tellings of one second in which something changes every `every`.
    fn tellings(every: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let mut pace = Pace::new();
        let mut told = Vec::new();
        let mut change = Duration::ZERO;
        for millisecond in 0..3_000 {
            let at = Duration::from_millis(millisecond);
            if at >= change {
                pace.poke(start + at);
                change += every;
            }
            if pace.due().is_some_and(|due| due <= start + at) {
                pace.done(start + at);
                told.push(at);
            }
        }
        told
    }

    #[test]
    fn a_single_change_is_told_after_the_debounce() {
        assert_eq!(tellings(Duration::from_secs(10)), [TOGETHER]);
    }

    #[test]
    fn what_cannot_wait_is_told_now_and_not_again() {
        let now = Instant::now();
        let mut pace = Pace::new();
        pace.poke(now);
        pace.rush(now);
        assert_eq!(pace.due(), Some(now));
        pace.poke(now);
        pace.done(now);
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn rare_changes_are_all_told_at_once() {
        let told = tellings(Duration::from_secs(1));
        assert_eq!(told, [20, 1_020, 2_020].map(Duration::from_millis));
    }

    #[test]
    fn a_storm_is_told_twice_a_second() {
        let told = tellings(Duration::from_millis(1));
        assert_eq!(told[0], TOGETHER);
        assert!(told.len() <= 12, "{told:?}");
        let [.., before, last] = told[..] else { panic!("{told:?}") };
        assert_eq!(last, before + BUSY);
    }
}
