//! Reads of the object store: few at once, none for long, and none at all while it is known to hang.
//!
//! A store that takes connections and never answers must cost only the outcomes that need it. They are told so at once and
//! come again from the bus, instead of filling the places of those that need no store.

use bytes::Bytes;
use cratemill_store::objects::{Error, Objects};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// Each may have 16 MiB in memory.
const AT_ONCE: usize = 4;
/// Enough for the largest document at 2 MB/s, and less than half of what an outcome may be in hand.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Shorter than what an outcome waits that found the store away: another one gets to ask first, so that an object that can
/// never be read holds up no other.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads for outcomes, from one store.
#[derive(Debug)]
pub struct Reads {
    objects: Objects,
    permits: Semaphore,
    hangs: Mutex<Hangs>,
}

impl Reads {
    pub fn new(objects: Objects) -> Self {
        Self { objects, permits: Semaphore::new(AT_ONCE), hangs: Mutex::default() }
    }

    /// The whole object, if it is not longer than `most`.
    pub(super) async fn get(&self, key: &str, most: u64) -> Result<Bytes, Error> {
        let permit = timeout(TIMEOUT, self.permits.acquire()).await;
        let _permit = permit.map_err(|_| unavailable("others have waited for it for too long"))?;
        // What came before may have found out meanwhile.
        if !self.hangs().may_ask(Instant::now()) {
            return Err(unavailable("it did not answer a moment ago"));
        }
        if let Ok(answer) = timeout(TIMEOUT, self.objects.get_bytes(key, most)).await {
            self.hangs().answered();
            return answer;
        }
        self.hangs().timed_out(Instant::now());
        Err(unavailable("no answer in time"))
    }

    fn hangs(&self) -> std::sync::MutexGuard<'_, Hangs> {
        self.hangs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(why: &str) -> Error {
    Error::Unavailable(why.to_owned())
}

/// Whether the store hangs, as far as is known.
#[derive(Debug, Default)]
struct Hangs {
    /// It did not answer the last time. It is asked again from then on, by one at a time.
    until: Option<Instant>,
}

impl Hangs {
    fn may_ask(&mut self, now: Instant) -> bool {
        match self.until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.until = Some(now + TIMEOUT);
                true
            }
        }
    }

    fn answered(&mut self) {
        self.until = None;
    }

    fn timed_out(&mut self, now: Instant) {
        self.until = Some(now + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_hangs_is_asked_by_one_at_a_time() {
        let (mut hangs, start) = (Hangs::default(), Instant::now());
        assert!(hangs.may_ask(start) && hangs.may_ask(start), "it works");
        hangs.timed_out(start);
        assert!(!hangs.may_ask(start));
        let again = start + PAUSE;
        assert!(hangs.may_ask(again), "the first");
        assert!(!hangs.may_ask(again), "who waits for what becomes of the first");
        assert!(hangs.may_ask(again + TIMEOUT), "the first was given up without a word");
        hangs.answered();
        assert!(hangs.may_ask(again) && hangs.may_ask(again));
    }
}
