//! How many uploads an attempt may have under way at this node: each holds a connection to the object store.

use cratemill_protocol::{Attempt, JobId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A build's files go one after the other; the rest is for tries whose end we have not noticed yet.
const MAX_UPLOADS: usize = 4;

type Counts = HashMap<(JobId, Attempt), usize>;

#[derive(Debug, Clone, Default)]
pub struct Underway(Arc<Mutex<Counts>>);

/// One upload, until it is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    underway: Underway,
    of: (JobId, Attempt),
}

impl Underway {
    pub(super) fn begin(&self, job: JobId, attempt: Attempt) -> Option<Upload> {
        let of = (job, attempt);
        let mut counts = self.counts();
        let count = counts.entry(of).or_default();
        if *count >= MAX_UPLOADS {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Upload { underway: self.clone(), of })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut counts = self.underway.counts();
        if let Some(count) = counts.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_its_own_and_none_is_remembered() {
        let underway = Underway::default();
        let begin = |job| underway.begin(JobId(job), Attempt(1));
        let mut uploads: Vec<_> = (0..MAX_UPLOADS).map(|_| begin(1).unwrap()).collect();
        assert!(begin(1).is_none());
        uploads.push(begin(2).unwrap());
        drop(uploads.remove(0));
        uploads.push(begin(1).unwrap());
        drop(uploads);
        assert!(underway.counts().is_empty());
    }
}
