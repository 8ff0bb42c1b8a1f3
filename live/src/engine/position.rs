//! How far a viewer is, and whether a message is the next one for it. Pure.
//!
//! Events have one number, their sequence in the stream, and so have all user topics together. A log moves from the stream to the archive while it is being
//! read, and there it has no sequences: so its cursor counts attempts and bytes too.

use crate::engine::{Source, frame::LogPart};
use cratemill_protocol::{Attempt, JobId, bus::LogBody};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Everything up to this sequence was delivered or is not for this viewer.
    pub events: u64,
    /// The same of the stream of user topics; none where nobody follows one.
    pub topics: Option<u64>,
    /// One for each log that is followed and has begun.
    pub logs: BTreeMap<JobId, LogCursor>,
}

impl Position {
    /// How far it is in a stream whose topics share one sequence; a log has a cursor of its own.
    pub fn of_stream(&mut self, source: Source) -> Option<&mut u64> {
        match source {
            Source::Events => Some(&mut self.events),
            Source::Topics => self.topics.as_mut(),
            Source::Logs | Source::Timeline | Source::Pubsub => None,
        }
    }

    /// Everything up to there was delivered or is not for this viewer. False if that was known.
    pub fn reach(&mut self, source: Source, sequence: u64) -> bool {
        let Some(reached) = self.of_stream(source).filter(|reached| **reached < sequence) else {
            return false;
        };
        *reached = sequence;
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogCursor {
    /// 0 before the first.
    pub attempt: Attempt,
    /// Bytes of this attempt's log that were delivered.
    pub offset: u64,
    /// Its end was delivered.
    pub ended: bool,
    /// The last message of the stream that was delivered.
    pub sequence: u64,
}

impl Default for LogCursor {
    /// As if an attempt before the first had ended.
    fn default() -> Self {
        Self { attempt: Attempt(0), offset: 0, ended: true, sequence: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Next,
    /// It was delivered, or the attempt it belongs to is over.
    Seen,
    /// Something before it was not delivered: look for it in the archive.
    Missing,
}

impl LogCursor {
    pub fn judge(&self, sequence: u64, part: &LogPart) -> Verdict {
        if part.attempt < self.attempt
            || (part.attempt == self.attempt && self.ended)
            || (sequence > 0 && sequence <= self.sequence)
        {
            return Verdict::Seen;
        }
        let new_attempt = part.attempt > self.attempt;
        if new_attempt && !(self.ended && part.attempt.0 == self.attempt.0 + 1) {
            return Verdict::Missing;
        }
        let offset = if new_attempt { 0 } else { self.offset };
        match &part.body {
            LogBody::Text { offset: start, .. } if *start > offset => Verdict::Missing,
            LogBody::Text { offset: start, text } if *start + text.len() as u64 <= offset => Verdict::Seen,
            _ => Verdict::Next,
        }
    }

    pub fn advance(&mut self, sequence: u64, part: &LogPart) {
        if part.attempt > self.attempt {
            *self = Self { attempt: part.attempt, offset: 0, ended: false, sequence: self.sequence };
        }
        match &part.body {
            LogBody::Text { offset, text } => self.offset = self.offset.max(offset + text.len() as u64),
            LogBody::End { .. } => self.ended = true,
            LogBody::Stage { .. } => {}
        }
        self.sequence = self.sequence.max(sequence);
    }

    /// The first attempt of which something may not have been delivered.
    pub fn unfinished(&self) -> Attempt {
        Attempt(if self.ended { self.attempt.0.saturating_add(1) } else { self.attempt.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{JobState, Stage};

    fn part(attempt: i32, body: LogBody) -> LogPart {
        LogPart { job: JobId(7), attempt: Attempt(attempt), body }
    }

    fn text(attempt: i32, offset: u64, text: &str) -> LogPart {
        part(attempt, LogBody::Text { offset, text: text.into() })
    }

    fn end(attempt: i32) -> LogPart {
        part(attempt, LogBody::End { state: JobState::Queued })
    }

    #[test]
    fn a_log_is_followed_attempt_after_attempt() {
        let mut cursor = LogCursor::default();
        let parts = [
            part(1, LogBody::Stage { stage: Stage::Fetch, offset: 0 }),
            text(1, 0, "äb"),
            text(1, 3, "c"),
            end(1),
            text(2, 0, "d"),
        ];
        for (sequence, part) in (1..).zip(&parts) {
            assert_eq!(cursor.judge(sequence, part), Verdict::Next, "{part:?}");
            cursor.advance(sequence, part);
            assert_eq!(cursor.judge(sequence, part), Verdict::Seen, "{part:?}");
        }
        assert_eq!(cursor, LogCursor { attempt: Attempt(2), offset: 1, ended: false, sequence: 5 });
        assert_eq!(cursor.judge(9, &text(1, 4, "late")), Verdict::Seen);
    }

    #[test]
    fn what_is_skipped_is_missing() {
        let cursor = LogCursor { attempt: Attempt(2), offset: 4, ended: false, sequence: 9 };
        for (part, verdict) in [
            (text(2, 4, "x"), Verdict::Next),
            (text(2, 5, "x"), Verdict::Missing),
            (text(2, 2, "ab"), Verdict::Seen),
            (text(3, 0, "x"), Verdict::Missing),
            (end(2), Verdict::Next),
            (end(3), Verdict::Missing),
        ] {
            assert_eq!(cursor.judge(10, &part), verdict, "{part:?}");
        }
        let ended = LogCursor { ended: true, ..cursor };
        for (part, verdict) in [
            (text(2, 4, "x"), Verdict::Seen),
            (text(3, 0, "x"), Verdict::Next),
            (text(3, 1, "x"), Verdict::Missing),
            (text(4, 0, "x"), Verdict::Missing),
        ] {
            assert_eq!(ended.judge(10, &part), verdict, "{part:?}");
        }
    }

    #[test]
    fn what_the_archive_gave_is_seen_when_the_stream_gives_it_again() {
        let mut cursor = LogCursor::default();
        cursor.advance(0, &text(1, 0, "all of it"));
        assert_eq!(cursor.judge(3, &text(1, 0, "all")), Verdict::Seen);
        cursor.advance(0, &end(1));
        assert_eq!(
            cursor.judge(4, &part(1, LogBody::Stage { stage: Stage::Build, offset: 0 })),
            Verdict::Seen
        );
        assert_eq!(cursor.unfinished(), Attempt(2));
    }
}
