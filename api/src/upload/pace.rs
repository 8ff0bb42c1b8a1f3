//! How slowly a body may come. Pure: it is told what came and how long that was waited for.
//!
//! Only time spent waiting for the client counts: a slow object store is not its fault.

use std::time::Duration;

/// A client that sends nothing for this long is gone; its lease is not much longer.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// How much waiting is looked at together: a line may stall for seconds and make up for it.
const WINDOW: Duration = Duration::from_secs(10);
/// A tenth of a slow home line. With it the largest file holds its connections to us and to the object store for hours, not
/// for ever, and one of ten megabytes for minutes.
const MIN_BYTES_PER_S: u64 = 32 * 1024;

#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// So much came after so long; false if that is too slow.
    pub(super) fn is_kept(&mut self, bytes: usize, waited: Duration) -> bool {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < WINDOW {
            return true;
        }
        let Self { waited, bytes } = std::mem::take(self);
        bytes >= waited.as_secs() * MIN_BYTES_PER_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_stall_but_not_crawl() {
        let second = Duration::from_secs(1);
        let mut stalls = Pace::default();
        assert!((0..100).all(|n| stalls.is_kept(if n % 5 == 0 { 256 * 1024 } else { 0 }, second)));
        let mut crawls = Pace::default();
        assert!((0..9).all(|_| crawls.is_kept(1_000, second)));
        assert!(!crawls.is_kept(1_000, second));
        let mut drips = Pace::default();
        assert!(!drips.is_kept(1, 29 * second), "a byte now and then is no progress");
    }

    #[test]
    fn what_comes_at_once_is_never_too_slow() {
        let mut pace = Pace::default();
        assert!((0..10_000).all(|_| pace.is_kept(1, Duration::from_micros(10))));
    }
}
