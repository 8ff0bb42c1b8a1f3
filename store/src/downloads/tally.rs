//! Adding up: pure.

use super::places::Place;
use cratemill_protocol::bus::{ClientClass, DownloadBatch};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) artifact: i64,
    /// Days since 1970.
    pub(super) day: i32,
    pub(super) client: ClientClass,
}

/// Counts of some batches, the same ones together.
#[derive(Debug, Default)]
pub(super) struct Tally(HashMap<Key, i64>);

impl Tally {
    pub(super) fn of<'a>(batches: impl Iterator<Item = &'a DownloadBatch>) -> Self {
        let mut tally = Self::default();
        batches.for_each(|batch| tally.add_batch(batch));
        tally
    }

    pub(super) fn add_batch(&mut self, batch: &DownloadBatch) {
        for count in &batch.counts {
            let key = Key { artifact: count.artifact.0, day: count.day, client: count.client };
            self.add(key, i64::try_from(count.count).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn add(&mut self, key: Key, count: i64) {
        if count > 0 {
            let sum = self.0.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn days(&self) -> BTreeSet<i32> {
        self.0.keys().map(|key| key.day).collect()
    }

    pub(super) fn artifacts(&self) -> impl Iterator<Item = i64> {
        self.0.keys().map(|key| key.artifact)
    }

    /// What is to be written, each part in the order of its key: whoever writes does it in this order, so that two
    /// transactions never wait for each other in a circle. Artifacts without a place count nowhere.
    pub(super) fn rows<'a>(&self, place: impl Fn(i64) -> Option<&'a Place>) -> Rows<'a> {
        let mut rows = Rows { counts: Vec::with_capacity(self.0.len()), ..Rows::default() };
        let mut sums: HashMap<SumKey<'a>, i64> = HashMap::new();
        let mut days: HashMap<(i64, i32), i64> = HashMap::new();
        for (&key, &count) in &self.0 {
            let Some(place) = place(key.artifact) else {
                rows.homeless = rows.homeless.saturating_add(count.unsigned_abs());
                continue;
            };
            rows.counts.push((key, count));
            rows.counted = rows.counted.saturating_add(count.unsigned_abs());
            let mut add = |axis, name: &'a str| {
                let sum = sums.entry((place.krate, axis, key.day, name)).or_default();
                *sum = sum.saturating_add(count);
            };
            add("version", &place.version);
            add("target", &place.target);
            add("kind", &place.kind);
            add("client", key.client.as_str());
            let day = days.entry((place.krate, key.day)).or_default();
            *day = day.saturating_add(count);
        }
        rows.sums = sums.into_iter().collect();
        rows.days = days.into_iter().collect();
        rows.counts.sort_unstable();
        rows.sums.sort_unstable();
        rows.days.sort_unstable();
        rows
    }
}

/// Crate, axis, day, key.
pub(super) type SumKey<'a> = (i64, &'static str, i32, &'a str);

#[derive(Debug, Default)]
pub(super) struct Rows<'a> {
    pub(super) counts: Vec<(Key, i64)>,
    pub(super) sums: Vec<(SumKey<'a>, i64)>,
    pub(super) days: Vec<((i64, i32), i64)>,
    pub(super) counted: u64,
    /// Of artifacts that do not exist.
    pub(super) homeless: u64,
}

/// Texts of places are shared: there are far fewer of them than artifacts.
pub(super) fn shared(known: &mut HashMap<String, Arc<str>>, text: &str) -> Arc<str> {
    if let Some(shared) = known.get(text) {
        return Arc::clone(shared);
    }
    let shared: Arc<str> = text.into();
    known.insert(text.to_owned(), Arc::clone(&shared));
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{ArtifactId, bus::DownloadCount};
    use proptest::prelude::*;

    fn place(artifact: i64) -> Option<Place> {
        // Two artifacts to a version, two versions to a crate; artifact 0 does not exist.
        (artifact > 0).then(|| Place {
            krate: artifact / 4,
            version: format!("1.{}.0", artifact / 2).into(),
            target: if artifact % 2 == 0 { "a" } else { "b" }.into(),
            kind: "tarball".into(),
        })
    }

    proptest! {
        /// Whichever way one looks, it is the same downloads.
        #[test]
        fn all_sums_agree(counts in prop::collection::vec((0_i64..12, 0_i32..3, 0_usize..6, 0_u64..5), 0..60)) {
            let places: Vec<_> = (0..12).map(place).collect();
            let counts: Vec<_> = counts.into_iter().map(|(artifact, day, client, count)| DownloadCount {
                artifact: ArtifactId(artifact), day, client: ClientClass::ALL[client], count,
            }).collect();
            let expected: u64 = counts.iter().filter(|count| count.artifact.0 > 0).map(|count| count.count).sum();
            let batch = DownloadBatch { counts, ..DownloadBatch::default() };
            let tally = Tally::of(std::iter::once(&batch));
            let rows = tally.rows(|artifact| places[usize::try_from(artifact).unwrap()].as_ref());
            let sum = |counts: &mut dyn Iterator<Item = i64>| counts.sum::<i64>().unsigned_abs();
            prop_assert_eq!(rows.counted, expected);
            prop_assert_eq!(sum(&mut rows.counts.iter().map(|row| row.1)), expected);
            prop_assert_eq!(sum(&mut rows.days.iter().map(|row| row.1)), expected);
            for axis in ["version", "target", "kind", "client"] {
                prop_assert_eq!(sum(&mut rows.sums.iter().filter(|row| row.0.1 == axis).map(|row| row.1)), expected);
            }
            prop_assert!(rows.sums.is_sorted() && rows.counts.is_sorted() && rows.days.is_sorted());
        }
    }
}
