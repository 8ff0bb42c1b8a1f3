//! When each job reached a builder: written by all of them at full speed, read by the bench.

use cratemill_protocol::JobId;
use std::{
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// Builders of one shard take turns at its lock; two cores never have more than a few at it.
const SHARDS: usize = 16;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Accept {
    pub(crate) job: JobId,
    /// Unix microseconds, when the builder sent that it takes the job.
    pub(crate) at_us: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Accepts {
    shards: [Mutex<Vec<Accept>>; SHARDS],
    some: Notify,
}

impl Accepts {
    pub(super) fn record(&self, shard: usize, jobs: impl Iterator<Item = JobId>) {
        let at_us = now_us();
        let shard = &self.shards[shard % SHARDS];
        let accepts = jobs.map(|job| Accept { job, at_us });
        shard.lock().unwrap_or_else(PoisonError::into_inner).extend(accepts);
        self.some.notify_one();
    }

    /// Returns when there may be some that nobody has taken.
    pub(crate) async fn some(&self) {
        self.some.notified().await;
    }

    /// Those since the last time, in no order.
    pub(crate) fn take(&self) -> Vec<Accept> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.append(&mut shard.lock().unwrap_or_else(PoisonError::into_inner));
        }
        all
    }
}

/// Unix microseconds.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
