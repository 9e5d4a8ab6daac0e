//! From the outcomes of checks to what a host is taken to be.
//!
//! A host that says no (a refused connection) is down at once: its flows fail until others get them. One that says
//! nothing may have lost a packet: it is down when two checks in a row had no answer. One that is down is up again
//! when two checks in a row succeed, so that one that flaps is not given flows each time. What nothing is known of is
//! up with the first success.

use std::time::Instant;

use super::{HealthState, HostHealth, probe::Outcome};

/// Checks without an answer, in a row, that make a host down.
const FALL: u32 = 2;
/// Successes in a row that make it up again.
const RISE: u32 = 2;

/// The judge of one host.
#[derive(Debug)]
pub(super) struct Judge {
    health: HostHealth,
    silences: u32,
    successes: u32,
}

impl Judge {
    /// A judge who has heard nothing yet.
    pub(super) fn new(state: HealthState) -> Self {
        let health = HostHealth { state, since: Instant::now(), error: None };
        Self { health, silences: 0, successes: 0 }
    }

    /// What the host is taken to be.
    pub(super) fn health(&self) -> HostHealth {
        self.health.clone()
    }

    /// Takes an outcome into account.
    pub(super) fn hear(&mut self, outcome: Outcome, now: Instant) {
        self.successes = if outcome == Outcome::Alive { self.successes + 1 } else { 0 };
        self.silences = match &outcome {
            Outcome::Silent(_) => self.silences + 1,
            // It says nothing of the host.
            Outcome::Inconclusive(_) => self.silences,
            Outcome::Alive | Outcome::Refused(_) => 0,
        };
        let known_down = self.health.state == HealthState::Down;
        let state = match &outcome {
            Outcome::Alive if !known_down || self.successes >= RISE => HealthState::Up,
            Outcome::Refused(_) => HealthState::Down,
            Outcome::Silent(_) if self.silences >= FALL => HealthState::Down,
            Outcome::Alive | Outcome::Silent(_) | Outcome::Inconclusive(_) => self.health.state,
        };
        if state != self.health.state {
            self.health.state = state;
            self.health.since = now;
        }
        self.health.error = match outcome {
            Outcome::Alive => None,
            Outcome::Refused(why) | Outcome::Silent(why) | Outcome::Inconclusive(why) => Some(why),
        };
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// `a`live, `r`efused, `s`ilent, `i`nconclusive.
    fn judge(outcomes: &str) -> HealthState {
        let mut judge = Judge::new(HealthState::Unknown);
        for outcome in outcomes.chars() {
            let why = "a reason".to_owned();
            let outcome = match outcome {
                'a' => Outcome::Alive,
                'r' => Outcome::Refused(why),
                's' => Outcome::Silent(why),
                _ => Outcome::Inconclusive(why),
            };
            judge.hear(outcome, Instant::now());
        }
        judge.health().state
    }

    #[rstest]
    #[case::nothing_is_known_at_first("", HealthState::Unknown)]
    #[case::the_first_success_is_enough("a", HealthState::Up)]
    #[case::the_first_refusal_is_enough("r", HealthState::Down)]
    #[case::the_first_silence_is_not("s", HealthState::Unknown)]
    #[case::a_refusal_counts_at_once("ar", HealthState::Down)]
    #[case::one_lost_answer_does_not("as", HealthState::Up)]
    #[case::two_in_a_row_do("ass", HealthState::Down)]
    #[case::two_that_are_apart_do_not("asas", HealthState::Up)]
    #[case::one_success_does_not_bring_it_back("ara", HealthState::Down)]
    #[case::two_in_a_row_bring_it_back("araa", HealthState::Up)]
    #[case::two_that_are_apart_do_not_bring_it_back("arasa", HealthState::Down)]
    #[case::what_says_nothing_of_the_host_changes_nothing("aiiii", HealthState::Up)]
    #[case::what_says_nothing_of_the_host_does_not_hide_silence("asis", HealthState::Down)]
    fn outcomes_are_judged(#[case] outcomes: &str, #[case] state: HealthState) {
        assert_eq!(judge(outcomes), state);
    }

    #[test]
    fn the_time_is_that_of_the_last_change_and_the_error_that_of_the_last_check() {
        let mut judge = Judge::new(HealthState::Unknown);
        let first = Instant::now();
        let second = first + std::time::Duration::from_secs(1);
        judge.hear(Outcome::Refused("one".to_owned()), first);
        judge.hear(Outcome::Silent("two".to_owned()), second);
        let HostHealth { state, since, error } = judge.health();
        assert_eq!((state, since, error.as_deref()), (HealthState::Down, first, Some("two")));
        judge.hear(Outcome::Alive, second);
        assert_eq!(judge.health().error, None);
    }
}
