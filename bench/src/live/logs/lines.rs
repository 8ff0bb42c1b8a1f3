//! The lines of a log that tell where they belong and when they were printed, and the check that a viewer has all of them,
//! once and whole. Pure.

use std::fmt::Write as _;

pub(super) const LINE_BYTES: u64 = 80;
const DIGITS: usize = 10;
const STAMP: std::ops::Range<usize> = DIGITS + 1..DIGITS + 17;
const FILLER: &str = "Compiling something-with-a-name v1.2.3 (/source/nm)";

/// Line `number`, from 0.
pub(super) fn put(number: u64, at_us: u64, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{number:0DIGITS$} {at_us:016} {FILLER}");
}

/// How far a viewer is in the text of a log.
#[derive(Debug, Default)]
pub(super) struct Follower {
    pub(super) offset: u64,
}

/// What a piece of the log brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Ends of lines.
    pub(super) lines: u64,
    /// When the first of its lines that begin here was printed.
    pub(super) at_us: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("text at {at} came, {wanted} is next")]
    Place { at: u64, wanted: u64 },
    #[error("the line at {0} is not what was printed")]
    Line(u64),
    #[error("not an event of a log: {0}")]
    Malformed(String),
}

impl Follower {
    /// The data of an event of a log, as JSON.
    pub(super) fn take(&mut self, json: &[u8]) -> Result<Seen, Fault> {
        let malformed =
            || Fault::Malformed(String::from_utf8_lossy(&json[..json.len().min(200)]).into_owned());
        let (at, text) = parse(json).ok_or_else(malformed)?;
        if at != self.offset {
            return Err(Fault::Place { at, wanted: self.offset });
        }
        self.text(text)
    }

    /// Text as JSON has it: of what stands in our lines, only their ends have an escape.
    fn text(&mut self, mut text: &[u8]) -> Result<Seen, Fault> {
        let mut seen = Seen { lines: 0, at_us: None };
        while !text.is_empty() {
            let (number, begun) = (self.offset / LINE_BYTES, self.offset % LINE_BYTES);
            // Less than a line, which is short.
            let whole = usize::try_from(LINE_BYTES - 1 - begun).unwrap_or_default();
            if begun == 0
                && let Some(head) = text.get(..STAMP.end)
            {
                if digits(&head[..DIGITS]) != Some(number) {
                    return Err(Fault::Line(self.offset));
                }
                seen.at_us = seen.at_us.or_else(|| digits(&head[STAMP]));
            }
            if text.len() < whole + 2 {
                if text.contains(&b'\\') || text.len() > whole {
                    return Err(Fault::Line(self.offset));
                }
                self.offset += text.len() as u64;
                break;
            }
            if text[whole..whole + 2] != *b"\\n" {
                return Err(Fault::Line(self.offset));
            }
            self.offset += whole as u64 + 1;
            seen.lines += 1;
            text = &text[whole + 2..];
        }
        Ok(seen)
    }
}

/// Where the text of an event belongs, and the text.
fn parse(json: &[u8]) -> Option<(u64, &[u8])> {
    const OFFSET: &[u8] = b"\"offset\":";
    const TEXT: &[u8] = b",\"text\":\"";
    let begin = json.windows(OFFSET.len()).position(|window| window == OFFSET)? + OFFSET.len();
    let rest = &json[begin..];
    let length = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    let text = rest[length..].strip_prefix(TEXT)?.strip_suffix(b"\"}")?;
    Some((digits(&rest[..length])?, text))
}

fn digits(digits: &[u8]) -> Option<u64> {
    let add = |sum: u64, digit: &u8| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| sum * 10 + u64::from(digit))
    };
    digits.iter().try_fold(0, add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: u64) -> String {
        let mut log = String::new();
        (0..lines).for_each(|number| put(number, 1_000 + number, &mut log));
        log
    }

    fn event(offset: usize, text: &str) -> Vec<u8> {
        let text = serde_json::to_string(text).unwrap();
        format!("{{\"topic\":\"job.1.log\",\"attempt\":1,\"offset\":{offset},\"text\":{text}}}").into_bytes()
    }

    #[test]
    fn a_log_is_whole_wherever_it_is_cut() {
        let log = log(20);
        assert_eq!(log.len() as u64, 20 * LINE_BYTES);
        for size in [1, 7, 79, 80, 81, 160, 333, 10_000] {
            let mut follower = Follower::default();
            let pieces = log.as_bytes().chunks(size).enumerate();
            let seen: Vec<Seen> = pieces
                .map(|(n, piece)| follower.take(&event(n * size, str::from_utf8(piece).unwrap())).unwrap())
                .collect();
            assert_eq!(seen.iter().map(|seen| seen.lines).sum::<u64>(), 20, "{size}");
            assert_eq!(follower.offset, log.len() as u64);
            assert!(size < 27 || seen[0].at_us == Some(1_000));
        }
    }

    #[test]
    fn what_is_lost_repeated_or_damaged_is_found() {
        let log = log(4);
        let mut follower = Follower::default();
        follower.take(&event(0, &log[..100])).unwrap();
        assert_eq!(follower.take(&event(0, &log[..100])), Err(Fault::Place { at: 0, wanted: 100 }));
        assert_eq!(follower.take(&event(160, &log[160..])), Err(Fault::Place { at: 160, wanted: 100 }));
        assert_eq!(follower.take(&event(100, &log[101..])), Err(Fault::Line(100)), "a byte less");
        let mut other = Follower::default();
        assert_eq!(other.take(&event(0, &log[80..])), Err(Fault::Line(0)), "another line");
        assert!(matches!(other.take(b"{\"offset\":x"), Err(Fault::Malformed(_))));
    }
}
