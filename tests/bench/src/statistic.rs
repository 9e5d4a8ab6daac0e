//! What many measurements of one thing say.

use std::fmt;

use serde::Serialize;

/// Measurements of one thing, in the order of the rounds.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(into = "Summary")]
pub(crate) struct Samples(Vec<f64>);

/// What is written of them.
#[derive(Serialize)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
    samples: Vec<f64>,
}

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// These and one more.
    pub(crate) fn and(mut self, value: f64) -> Self {
        self.push(value);
        self
    }

    /// The middle one; of an even number, the mean of the middle two.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.get((sorted.len().wrapping_sub(1)) / 2), sorted.get(sorted.len() / 2)) {
            (Some(low), Some(high)) => f64::midpoint(*low, *high),
            _ => f64::NAN,
        }
    }

    /// The mean; not a number if there are none.
    pub(crate) fn mean(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = self.0.len() as f64;
        self.0.iter().sum::<f64>() / count
    }

    /// The least one.
    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The greatest one.
    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Each of them times `factor`.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|value| value * factor).collect())
    }

    /// The least value that is not below `part` of them, such as 0.99.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "far below 2^52, not negative"
        )]
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// Both of them of the same round, combined.
    pub(crate) fn with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| combine(*one, *other)).collect())
    }

    /// The difference, round by round.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        self.with(other, |one, other| one - other)
    }

    /// The ratio, round by round.
    pub(crate) fn over(&self, other: &Self) -> Self {
        self.with(other, |one, other| one / other)
    }
}

/// Something that is always the same.
impl From<f64> for Samples {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

impl From<Samples> for Summary {
    fn from(samples: Samples) -> Self {
        Self { median: samples.median(), min: samples.min(), max: samples.max(), samples: samples.0 }
    }
}

/// Median and spread: `52.3 [51.9 .. 54.0]`. The precision is that of the formatter, or what three digits take.
/// Of a single value there is no spread.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = match self.median().abs() {
            0.0 => 0,
            small if small < 1.0 => 3,
            small if small < 10.0 => 2,
            small if small < 1000.0 => 1,
            _ => 0,
        };
        let digits = f.precision().unwrap_or(needed);
        if let [single] = self.0[..] {
            return write!(f, "{single:.digits$}");
        }
        write!(f, "{:.digits$} [{:.digits$} .. {:.digits$}]", self.median(), self.min(), self.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((Samples(vec![3.0, 1.0, 2.0]).median() - 2.0).abs() < f64::EPSILON);
        assert!((Samples(vec![4.0, 1.0, 2.0, 3.0]).median() - 2.5).abs() < f64::EPSILON);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let samples = Samples((1..=200).map(f64::from).collect());
        assert!((samples.quantile(0.5) - 100.0).abs() < f64::EPSILON);
        assert!((samples.quantile(0.99) - 198.0).abs() < f64::EPSILON);
        assert!(Samples::default().quantile(0.5).is_nan());
    }

    #[test]
    fn rounds_are_combined_pairwise() {
        let (one, other) = (Samples(vec![10.0, 20.0]), Samples(vec![4.0, 5.0]));
        assert_eq!(one.minus(&other).0, [6.0, 15.0]);
        assert_eq!(one.over(&other).to_string(), "3.25 [2.50 .. 4.00]");
    }
}
