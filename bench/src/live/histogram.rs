//! How long deliveries took, in buckets that are at most a thirty-second of their value wide: millions of them fit in a
//! few kilobytes and travel between processes.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Values below twice this have a bucket each; above, each power of two has so many.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.ilog2();

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Histogram(BTreeMap<u16, u64>);

impl Histogram {
    pub(super) fn add(&mut self, value: u64, times: u64) {
        *self.0.entry(bucket(value)).or_default() += times;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, times) in &other.0 {
            *self.0.entry(*bucket).or_default() += times;
        }
    }

    /// What so many percent of all values do not exceed, rounded up to the end of its bucket; 0 of none.
    pub(super) fn at(&self, percent: u64) -> u64 {
        let all: u64 = self.0.values().sum();
        let mut left = (all * percent).div_ceil(100);
        for (bucket, times) in &self.0 {
            if *times >= left {
                return if all == 0 { 0 } else { end(*bucket) };
            }
            left -= times;
        }
        0
    }
}

fn bucket(value: u64) -> u16 {
    let octave = value.checked_ilog2().unwrap_or(0).saturating_sub(STEP_BITS);
    let bucket = u64::from(octave) * STEPS + (value >> octave);
    u16::try_from(bucket).expect("64 powers of two times 32")
}

/// The largest value of a bucket.
fn end(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    let octave = (bucket / STEPS).saturating_sub(1);
    ((bucket - octave * STEPS + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_at_most_a_thirty_second_above_its_values() {
        for value in (0..5_000).chain((0..50).map(|shift| (1 << shift) + 12_345)) {
            let end = end(bucket(value));
            assert!(end >= value && end - value <= value / STEPS, "{value} {end}");
        }
        assert!((0..100_000).is_sorted_by_key(bucket));
    }

    #[test]
    fn percentiles_survive_a_merge() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        low.add(10, 99);
        high.add(50, 1);
        low.merge(&high);
        assert_eq!([1, 50, 99, 100].map(|percent| low.at(percent)), [10, 10, 10, 50]);
        assert_eq!(Histogram::default().at(99), 0);
    }
}
