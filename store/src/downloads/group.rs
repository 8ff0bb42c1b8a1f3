//! Batches that are counted together. They are added up as they come, while the group before them is being written.

use super::{
    marks::{Marks, Publisher},
    tally::Tally,
};
use cratemill_protocol::bus::{DownloadBatch, Install};
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub struct Group {
    batches: Vec<DownloadBatch>,
    events: usize,
    /// Of all of them, as if none had been counted before: that is how it nearly always is. Whoever writes them takes it.
    tally: Option<Tally>,
}

impl Group {
    pub fn push(&mut self, batch: DownloadBatch) {
        self.events += batch.counts.len() + batch.installs.len();
        self.tally.get_or_insert_default().add_batch(&batch);
        self.batches.push(batch);
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Batches.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    pub fn batches(&self) -> &[DownloadBatch] {
        &self.batches
    }

    /// Counts and requests in the batches: what it costs to keep them.
    pub fn events(&self) -> usize {
        self.events
    }

    /// Different counts: what it costs to write them.
    pub fn rows(&self) -> usize {
        self.tally.as_ref().map_or(0, Tally::len)
    }

    /// Each alone, to find out which of them is at fault.
    pub fn split(self) -> Vec<Self> {
        let alone = |batch| {
            let mut group = Self::default();
            group.push(batch);
            group
        };
        self.batches.into_iter().map(alone).collect()
    }

    pub(super) fn publishers(&self) -> BTreeSet<Publisher> {
        self.batches.iter().map(|batch| (batch.node.clone(), batch.epoch)).collect()
    }

    pub(super) fn days(&self) -> BTreeSet<i32> {
        let installs = self.batches.iter().flat_map(|batch| &batch.installs).map(|install| install.day);
        let counts = self.tally.as_ref().map(Tally::days).unwrap_or_default();
        counts.into_iter().chain(installs).collect()
    }

    /// What is in it and not counted yet; the marks then say that it is.
    pub(super) fn uncounted(&mut self, marks: &mut Marks) -> (Tally, Vec<&Install>) {
        let mut take = |batch: &DownloadBatch| {
            marks.entry((batch.node.clone(), batch.epoch)).or_default().take(batch.batch)
        };
        let new: Vec<&DownloadBatch> = self.batches.iter().filter(|batch| take(batch)).collect();
        let ready = self.tally.take().filter(|_| new.len() == self.batches.len());
        let tally = ready.unwrap_or_else(|| Tally::of(new.iter().copied()));
        let installs = new.iter().flat_map(|batch| &batch.installs).collect();
        (tally, installs)
    }
}
