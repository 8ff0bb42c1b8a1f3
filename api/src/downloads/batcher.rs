//! Which download is in which batch: pure, without a clock and without the bus.
//!
//! ```text
//! add -> open batch -> (full, or asked for) closed, with a number -> stored on the bus, or held back
//! ```
//! Batches are numbered from 1 as they are closed, and what is closed does not change.

use cratemill_protocol::{
    ArtifactId,
    bus::{ClientClass, DownloadBatch, DownloadCount, Install},
};
use std::collections::{HashMap, VecDeque};
use tokio_util::sync::CancellationToken;

/// Different counts in a batch: at 30 bytes each it stays far below the bus's limit of 1 MB a message.
const MAX_BATCH: usize = 4_096;

/// Cancelled once the batch it belongs to is where it outlives this process, or cannot get there.
pub(super) type Gate = CancellationToken;

#[derive(Debug)]
pub(super) struct Batcher {
    node: String,
    epoch: i64,
    /// Of the newest closed batch.
    number: u64,
    /// The oldest first; few, since each waits a quarter of a second at most.
    full: VecDeque<Open>,
    open: Open,
}

#[derive(Debug, Default)]
struct Open {
    counts: HashMap<(ArtifactId, i32, ClientClass), u64>,
    installs: Vec<Install>,
    gate: Gate,
}

impl Open {
    fn len(&self) -> usize {
        self.counts.len() + self.installs.len()
    }
}

/// A batch that does not change any more, and who waits for it.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) batch: DownloadBatch,
    pub(super) gate: Gate,
}

impl Batcher {
    pub(super) fn new(node: &str, epoch: i64) -> Self {
        Self { node: node.to_owned(), epoch, number: 0, full: VecDeque::new(), open: Open::default() }
    }

    pub(super) fn add(&mut self, artifact: ArtifactId, day: i32, client: ClientClass) -> Gate {
        let key = (artifact, day, client);
        if self.open.len() >= MAX_BATCH && !self.open.counts.contains_key(&key) {
            self.full.push_back(std::mem::take(&mut self.open));
        }
        let count = self.open.counts.entry(key).or_default();
        *count = count.saturating_add(1);
        self.open.gate.clone()
    }

    pub(super) fn add_install(&mut self, install: Install) -> Gate {
        if self.open.len() >= MAX_BATCH {
            self.full.push_back(std::mem::take(&mut self.open));
        }
        self.open.installs.push(install);
        self.open.gate.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.len() == 0
    }

    /// The newest closed batch went nowhere: the next one has its number, so that counters do not wait for it.
    pub(super) fn give_back(&mut self) {
        self.number = self.number.saturating_sub(1);
    }

    /// The oldest batch that has anything.
    pub(super) fn close(&mut self) -> Option<Closed> {
        let open = self.full.pop_front().or_else(|| {
            let waiting = self.open.len() > 0;
            waiting.then(|| std::mem::take(&mut self.open))
        })?;
        self.number += 1;
        let count = |((artifact, day, client), count)| DownloadCount { artifact, day, client, count };
        let batch = DownloadBatch {
            node: self.node.clone(),
            epoch: self.epoch,
            batch: self.number,
            counts: open.counts.into_iter().map(count).collect(),
            installs: open.installs,
        };
        Some(Closed { batch, gate: open.gate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i32 = 20_000;

    fn add(batcher: &mut Batcher, artifact: i64) -> Gate {
        batcher.add(ArtifactId(artifact), DAY, ClientClass::Curl)
    }

    fn install(who: i64) -> Install {
        Install { artifact: ArtifactId(1), day: DAY, client: ClientClass::Binstall, who, at_s: 0 }
    }

    #[test]
    fn a_batch_that_is_closed_does_not_change() {
        let mut batcher = Batcher::new("a", 7);
        assert!(batcher.close().is_none());
        let gate = add(&mut batcher, 1);
        add(&mut batcher, 1);
        batcher.add_install(install(3));
        let first = batcher.close().unwrap();
        assert_eq!((first.batch.batch, first.batch.downloads(), first.batch.counts.len()), (1, 3, 1));
        let later = add(&mut batcher, 1);
        first.gate.cancel();
        assert!(gate.is_cancelled() && !later.is_cancelled());
        assert_eq!(batcher.close().unwrap().batch.batch, 2);
        assert!(batcher.close().is_none());
    }

    #[test]
    fn a_message_is_never_too_long_for_the_bus() {
        let mut batcher = Batcher::new(&"n".repeat(64), i64::MAX);
        for artifact in 0..i64::try_from(2 * MAX_BATCH).unwrap() {
            batcher.add(ArtifactId(i64::MAX - artifact), i32::MAX, ClientClass::Binstall);
            batcher.add_install(Install { who: i64::MAX, at_s: i64::MAX, ..install(1) });
        }
        let closed: Vec<_> = std::iter::from_fn(|| batcher.close()).collect();
        assert_eq!(closed.iter().map(|closed| closed.batch.downloads()).sum::<u64>(), 4 * MAX_BATCH as u64);
        assert_eq!(closed.iter().map(|closed| closed.batch.batch).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(closed.iter().all(|closed| closed.batch.encode().len() < 500_000));
    }

    /// Over midnight, or back: each download is of the day that its clock told.
    #[test]
    fn a_clock_may_jump() {
        let mut batcher = Batcher::new("a", 7);
        for day in [DAY, DAY + 1, DAY, DAY + 1, DAY - 700, DAY] {
            batcher.add(ArtifactId(1), day, ClientClass::Curl);
        }
        let mut counts: Vec<_> =
            batcher.close().unwrap().batch.counts.iter().map(|count| (count.day, count.count)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [(DAY - 700, 1), (DAY, 3), (DAY + 1, 2)]);
    }

    proptest! {
        #[test]
        fn every_download_is_in_one_batch(steps in prop::collection::vec(prop::option::of(0_i64..4), 0..200)) {
            let (mut batcher, mut added, mut closed) = (Batcher::new("a", 7), 0, Vec::new());
            for step in steps {
                match step {
                    Some(artifact) => {
                        add(&mut batcher, artifact);
                        added += 1;
                    }
                    None => closed.extend(batcher.close()),
                }
            }
            closed.extend(std::iter::from_fn(|| batcher.close()));
            prop_assert_eq!(closed.iter().map(|closed| closed.batch.downloads()).sum::<u64>(), added);
            prop_assert!(closed.iter().map(|closed| closed.batch.batch).eq(1..=closed.len() as u64));
        }
    }
}
