//! What viewers tell of themselves, and how the viewers of several processes add up.

use crate::live::histogram::Histogram;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(in crate::live) struct Report {
    /// Connections that have the head of an answer, now.
    pub(in crate::live) following: usize,
    /// Events since the last reset.
    pub(in crate::live) events: u64,
    /// From publishing to reading, in microseconds, since the last reset.
    pub(in crate::live) delays: Histogram,
    /// Numbers that were skipped, and numbers that came again.
    pub(in crate::live) missed: u64,
    pub(in crate::live) repeated: u64,
    /// Connections that ended after they followed.
    pub(in crate::live) cuts: u64,
    /// Tries to connect that failed or were answered with anything but 200.
    pub(in crate::live) failures: u64,
    pub(in crate::live) last_failure: Option<String>,
    /// Viewers that were cut and have not seen a fresh event since.
    pub(in crate::live) behind: usize,
    /// When the last of them had seen one.
    pub(in crate::live) caught_up_us: u64,
    /// The lowest of the numbers that viewers saw last; 0 if one has seen none.
    pub(in crate::live) lowest: u64,
}

impl Report {
    pub(in crate::live) fn merge(&mut self, other: Self) {
        self.following += other.following;
        self.events += other.events;
        self.delays.merge(&other.delays);
        self.missed += other.missed;
        self.repeated += other.repeated;
        self.cuts += other.cuts;
        self.failures += other.failures;
        self.last_failure = other.last_failure.or(self.last_failure.take());
        self.behind += other.behind;
        self.caught_up_us = self.caught_up_us.max(other.caught_up_us);
        self.lowest = self.lowest.min(other.lowest);
    }
}
