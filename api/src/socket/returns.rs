//! How often a builder may log in at one node: each login is a transaction, an event for viewers and a message to all
//! nodes, so a builder that does nothing but log in would cost more than one that works.

use super::bucket::Buckets;
use cratemill_protocol::BuilderId;
use std::time::Instant;

/// A builder whose connection keeps breaking comes back every few seconds at first and twice a minute later.
const PER_S: f64 = 0.5;
const BURST: u32 = 20;

#[derive(Debug)]
pub(super) struct Returns(Buckets);

impl Default for Returns {
    fn default() -> Self {
        Self(Buckets::new(PER_S, BURST))
    }
}

impl Returns {
    /// Counts a login whose signature was good; false if it is one too many.
    pub(super) fn may_log_in(&self, builder: BuilderId, now: Instant) -> bool {
        self.0.with(builder, now, |bucket| bucket.take(now))
    }
}
