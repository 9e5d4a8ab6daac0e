//! Numbers and runs of numbers out of fixed ranges.
//!
//! The kernel reads what a number stands for at any time, so a number that was given back is given out again
//! only after the change that gave it back is complete and one more change has begun.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};

/// Gives out numbers, or runs of consecutive ones, below a bound.
#[derive(Debug)]
pub(super) struct Space {
    what: &'static str,
    low: u32,
    high: u32,
    used: BTreeSet<u32>,
    /// Given back during the present change.
    leaving: Vec<u32>,
}

impl Space {
    /// Numbers from `low` to below `high`; `what` is used in errors.
    pub(super) fn new(what: &'static str, low: u32, high: u32) -> Self {
        Self { what, low, high, used: BTreeSet::new(), leaving: Vec::new() }
    }

    /// Marks a number as used that was found in use.
    pub(super) fn take(&mut self, number: u32) {
        self.used.insert(number);
    }

    /// The lowest free number.
    pub(super) fn one(&mut self) -> Result<u32> {
        self.run(1)
    }

    /// The lowest free run of `length` numbers.
    pub(super) fn run(&mut self, length: u32) -> Result<u32> {
        let mut start = self.low;
        for &used in &self.used {
            if used >= start && used - start >= length {
                break;
            }
            start = start.max(used + 1);
        }
        if start + length > self.high {
            return Err(anyhow!("there is no room for more than {} {}", self.high - self.low, self.what));
        }
        self.used.extend(start..start + length);
        Ok(start)
    }

    /// How many numbers are free.
    pub(super) fn free(&self) -> u32 {
        self.high - self.low - self.used.len() as u32
    }

    /// Gives a run back.
    pub(super) fn give_back(&mut self, start: u32, length: u32) {
        self.leaving.extend(start..start + length);
    }

    /// What was given back during the last change may be used again.
    pub(super) fn begin_change(&mut self) {
        for number in self.leaving.drain(..) {
            self.used.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_back_rests_until_the_next_change() {
        let mut space = Space::new("things", 1, 4);
        assert_eq!(space.one().expect("room"), 1);
        assert_eq!(space.run(2).expect("room"), 2);
        assert!(space.one().is_err());
        space.give_back(2, 1);
        assert!(space.one().is_err());
        space.begin_change();
        assert_eq!(space.one().expect("room"), 2);
    }

    #[test]
    fn a_run_is_put_where_it_fits() {
        let mut space = Space::new("things", 0, 10);
        space.take(2);
        assert_eq!(space.run(3).expect("room"), 3);
        assert_eq!(space.run(2).expect("room"), 0);
        assert_eq!(space.free(), 4);
    }
}
