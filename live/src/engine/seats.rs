//! How many viewers a node takes.

use crate::metrics;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

#[derive(Debug)]
pub struct Seats {
    taken: AtomicUsize,
    most: usize,
}

/// Dropping it gives it back.
#[derive(Debug)]
pub struct Seat(Option<Arc<Seats>>);

impl Seats {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most })
    }

    pub fn take(self: &Arc<Self>) -> Option<Seat> {
        let one_more = |taken| (taken < self.most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        metrics::viewers(1.0);
        Some(Seat(Some(Arc::clone(self))))
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    pub fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        metrics::viewers(-1.0);
    }
}

impl Seat {
    /// It stays taken until [`Seats::give_back`].
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(seats) = &self.0 {
            seats.give_back();
        }
    }
}
