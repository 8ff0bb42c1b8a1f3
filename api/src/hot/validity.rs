//! When what was read of the catalogue may be used again: the rule, without a clock and without the database.
//!
//! A change is committed at some moment. A look that begins later sees another generation, and everything that was read
//! before is forgotten. A look that began earlier may have seen the generation of before, and is relied on for
//! [`LOOK_HOLDS`]. So nothing is used for longer than that after a change, whether looks fail, hang or come late.

use std::time::{Duration, Instant};

/// What a look has seen holds for so long after it began. A blocked artifact must be gone two seconds after the block: the
/// rest is for the request that was let through at the last moment, and waits for its count.
pub(super) const LOOK_HOLDS: Duration = Duration::from_millis(1_500);

#[derive(Debug, Default)]
pub(super) struct Validity {
    generation: Option<i64>,
    looked_at: Option<Instant>,
    /// How often everything was forgotten.
    forgotten: u64,
}

/// What is read now: until when it may be used, unless it is forgotten before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    forgotten: u64,
    until: Instant,
}

impl Validity {
    /// A look that began at `began` has seen this generation.
    pub(super) fn looked(&mut self, generation: i64, began: Instant) {
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            self.forgotten += 1;
        }
        self.looked_at = Some(began);
    }

    /// For what is read from now on, and may be used for `life`. None while changes may be missed.
    pub(super) fn stamp(&self, now: Instant, life: Duration) -> Option<Stamp> {
        self.holds(now).then(|| Stamp { forgotten: self.forgotten, until: now + life })
    }

    pub(super) fn usable(&self, stamp: Stamp, now: Instant) -> bool {
        self.holds(now) && stamp.forgotten == self.forgotten && now < stamp.until
    }

    pub(super) fn holds(&self, now: Instant) -> bool {
        self.looked_at.is_some_and(|began| now.saturating_duration_since(began) < LOOK_HOLDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(10);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn nothing_is_kept_before_the_first_look() {
        let start = Instant::now();
        let mut validity = Validity::default();
        assert!(validity.stamp(start, LIFE).is_none());
        validity.looked(0, start);
        assert!(validity.stamp(start, LIFE).is_some());
    }

    #[test]
    fn a_look_holds_from_its_beginning_and_not_from_its_answer() {
        let start = Instant::now();
        let mut validity = Validity::default();
        validity.looked(7, start);
        let stamp = validity.stamp(start + ms(1), LIFE).unwrap();
        assert!(validity.usable(stamp, start + ms(1_499)));
        assert!(!validity.usable(stamp, start + LOOK_HOLDS));
        assert!(validity.stamp(start + LOOK_HOLDS, LIFE).is_none());
        // This one began a second ago, and its answer has only come now.
        validity.looked(7, start + ms(1_000));
        assert!(validity.usable(stamp, start + ms(2_499)), "nothing has changed");
        assert!(!validity.usable(stamp, start + ms(2_500)));
    }

    /// Blocks at every moment between two looks, whatever becomes of the looks after: nothing of before is used two
    /// seconds later.
    #[test]
    fn nothing_is_used_two_seconds_after_a_change() {
        let start = Instant::now();
        for (changed, fails) in (0..500).step_by(50).flat_map(|at| [(at, 0), (at, 1), (at, 4), (at, 1_000)]) {
            let mut validity = Validity::default();
            validity.looked(0, start);
            let stamp = validity.stamp(start, Duration::from_mins(1)).unwrap();
            for at in (0..5_000_u64).step_by(10) {
                let now = start + ms(at);
                if at % 500 == 0 && at > fails * 500 {
                    validity.looked(i64::from(at >= changed), now);
                }
                if at >= changed + 2_000 {
                    assert!(!validity.usable(stamp, now), "changed {changed}, {fails} fail, used {at}");
                }
            }
        }
    }

    #[test]
    fn another_generation_forgets_even_if_it_is_lower() {
        let start = Instant::now();
        for other in [8, 6] {
            let mut validity = Validity::default();
            validity.looked(7, start);
            let stamp = validity.stamp(start, LIFE).unwrap();
            validity.looked(other, start + ms(500));
            assert!(!validity.usable(stamp, start + ms(501)));
            let fresh = validity.stamp(start + ms(501), LIFE).unwrap();
            assert!(validity.usable(fresh, start + ms(502)));
            assert!(!validity.usable(stamp, start + ms(502)), "forgotten for good");
        }
    }

    #[test]
    fn a_life_ends_while_looks_succeed() {
        let start = Instant::now();
        let mut validity = Validity::default();
        validity.looked(7, start);
        let stamp = validity.stamp(start, ms(2_000)).unwrap();
        validity.looked(7, start + ms(1_900));
        assert!(validity.usable(stamp, start + ms(1_999)));
        assert!(!validity.usable(stamp, start + ms(2_000)));
    }
}
