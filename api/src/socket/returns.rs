//! How often a builder may log in at one node: each login is a transaction, an event for viewers and a message to all
//! nodes, so a builder that does nothing but log in would cost more than one that works.

use super::bucket::Bucket;
use cratemill_protocol::BuilderId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// A builder whose connection keeps breaking comes back every few seconds at first and twice a minute later.
const PER_S: f64 = 0.5;
const BURST: u32 = 20;
/// Builders remembered before those that have been quiet are forgotten; it stays below the number of registered keys.
const REMEMBERED: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Returns(Mutex<HashMap<BuilderId, Bucket>>);

impl Returns {
    /// Counts a login whose signature was good; false if it is one too many.
    pub(super) fn may_log_in(&self, builder: BuilderId, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&builder) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        buckets.entry(builder).or_insert_with(|| Bucket::new(PER_S, BURST, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_builder_has_its_own_and_the_quiet_are_forgotten() {
        let (returns, now) = (Returns::default(), Instant::now());
        let tries = |builder, now| (0..100).filter(|_| returns.may_log_in(BuilderId(builder), now)).count();
        assert_eq!((tries(1, now), tries(2, now)), (20, 20));
        assert_eq!(tries(1, now + Duration::from_secs(4)), 2);
        for builder in 0..20_000 {
            returns.may_log_in(BuilderId(builder), now + Duration::from_hours(1));
        }
        assert!(returns.0.lock().unwrap().len() <= 20_000);
        returns.may_log_in(BuilderId(-1), now + Duration::from_hours(2));
        assert_eq!(returns.0.lock().unwrap().len(), 1);
    }
}
