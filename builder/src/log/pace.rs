//! How soon text that came goes on its way, so that what people wait for is there at once and a chatty build makes few
//! messages; pure.

use std::time::{Duration, Instant};

/// What is printed in one go comes in several reads: the first of them waits so long for the others.
const GATHER: Duration = Duration::from_millis(5);
/// Ten chunks a second per job are easy on everything behind.
const EVERY: Duration = Duration::from_millis(100);
/// Chunks that need not wait for each other after silence: our own notes come right before the first line of a build, and
/// cargo begins with a few lines.
const BURST: u32 = 8;

/// A bucket that has [`BURST`] chunks and gets one more [`EVERY`] so often.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the bucket is full; none before the first chunk.
    full_at: Option<Instant>,
}

impl Pace {
    /// When text may go whose first byte came then.
    pub(super) fn due(&self, since: Instant) -> Instant {
        let gathered = since + GATHER;
        let refilled = self.full_at.and_then(|full_at| full_at.checked_sub(EVERY * (BURST - 1)));
        refilled.map_or(gathered, |refilled| refilled.max(gathered))
    }

    /// A chunk went because it was due.
    pub(super) fn went(&mut self, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_silence_goes_at_once_and_what_comes_all_the_time_at_its_rate() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut now = start;
        let waits: Vec<Duration> = (0..30)
            .map(|_| {
                let due = pace.due(now);
                let wait = due - now;
                pace.went(due);
                now = due;
                wait
            })
            .collect();
        assert!(waits[..8].iter().all(|wait| *wait == GATHER), "{waits:?}");
        assert!(waits[10..].iter().all(|wait| *wait == EVERY), "{waits:?}");
        assert_eq!(pace.due(now + EVERY), now + EVERY + GATHER);
        assert_eq!(Pace::default().due(start), start + GATHER);
    }

    #[test]
    fn ten_lines_a_second_never_wait() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for _ in 0..1_000 {
            let due = pace.due(now);
            assert_eq!(due, now + GATHER);
            pace.went(due);
            now += EVERY;
        }
    }
}
