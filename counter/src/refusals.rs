//! Which batches the database has refused alone, and how often: pure.
//!
//! How often the bus handed one out says less: it comes again too when the database was away.

use cratemill_protocol::bus::DownloadBatch;
use std::collections::HashMap;

/// Times that the database refuses a batch's data, alone, before it is given up.
const MAX_REFUSED: u32 = 5;
/// More batches than are wrong at once. Beyond, all begin anew, which costs nothing but more tries.
const MAX_KNOWN: usize = 1_000;

#[derive(Debug, Default)]
pub(crate) struct Refusals(HashMap<Id, u32>);

/// Node, epoch and number.
type Id = (String, i64, u64);

impl Refusals {
    /// True if that was enough.
    pub(crate) fn refused(&mut self, batch: &DownloadBatch) -> bool {
        let id = (batch.node.clone(), batch.epoch, batch.batch);
        if self.0.len() >= MAX_KNOWN && !self.0.contains_key(&id) {
            self.0.clear();
        }
        let times = self.0.entry(id.clone()).or_default();
        *times += 1;
        let enough = *times >= MAX_REFUSED;
        if enough {
            self.0.remove(&id);
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_batch_has_its_own_tries() {
        let mut refusals = Refusals::default();
        let batch = |batch| DownloadBatch { node: "n".into(), epoch: 1, batch, ..DownloadBatch::default() };
        let enough: Vec<bool> = (0..MAX_REFUSED).map(|_| refusals.refused(&batch(1))).collect();
        assert_eq!(enough, [false, false, false, false, true]);
        assert!(!refusals.refused(&batch(1)), "it begins anew");
        for number in 2..10 * MAX_KNOWN as u64 {
            assert!(!refusals.refused(&batch(number)));
            assert!(refusals.0.len() <= MAX_KNOWN);
        }
    }
}
