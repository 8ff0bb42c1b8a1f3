//! How much log a builder may put on the bus, which all builders share: a bound for each attempt, and a rate for all of a
//! builder's attempts at this node.

use super::bucket::Buckets;
use cratemill_protocol::{
    BuilderId,
    builder::{Event, MAX_LOG_CHUNK_BYTES},
};
use std::time::{Duration, Instant};

/// Ten times the default log limit of a job: a bound against a builder that enforces none.
const MAX_TEXT_BYTES: u64 = 160 << 20;
/// A byte that is no text becomes a replacement character, which is this long.
const TEXT_PER_BYTE: u64 = 3;
/// What a builder adds of its own: the lines that say what it does, some hundred bytes each.
const NOTES_BYTES: u64 = 1 << 20;
/// All logs together have 4 GiB on the bus until their attempts end: alone, a builder needs more than an hour for that, and
/// an attempt has half of one. A build prints some hundred kilobytes.
const BYTES_PER_S: u32 = 1 << 20;
/// Four whole logs at once: what comes in a burst, or again after a reconnect, waits for nothing.
const BURST_BYTES: u32 = 64 << 20;
/// What a message takes on the bus beside its text.
const EVENT_BYTES: u32 = 256;

/// The text of one attempt. Each chunk begins where the one before it ended, so where the last one ends says how much there
/// was, also when it is read back from the bus.
#[derive(Debug)]
pub(super) struct Text {
    end: u64,
    most: u64,
    /// The next chunk is the first of a connection that goes on with the attempt.
    resumes: bool,
}

impl Text {
    /// Of a job that may print so much: no archive takes more.
    pub(super) fn new(log_bytes: u64) -> Self {
        let most = log_bytes.saturating_mul(TEXT_PER_BYTE).saturating_add(NOTES_BYTES);
        Self { end: 0, most: most.min(MAX_TEXT_BYTES), resumes: false }
    }

    /// The bus has the text up to `end`.
    pub(super) fn resumed(end: u64) -> Self {
        Self { end, most: MAX_TEXT_BYTES, resumes: true }
    }

    /// How much text there is.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn take(&mut self, offset: u64, text: &str) -> Result<(), &'static str> {
        let end = offset.saturating_add(text.len() as u64);
        // A builder may cut differently what it sends again, and the bus may have lost what the builder has forgotten. But
        // nothing that is stored makes the text shorter.
        let goes_on = if std::mem::take(&mut self.resumes) { end >= self.end } else { offset == self.end };
        if !goes_on {
            return Err("a chunk of log begins where the one before it ended");
        }
        if text.len() > MAX_LOG_CHUNK_BYTES || end > self.most {
            return Err("the log is beyond the limits of the protocol");
        }
        self.end = end;
        Ok(())
    }
}

/// What each builder puts on the bus.
#[derive(Debug)]
pub(super) struct Rates(Buckets);

impl Default for Rates {
    fn default() -> Self {
        Self(Buckets::new(f64::from(BYTES_PER_S), BURST_BYTES))
    }
}

impl Rates {
    /// How long to read nothing more from the builder after this: it waits, as it does for a bus that is slow.
    pub(super) fn wait(&self, builder: BuilderId, event: &Event, now: Instant) -> Duration {
        let text = match event {
            Event::Stage { .. } => 0,
            Event::Log { text, .. } => u32::try_from(text.len()).unwrap_or(u32::MAX),
        };
        self.0.with(builder, now, |bucket| bucket.draw(text.saturating_add(EVENT_BYTES), now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: usize) -> String {
        "x".repeat(bytes)
    }

    #[test]
    fn a_log_goes_on_where_it_ended_and_has_an_end() {
        let mut text = Text::new(16 << 20);
        assert_eq!(text.take(0, "one"), Ok(()));
        assert!(text.take(0, "two").is_err() && text.take(4, "two").is_err());
        assert_eq!((text.take(3, "two"), text.end()), (Ok(()), 6));
        assert!(text.take(6, &chunk(MAX_LOG_CHUNK_BYTES + 1)).is_err());

        let mut text = Text::new(0);
        let fits = (0..1_000).take_while(|n| text.take(n * 32_768, &chunk(32_768)).is_ok()).count();
        assert_eq!(fits, 32, "the notes");
        assert!(Text::resumed(u64::MAX).take(u64::MAX, "x").is_err());
    }

    #[test]
    fn a_builder_that_reconnects_does_not_start_over() {
        // Cut at another place, and after a loss.
        for (offset, end) in [(100, 103), (99, 102), (500, 503)] {
            let mut text = Text::resumed(100);
            assert_eq!((text.take(offset, "abc"), text.end()), (Ok(()), end));
            assert!(text.take(99, "abc").is_err(), "once");
        }
        assert!(Text::resumed(100).take(0, "abc").is_err(), "what is stored is not stored again");
        assert!(Text::resumed(160 << 20).take(160 << 20, "x").is_err());
    }

    #[test]
    fn a_burst_waits_for_nothing_and_a_flood_does() {
        let (rates, now) = (Rates::default(), Instant::now());
        let event = Event::Log { offset: 0, text: chunk(32_768) };
        let wait = |builder, now| rates.wait(BuilderId(builder), &event, now);
        let burst = (0..10_000).take_while(|_| wait(1, now).is_zero()).count();
        assert_eq!(burst, (64 << 20) / (32_768 + 256));
        assert!(wait(1, now) > Duration::from_millis(30));
        assert!(wait(2, now).is_zero(), "another builder");
        assert!(wait(1, now + Duration::from_secs(1)).is_zero());
    }
}
