//! A token bucket: so many a second, with a burst.

use std::time::Instant;

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
        self.tokens = self.at(now);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// Nothing was taken for so long that it is as good as new.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.at(now) >= self.burst
    }

    fn at(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        (self.tokens + elapsed * self.per_s).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 3, start);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        let later = start + Duration::from_millis(200);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 2);
        assert_eq!((0..5).filter(|_| bucket.take(later + Duration::from_hours(1))).count(), 3);
    }
}
