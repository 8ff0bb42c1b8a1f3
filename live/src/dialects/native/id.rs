//! Positions as event ids: opaque to viewers, understood by every node.
//!
//! ```text
//! 812                          the events stream
//! 812.45                       and the stream of user topics, for who follows any
//! 812-7.1.5120.340             and the log of job 7: attempt 1, 5120 bytes, message 340 of the logs stream
//! 812-7.1.5120.340.end         that attempt's end was seen
//! ```

use crate::engine::position::{LogCursor, Position};
use cratemill_protocol::{Attempt, JobId};
use std::fmt::Write as _;

pub fn format(position: &Position) -> String {
    let mut id = position.events.to_string();
    if let Some(topics) = position.topics {
        // Writing to a string cannot fail.
        let _ = write!(id, ".{topics}");
    }
    for (job, cursor) in &position.logs {
        let LogCursor { attempt, offset, ended, sequence } = cursor;
        let end = if *ended { ".end" } else { "" };
        let _ = write!(id, "-{job}.{attempt}.{offset}.{sequence}{end}");
    }
    id
}

pub fn parse(id: &str) -> Option<Position> {
    let mut parts = id.split('-');
    let streams = parts.next()?;
    let (events, topics) = match streams.split_once('.') {
        None => (streams, None),
        Some((events, topics)) => (events, Some(number(topics)?)),
    };
    let mut position = Position { events: number(events)?, topics, ..Position::default() };
    for part in parts {
        let tokens: Vec<&str> = part.split('.').collect();
        let (job, attempt, offset, sequence, ended) = match *tokens {
            [job, attempt, offset, sequence] => (job, attempt, offset, sequence, false),
            [job, attempt, offset, sequence, "end"] => (job, attempt, offset, sequence, true),
            _ => return None,
        };
        let job = JobId(i64::try_from(number(job)?).ok()?);
        let attempt = Attempt(i32::try_from(number(attempt)?).ok()?);
        let cursor = LogCursor { attempt, offset: number(offset)?, ended, sequence: number(sequence)? };
        if job.0 < 1 || attempt.0 < 1 || position.logs.insert(job, cursor).is_some() {
            return None;
        }
    }
    Some(position)
}

/// Digits only, as [`format`] writes them; a sequence near the end of its range is nobody's.
fn number(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_parse_back(
            events in 0u64..u64::MAX >> 1,
            topics in proptest::option::of(0u64..u64::MAX >> 1),
            logs in proptest::collection::btree_map(
                (1i64..i64::MAX).prop_map(JobId),
                (1i32..i32::MAX, 0u64..1 << 40, any::<bool>(), 0u64..1 << 50).prop_map(
                    |(attempt, offset, ended, sequence)| LogCursor { attempt: Attempt(attempt), offset, ended, sequence }
                ),
                0..5,
            ),
        ) {
            let position = Position { events, topics, logs };
            prop_assert_eq!(parse(&format(&position)), Some(position));
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC*", near in "[0-9.\\-end]{0,40}") {
            parse(&text);
            parse(&near);
        }
    }

    #[test]
    fn golden() {
        let cursor = |ended| LogCursor { attempt: Attempt(1), offset: 5120, ended, sequence: 340 };
        let position =
            |ended| Position { events: 812, topics: None, logs: [(JobId(7), cursor(ended))].into() };
        assert_eq!(format(&Position { events: 812, ..Position::default() }), "812");
        assert_eq!(format(&position(false)), "812-7.1.5120.340");
        assert_eq!(format(&position(true)), "812-7.1.5120.340.end");
        assert_eq!(format(&Position { topics: Some(45), ..position(false) }), "812.45-7.1.5120.340");
        assert_eq!(format(&Position { events: 812, topics: Some(45), ..Position::default() }), "812.45");
        for bad in [
            "",
            "x",
            "-1",
            "+1",
            "1-",
            "1-7",
            "1-7.1.2",
            "1-7.1.2.3.4",
            "1-7.0.2.3",
            "1-0.1.2.3",
            "1 ",
            "1.",
            ".1",
            "1.2.3",
            "1.x",
            "1-7.1.2.3.end.1",
            "1-7.1.2.3-7.1.2.3",
            "18446744073709551615",
            "99999999999999999999999",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
