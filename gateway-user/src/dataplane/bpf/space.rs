//! Numbers and runs of numbers out of fixed ranges.
//!
//! The kernel reads what a number stands for at any time, so a number that was given back is given out again
//! only after the change that gave it back is complete and one more change has begun.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};

/// Gives out numbers, or runs of consecutive ones, below a bound. All of it is logarithmic in the number of
/// free runs.
#[derive(Debug)]
pub(super) struct Space {
    what: &'static str,
    size: u32,
    /// Lengths of the free runs by their start; no two of them touch.
    free: BTreeMap<u32, u32>,
    /// The same as length and start.
    by_length: BTreeSet<(u32, u32)>,
    free_count: u32,
    /// Runs given back during the present change.
    leaving: Vec<(u32, u32)>,
}

impl Space {
    /// Numbers from `low` to below `high`; `what` is used in errors.
    pub(super) fn new(what: &'static str, low: u32, high: u32) -> Self {
        let (size, free, by_length) = (high - low, BTreeMap::new(), BTreeSet::new());
        let mut space = Self { what, size, free, by_length, free_count: 0, leaving: Vec::new() };
        space.put(low, size);
        space
    }

    /// Marks a number as used that was found in use.
    pub(super) fn take(&mut self, number: u32) {
        let Some((&start, &length)) = self.free.range(..=number).next_back() else { return };
        if number - start < length {
            self.remove(start, length);
            self.put(start, number - start);
            self.put(number + 1, start + length - number - 1);
        }
    }

    /// A free number.
    pub(super) fn one(&mut self) -> Result<u32> {
        self.run(1)
    }

    /// A free run of `length` numbers: where it fits best, so that long runs are kept for those who need them.
    pub(super) fn run(&mut self, length: u32) -> Result<u32> {
        let Some(&(found, start)) = self.by_length.range((length, 0)..).next() else {
            return Err(anyhow!("there is no room for more than {} {}", self.size, self.what));
        };
        self.remove(start, found);
        self.put(start + length, found - length);
        Ok(start)
    }

    /// How many numbers are free.
    pub(super) fn free(&self) -> u32 {
        self.free_count
    }

    /// Gives a run back.
    pub(super) fn give_back(&mut self, start: u32, length: u32) {
        self.leaving.push((start, length));
    }

    /// What was given back during the last change may be used again.
    pub(super) fn begin_change(&mut self) {
        for (mut start, mut length) in std::mem::take(&mut self.leaving) {
            if let Some((&before, &reach)) = self.free.range(..start).next_back()
                && before + reach == start
            {
                self.remove(before, reach);
                (start, length) = (before, length + reach);
            }
            if let Some(&reach) = self.free.get(&(start + length)) {
                self.remove(start + length, reach);
                length += reach;
            }
            self.put(start, length);
        }
    }

    fn put(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.free.insert(start, length);
            self.by_length.insert((length, start));
            self.free_count += length;
        }
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
        self.free_count -= length;
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

    #[test]
    fn numbers_of_a_full_table_are_given_out_and_come_together_again() {
        const SIZE: u32 = 200_000;
        let mut space = Space::new("things", 1, SIZE + 1);
        let mut runs = Vec::new();
        // A walk over what is used, for each of them, would take minutes.
        while space.free() >= 3 {
            let length = 1 + space.free() % 3;
            runs.push((space.run(length).expect("room"), length));
        }
        for (start, length) in runs.iter().step_by(2).chain(runs.iter().skip(1).step_by(2)) {
            space.give_back(*start, *length);
        }
        space.begin_change();
        assert_eq!(space.free(), SIZE);
        assert_eq!(space.run(SIZE).expect("one run"), 1);
    }
}
