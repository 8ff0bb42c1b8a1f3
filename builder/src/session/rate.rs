//! How many events a second may be sent, so that a chatty build is slowed down here instead of closed as a flood there.

use std::time::{Duration, Instant};

/// Heartbeats, answers and outcomes are not counted: a quarter of the server's allowance stays free for them.
const SHARE_FOR_EVENTS: f64 = 0.75;

/// A token bucket that holds at most one second's worth.
#[derive(Debug)]
pub(super) struct Rate {
    per_s: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(max_messages_per_s: u32, now: Instant) -> Self {
        let per_s = (f64::from(max_messages_per_s) * SHARE_FOR_EVENTS).max(1.0);
        Self { per_s, tokens: per_s, at: now }
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let elapsed_s = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed_s * self.per_s).min(self.per_s);
        self.at = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }

    /// When the next one may go.
    pub(super) fn next_at(&self) -> Instant {
        let missing = (1.0 - self.tokens).max(0.0);
        self.at + Duration::from_secs_f64(missing / self.per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_its_share_in_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(100, start);
        let burst = (0..1_000).filter(|_| rate.take(start)).count();
        assert_eq!(burst, 75);
        assert!(!rate.take(start));
        let next = rate.next_at() + Duration::from_millis(1);
        assert!(next > start && rate.take(next));
    }
}
