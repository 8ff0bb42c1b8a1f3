//! Which download is in which batch: pure, without a clock and without the bus.
//!
//! ```text
//! add -> open batch -> (full, or asked for the next) closed -> stored
//! ```
//! Batches are numbered from 1 and handed out oldest first; the next one only when the one before is stored, so that
//! what a counter must remember of a publisher stays one number and not a list of holes.

use cratemill_protocol::{
    ArtifactId,
    bus::{ClientClass, DownloadBatch, DownloadCount},
};
use std::collections::{BTreeMap, VecDeque};

/// Different counts in a batch: at 60 bytes each it stays far below the bus's limit of 1 MB a message.
const MAX_BATCH_COUNTS: usize = 4_096;
/// Batches that wait while the bus is away: with the above, 20 MB and 130,000 different counts. Of a count that is in the
/// open batch already there can be any number.
const MAX_BATCHES: usize = 32;

type Key = (ArtifactId, i32, ClientClass);

#[derive(Debug)]
pub(crate) struct Batcher {
    node: String,
    epoch: i64,
    /// Not stored yet, the oldest first; what is in one does not change.
    closed: VecDeque<DownloadBatch>,
    /// The number of the open batch.
    number: u64,
    open: BTreeMap<Key, u64>,
}

impl Batcher {
    pub(crate) fn new(node: &str, epoch: i64) -> Self {
        Self { node: node.to_owned(), epoch, closed: VecDeque::new(), number: 1, open: BTreeMap::new() }
    }

    /// Counts a download: the number of its batch, or none if there is no room.
    pub(crate) fn add(&mut self, artifact: ArtifactId, day: i32, client: ClientClass) -> Option<u64> {
        let key = (artifact, day, client);
        if self.open.len() >= MAX_BATCH_COUNTS && !self.open.contains_key(&key) {
            if self.closed.len() + 1 >= MAX_BATCHES {
                return None;
            }
            self.close();
        }
        let count = self.open.entry(key).or_default();
        *count = count.saturating_add(1);
        Some(self.number)
    }

    /// The oldest batch that is not stored; the same one until it is.
    pub(crate) fn next(&mut self) -> Option<DownloadBatch> {
        if self.closed.is_empty() && !self.open.is_empty() {
            self.close();
        }
        self.closed.front().cloned()
    }

    /// The bus has this batch.
    pub(crate) fn stored(&mut self, number: u64) {
        if self.closed.front().is_some_and(|batch| batch.batch == number) {
            self.closed.pop_front();
        }
    }

    /// Downloads that are in no stored batch.
    pub(crate) fn held(&self) -> u64 {
        let closed = self.closed.iter().flat_map(|batch| &batch.counts).map(|count| count.count);
        closed.chain(self.open.values().copied()).sum()
    }

    fn close(&mut self) {
        let counts = std::mem::take(&mut self.open).into_iter();
        let counts =
            counts.map(|((artifact, day, client), count)| DownloadCount { artifact, day, client, count });
        self.closed.push_back(DownloadBatch {
            node: self.node.clone(),
            epoch: self.epoch,
            batch: self.number,
            counts: counts.collect(),
        });
        self.number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i32 = 20_000;

    fn add(batcher: &mut Batcher, artifact: i64) -> Option<u64> {
        batcher.add(ArtifactId(artifact), DAY, ClientClass::Curl)
    }

    #[test]
    fn a_batch_that_is_on_its_way_does_not_change() {
        let mut batcher = Batcher::new("a", 7);
        assert!(batcher.next().is_none());
        assert_eq!((add(&mut batcher, 1), add(&mut batcher, 1)), (Some(1), Some(1)));
        let first = batcher.next().unwrap();
        assert_eq!((first.batch, first.counts.len(), first.counts[0].count), (1, 1, 2));
        assert_eq!(add(&mut batcher, 1), Some(2));
        assert_eq!(batcher.next().unwrap(), first);
        batcher.stored(1);
        batcher.stored(1);
        assert_eq!(batcher.next().unwrap().batch, 2);
        batcher.stored(2);
        assert!(batcher.next().is_none());
        assert_eq!(batcher.held(), 0);
    }

    #[test]
    fn memory_is_bounded_and_known_counts_still_grow() {
        let mut batcher = Batcher::new("a", 7);
        let room = i64::try_from(MAX_BATCHES * MAX_BATCH_COUNTS).unwrap();
        for artifact in 0..room {
            assert!(add(&mut batcher, artifact).is_some(), "{artifact}");
        }
        assert_eq!(add(&mut batcher, room), None);
        assert_eq!(add(&mut batcher, room - 1), Some(MAX_BATCHES as u64));
        assert_eq!(batcher.held(), room.unsigned_abs() + 1);
        let batch = batcher.next().unwrap();
        assert!(cratemill_protocol::bus::encode(&batch).len() < 500_000);
        batcher.stored(batch.batch);
        assert!(add(&mut batcher, room).is_some());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Add(i64),
        Send,
        Ack,
        Drop,
    }

    proptest! {
        /// Whatever the bus does, a counter that remembers the highest number counts each download once.
        #[test]
        fn every_download_is_counted_once(steps in prop::collection::vec(prop_oneof![
            (0_i64..4).prop_map(Step::Add), Just(Step::Send), Just(Step::Ack), Just(Step::Drop)], 0..200)) {
            let (mut batcher, mut added, mut counted, mut highest) = (Batcher::new("a", 7), 0, 0, 0);
            let mut in_flight = None;
            let mut deliver = |batch: &DownloadBatch| {
                if batch.batch > highest {
                    highest = batch.batch;
                    counted += batch.counts.iter().map(|count| count.count).sum::<u64>();
                }
            };
            for step in steps {
                match step {
                    Step::Add(artifact) => added += u64::from(add(&mut batcher, artifact).is_some()),
                    // Delivered, and the acknowledgement is on its way or lost: then it is sent again.
                    Step::Send => {
                        in_flight = batcher.next();
                        in_flight.iter().for_each(&mut deliver);
                    }
                    Step::Ack => if let Some(batch) = in_flight.take() { batcher.stored(batch.batch) },
                    Step::Drop => in_flight = None,
                }
            }
            while let Some(batch) = batcher.next() {
                deliver(&batch);
                batcher.stored(batch.batch);
            }
            prop_assert_eq!(counted, added);
        }
    }
}
