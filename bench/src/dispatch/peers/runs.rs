//! When each job began, told by the handlers of a peer.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::Notify;

/// A handler writes its own slot and one counter: thousands of them in a second do not wait for each other.
#[derive(Debug)]
pub(super) struct Runs {
    began: Box<[OnceLock<Instant>]>,
    count: AtomicUsize,
    all: Notify,
}

impl Runs {
    pub(super) fn new(jobs: usize) -> Self {
        let began = (0..jobs).map(|_| OnceLock::new()).collect();
        Self { began, count: AtomicUsize::new(0), all: Notify::new() }
    }

    /// A job that runs again has begun before.
    pub(super) fn begin(&self, job: usize) {
        let first = self.began.get(job).is_some_and(|slot| slot.set(Instant::now()).is_ok());
        if first && self.count.fetch_add(1, Ordering::AcqRel) + 1 == self.began.len() {
            self.all.notify_one();
        }
    }

    /// Returns once every job has begun. For one caller.
    pub(super) async fn all(&self) {
        if self.count.load(Ordering::Acquire) < self.began.len() {
            self.all.notified().await;
        }
    }

    /// By number.
    pub(super) fn began(&self) -> impl Iterator<Item = Option<Instant>> {
        self.began.iter().map(|slot| slot.get().copied())
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} jobs began", self.count.load(Ordering::Acquire), self.began.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_runs_twice_stands_for_no_other() {
        let runs = Runs::new(2);
        runs.begin(1);
        runs.begin(1);
        runs.begin(7);
        assert_eq!(runs.to_string(), "1 of 2 jobs began");
        runs.begin(0);
        runs.all().await;
        assert!(runs.began().all(|began| began.is_some()));
    }
}
