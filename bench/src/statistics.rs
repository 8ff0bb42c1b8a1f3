//! Medians and percentiles of what was measured, and how they are told.

use anyhow::{Result, ensure};
use std::time::Duration;

/// Sorted, at least one.
#[derive(Debug, Clone)]
pub(crate) struct Percentiles(Vec<f64>);

impl Percentiles {
    pub(crate) fn of(mut values: Vec<f64>) -> Result<Self> {
        ensure!(!values.is_empty(), "nothing was measured");
        values.sort_unstable_by(f64::total_cmp);
        Ok(Self(values))
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that so many percent of all are below; of 100 the largest.
    pub(crate) fn at(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

/// Of at least one; of an even number the middle between the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    low.midpoint(high)
}

pub(crate) fn per_s(things: usize, time: Duration) -> f64 {
    count(things) / time.as_secs_f64()
}

pub(crate) fn each_us(time: Duration, things: usize) -> f64 {
    time.as_secs_f64() * 1e6 / count(things)
}

#[allow(clippy::cast_precision_loss, reason = "exact for whatever is counted here")]
pub(crate) fn count(of: usize) -> f64 {
    of as f64
}

/// As many digits as a noisy machine is worth.
pub(crate) fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values = Percentiles::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert!((values.at(50) - 101.0).abs() < f64::EPSILON);
        assert!((values.at(99) - 199.0).abs() < f64::EPSILON);
        assert!((values.at(100) - 200.0).abs() < f64::EPSILON);
        assert!(Percentiles::of(Vec::new()).is_err());
    }

    #[test]
    fn a_median_favours_no_side() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![2.0, 1.0]) - 1.5).abs() < f64::EPSILON);
        assert!((median(vec![7.0]) - 7.0).abs() < f64::EPSILON);
    }
}
