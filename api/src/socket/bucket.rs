//! A token bucket: so many a second, with a burst. And one for each builder.

use cratemill_protocol::BuilderId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Builders remembered before those that have been quiet are forgotten; it stays below the number of registered keys.
const REMEMBERED: usize = 16_384;

#[derive(Debug)]
pub(super) struct Bucket {
    per_s: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(per_s: f64, burst: u32, now: Instant) -> Self {
        Self { per_s, burst: f64::from(burst), tokens: f64::from(burst), filled: now }
    }

    /// Takes one; false if there is none.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// Takes so many, on credit if need be; the answer is how long it takes to pay that back.
    pub(super) fn draw(&mut self, count: u32, now: Instant) -> Duration {
        self.fill(now);
        self.tokens -= f64::from(count);
        Duration::from_secs_f64((-self.tokens / self.per_s).max(0.0))
    }

    /// Nothing was taken for so long that it is as good as new.
    fn is_full(&self, now: Instant) -> bool {
        self.at(now) >= self.burst
    }

    fn fill(&mut self, now: Instant) {
        self.tokens = self.at(now);
        self.filled = now;
    }

    fn at(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        (self.tokens + elapsed * self.per_s).min(self.burst)
    }
}

/// Of all builders at one node.
#[derive(Debug)]
pub(super) struct Buckets {
    per_s: f64,
    burst: u32,
    of: Mutex<HashMap<BuilderId, Bucket>>,
}

impl Buckets {
    pub(super) fn new(per_s: f64, burst: u32) -> Self {
        Self { per_s, burst, of: Mutex::default() }
    }

    pub(super) fn with<T>(&self, builder: BuilderId, now: Instant, act: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut buckets = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&builder) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        act(buckets.entry(builder).or_insert_with(|| Bucket::new(self.per_s, self.burst, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 3, start);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        let later = start + Duration::from_millis(200);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 2);
        assert_eq!((0..5).filter(|_| bucket.take(later + Duration::from_hours(1))).count(), 3);
    }

    #[test]
    fn what_is_drawn_on_credit_is_paid_back() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 3, start);
        assert_eq!(bucket.draw(3, start), Duration::ZERO);
        assert_eq!(bucket.draw(5, start), Duration::from_millis(500));
        assert_eq!(bucket.draw(0, start + Duration::from_millis(500)), Duration::ZERO);
    }

    #[test]
    fn each_builder_has_its_own_and_the_quiet_are_forgotten() {
        let (buckets, now) = (Buckets::new(0.5, 20), Instant::now());
        let take = |builder, now| buckets.with(BuilderId(builder), now, |bucket| bucket.take(now));
        let tries = |builder, now| (0..100).filter(|_| take(builder, now)).count();
        assert_eq!((tries(1, now), tries(2, now)), (20, 20));
        assert_eq!(tries(1, now + Duration::from_secs(4)), 2);
        for builder in 0..20_000 {
            take(builder, now + Duration::from_hours(1));
        }
        assert!(buckets.of.lock().unwrap().len() <= 20_000);
        take(-1, now + Duration::from_hours(2));
        assert_eq!(buckets.of.lock().unwrap().len(), 1);
    }
}
