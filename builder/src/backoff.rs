//! How long to wait before the next try: exponential with jitter, so that builders do not come back in step.

use rand::Rng;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    base: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(base: Duration, most: Duration) -> Self {
        Self { base, most, failures: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Between half of what is due and all of it.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.next_delay_within(self.most)
    }

    /// The same, when there is a reason to be back sooner than usual.
    pub(crate) fn next_delay_within(&mut self, most: Duration) -> Duration {
        let due = self.base.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.most).min(most);
        self.failures = self.failures.saturating_add(1);
        due.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 30 * second);
        let delays: Vec<_> = (0..100).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= second && delays[0] >= second / 2);
        assert!(delays[1] >= second && delays[99] >= 15 * second);
        assert!(delays.iter().all(|delay| *delay <= 30 * second));
        let sooner: Vec<_> = (0..100).map(|_| backoff.next_delay_within(4 * second)).collect();
        assert!(sooner.iter().all(|delay| (2 * second..=4 * second).contains(delay)));
        assert!(sooner.iter().any(|delay| *delay != sooner[0]), "not in step");
        backoff.reset();
        assert!(backoff.next_delay() <= second);
    }
}
