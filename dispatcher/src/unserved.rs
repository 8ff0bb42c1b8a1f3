//! Targets that jobs wait for and no builder waits with: looked for once, not in every round. Pure.
//!
//! A queue for a target whose builders are all away would else cost each round as many locks as it has jobs, and each look
//! a pass over all builders that wait for something else.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// What is known is forgotten after this: a builder may wait again without having asked, when it is enabled or its pause is
/// over, or have asked another dispatcher that died.
const KNOWN_FOR: Duration = Duration::from_millis(1_500);

#[derive(Debug, Default)]
pub struct Unserved(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Instant>,
    /// How many times builders have asked, and at which of these each target was among what they offered. As many as the
    /// targets that are built for.
    asked: u64,
    last: HashMap<String, u64>,
    /// At which of them all was forgotten.
    forgotten: u64,
}

/// When a look began. What is offered after that it may not have seen.
#[derive(Debug, Clone, Copy)]
pub struct Began(u64);

impl Unserved {
    /// Before the database is asked.
    pub fn begin(&self) -> Began {
        Began(self.state().asked)
    }

    /// The look found these unserved.
    pub fn found(&self, began: Began, targets: Vec<String>, now: Instant) {
        let mut state = self.state();
        if state.forgotten > began.0 {
            return;
        }
        for target in targets {
            if state.last.get(&target).is_none_or(|asked| *asked <= began.0) {
                state.known.insert(target, now);
            }
        }
    }

    /// Builders ask for jobs of these targets; it is committed.
    pub fn offered<'a>(&self, targets: impl IntoIterator<Item = &'a str>) {
        let mut state = self.state();
        state.asked += 1;
        let asked = state.asked;
        for target in targets {
            state.known.remove(target);
            match state.last.get_mut(target) {
                Some(last) => *last = asked,
                None => drop(state.last.insert(target.to_owned(), asked)),
            }
        }
    }

    /// Builders may wait again for whatever it is.
    pub fn forget(&self) {
        let mut state = self.state();
        state.asked += 1;
        state.forgotten = state.asked;
        state.known.clear();
    }

    /// How long until some of it is forgotten.
    pub fn known_for(&self, now: Instant) -> Duration {
        let state = self.state();
        let left = state.known.values().map(|since| KNOWN_FOR.saturating_sub(now.duration_since(*since)));
        left.min().unwrap_or(Duration::MAX)
    }

    /// In the order of their names.
    pub fn known(&self, now: Instant) -> Vec<String> {
        let mut state = self.state();
        state.known.retain(|_, since| now.duration_since(*since) < KNOWN_FOR);
        let mut known: Vec<_> = state.known.keys().cloned().collect();
        known.sort_unstable();
        known
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_found_is_known_until_a_builder_offers_it() {
        let (unserved, now) = (Unserved::default(), Instant::now());
        unserved.found(unserved.begin(), names(&["mac", "arm"]), now);
        assert_eq!(unserved.known(now), ["arm", "mac"]);
        unserved.offered(["linux", "arm"]);
        assert_eq!(unserved.known(now), ["mac"]);
        unserved.found(unserved.begin(), names(&["arm"]), now);
        assert_eq!(unserved.known(now), ["arm", "mac"], "it was taken meanwhile");
    }

    #[test]
    fn what_is_offered_while_somebody_looks_is_not_unserved() {
        let (unserved, now) = (Unserved::default(), Instant::now());
        let began = unserved.begin();
        unserved.offered(["mac"]);
        unserved.found(began, names(&["mac", "arm"]), now);
        assert_eq!(unserved.known(now), ["arm"]);
    }

    #[test]
    fn what_was_looked_for_before_all_was_forgotten_is_not_known() {
        let (unserved, now) = (Unserved::default(), Instant::now());
        unserved.found(unserved.begin(), names(&["mac"]), now);
        let began = unserved.begin();
        unserved.forget();
        unserved.found(began, names(&["arm"]), now);
        assert!(unserved.known(now).is_empty());
        unserved.found(unserved.begin(), names(&["arm"]), now);
        assert_eq!(unserved.known(now), ["arm"]);
    }

    #[test]
    fn it_is_forgotten_in_time() {
        let (unserved, now) = (Unserved::default(), Instant::now());
        unserved.found(unserved.begin(), names(&["mac"]), now);
        assert_eq!(unserved.known_for(now + KNOWN_FOR / 2), KNOWN_FOR / 2);
        assert_eq!(unserved.known(now + KNOWN_FOR / 2), ["mac"]);
        assert!(unserved.known(now + KNOWN_FOR).is_empty());
    }
}
