//! A log from its events, compressed as it grows. Pure but for the memory it fills.
//!
//! Offsets say what of a text is new, as they do for whoever reads the log from the bus: a builder that reconnects
//! sends events again, perhaps cut at other places. Numbers say whether all events are there.

use cratemill_protocol::bus::{LogBody, LogMessage};
use flate2::{Compression, write::GzEncoder};
use std::io::{self, Write};

#[derive(Debug)]
pub struct Assembler {
    gzip: GzEncoder<Vec<u8>>,
    /// Of text, before compression.
    bytes: u64,
    /// Where the text that was taken ends in the builder's log.
    offset: u64,
    most: u64,
    last_seq: u64,
    missing: u64,
    ended: bool,
}

/// A whole log.
#[derive(Debug)]
pub struct Log {
    pub gzip: Vec<u8>,
    pub bytes: u64,
    /// The highest event number that was seen.
    pub last_seq: u64,
    /// Its end was announced already.
    pub ended: bool,
    /// Events that are known to be missing before the last one that was seen; a hole in the text that no missing
    /// number explains counts as one.
    missing: u64,
}

impl Assembler {
    /// Takes at most `most` bytes of text; a builder ends a job that writes so much.
    pub fn new(most: u64) -> Self {
        let gzip = GzEncoder::new(Vec::new(), Compression::default());
        Self { gzip, bytes: 0, offset: 0, most, last_seq: 0, missing: 0, ended: false }
    }

    /// Takes the next event of the stream, or what is new of it. False: it is full.
    pub fn push(&mut self, message: &LogMessage) -> io::Result<bool> {
        if let LogBody::End { .. } = message.body {
            self.ended = true;
            return Ok(true);
        }
        let skipped = message.seq.saturating_sub(self.last_seq.saturating_add(1));
        self.missing = self.missing.saturating_add(skipped);
        self.last_seq = self.last_seq.max(message.seq);
        if let LogBody::Text { offset, text } = &message.body {
            let seen = usize::try_from(self.offset.saturating_sub(*offset)).unwrap_or(usize::MAX);
            let Some(new) = text.as_bytes().get(seen..).filter(|new| !new.is_empty()) else {
                return Ok(true);
            };
            if self.bytes + new.len() as u64 > self.most {
                self.missing = self.missing.saturating_add(1);
                return Ok(false);
            }
            if *offset > self.offset && skipped == 0 {
                self.missing = self.missing.saturating_add(1);
            }
            self.gzip.write_all(new)?;
            self.bytes += new.len() as u64;
            self.offset = offset.saturating_add(text.len() as u64);
        }
        Ok(true)
    }

    pub fn finish(self) -> io::Result<Log> {
        Ok(Log {
            gzip: self.gzip.finish()?,
            bytes: self.bytes,
            last_seq: self.last_seq,
            ended: self.ended,
            missing: self.missing,
        })
    }
}

impl Log {
    /// How many of the events up to `last_seq` are not in it.
    pub fn missing(&self, last_seq: u64) -> u64 {
        self.missing.saturating_add(last_seq.saturating_sub(self.last_seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{Attempt, JobId, JobState};
    use flate2::read::GzDecoder;
    use proptest::prelude::*;
    use std::io::Read;

    fn event(seq: u64, body: LogBody) -> LogMessage {
        LogMessage { job: JobId(1), attempt: Attempt(1), seq, at_ms: 0, body }
    }

    fn text(seq: u64, offset: u64, text: &str) -> LogMessage {
        event(seq, LogBody::Text { offset, text: text.into() })
    }

    fn unpack(log: &Log) -> String {
        let mut text = String::new();
        GzDecoder::new(log.gzip.as_slice()).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn gaps_and_ends_are_seen() {
        let mut assembler = Assembler::new(100);
        assembler.push(&text(1, 0, "a")).unwrap();
        assembler.push(&text(3, 2, "c")).unwrap();
        assembler.push(&event(4, LogBody::End { state: JobState::Failed })).unwrap();
        let log = assembler.finish().unwrap();
        assert_eq!((unpack(&log).as_str(), log.ended, log.last_seq), ("ac", true, 3));
        assert_eq!((log.missing(0), log.missing(3), log.missing(5)), (1, 1, 3));
        let mut assembler = Assembler::new(100);
        assembler.push(&text(1, 1, "b")).unwrap();
        assert_eq!(assembler.finish().unwrap().missing(1), 1, "a hole in the text");
        let empty = Assembler::new(100).finish().unwrap();
        assert_eq!((empty.missing(0), empty.missing(1), unpack(&empty).as_str()), (0, 1, ""));
    }

    #[test]
    fn other_cuts_of_the_same_text_change_nothing() {
        let mut assembler = Assembler::new(100);
        for event in [text(1, 0, "abc"), text(1, 0, "ab"), text(2, 2, "cde"), text(2, u64::MAX, "")] {
            assert!(assembler.push(&event).unwrap());
        }
        assert_eq!(unpack(&assembler.finish().unwrap()), "abcde");
    }

    #[test]
    fn it_is_bounded() {
        let mut assembler = Assembler::new(3);
        assert!(assembler.push(&text(1, 0, "abc")).unwrap());
        assert!(!assembler.push(&text(2, 3, "d")).unwrap());
        let log = assembler.finish().unwrap();
        assert_eq!((unpack(&log).as_str(), log.missing(2)), ("abc", 1));
    }

    proptest! {
        /// Whatever is sent again after a reconnect, the text is the same.
        #[test]
        fn repeats_change_nothing(chunks in prop::collection::vec("[a-z\n]{0,8}", 0..20), again in prop::collection::vec((0_usize..20, 1_usize..6), 0..6)) {
            let mut offset = 0;
            let events: Vec<_> = (1..)
                .zip(&chunks)
                .map(|(seq, chunk)| {
                    let event = text(seq, offset, chunk);
                    offset += chunk.len() as u64;
                    event
                })
                .collect();
            let mut sent = Vec::new();
            for (position, event) in events.iter().enumerate() {
                sent.push(event.clone());
                for (at, back) in &again {
                    if *at == position {
                        sent.extend(events[position.saturating_sub(*back)..=position].iter().cloned());
                    }
                }
            }
            let mut assembler = Assembler::new(1_000);
            for event in &sent {
                prop_assert!(assembler.push(event).unwrap());
            }
            let log = assembler.finish().unwrap();
            prop_assert_eq!(unpack(&log), chunks.concat());
            prop_assert_eq!(log.missing(events.len() as u64), 0);
        }
    }
}
