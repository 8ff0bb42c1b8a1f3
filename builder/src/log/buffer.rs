//! Bytes of a build's output to chunks of text with offsets; pure.

use std::time::Instant;

/// A chunk of this size goes at once.
pub(super) const FLUSH_BYTES: usize = 16 * 1024;

/// Which pipe bytes came from: a character may be split at the end of a read, and goes on in the same pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct Buffer {
    out: Decoder,
    err: Decoder,
    text: String,
    /// When the first byte in `text` came.
    since: Option<Instant>,
    /// Bytes of text in chunks handed out.
    offset: u64,
    /// Bytes of output that may still come.
    left: u64,
    max_chunk: usize,
}

/// The output is larger than the job may print; what fits was kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Buffer {
    pub(super) fn new(max_bytes: u64, max_chunk: usize) -> Self {
        Self {
            out: Decoder::default(),
            err: Decoder::default(),
            text: String::new(),
            since: None,
            offset: 0,
            left: max_bytes,
            max_chunk: max_chunk.max(4),
        }
    }

    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8], now: Instant) -> Result<(), Overflow> {
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= fits as u64;
        let decoder = match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        };
        decoder.decode(&bytes[..fits], &mut self.text);
        self.since.get_or_insert(now);
        if fits < bytes.len() { Err(Overflow) } else { Ok(()) }
    }

    /// A line of our own, on a line of its own; it does not count as the job's output.
    pub(super) fn note(&mut self, line: &str, now: Instant) {
        self.end_characters();
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.text.push_str(line);
        self.text.push('\n');
        self.since.get_or_insert(now);
    }

    /// No more bytes come: half a character stays half.
    pub(super) fn end_characters(&mut self) {
        self.out.end(&mut self.text);
        self.err.end(&mut self.text);
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= FLUSH_BYTES
    }

    /// Since when there is text that waits.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.since.filter(|_| !self.text.is_empty())
    }

    /// All there is, in chunks that a frame can hold, cut between characters.
    pub(super) fn take(&mut self) -> Vec<Chunk> {
        self.since = None;
        let text = std::mem::take(&mut self.text);
        let mut rest = text.as_str();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.floor_char_boundary(self.max_chunk));
            chunks.push(Chunk { offset: self.offset, text: chunk.to_owned() });
            self.offset += chunk.len() as u64;
            rest = after;
        }
        chunks
    }
}

/// UTF-8 over reads that end anywhere; what is not UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
struct Decoder {
    /// The beginning of a character whose end has not come: at most 3 bytes.
    carry: Vec<u8>,
}

impl Decoder {
    fn decode(&mut self, bytes: &[u8], text: &mut String) {
        let joined;
        let mut bytes = if self.carry.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.carry).as_slice(), bytes].concat();
            &joined
        };
        loop {
            let error = match str::from_utf8(bytes) {
                Ok(rest) => return text.push_str(rest),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            text.push_str(str::from_utf8(valid).unwrap_or_default());
            let Some(invalid) = error.error_len() else {
                self.carry = rest.to_vec();
                return;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            bytes = &rest[invalid..];
        }
    }

    fn end(&mut self, text: &mut String) {
        if !std::mem::take(&mut self.carry).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(chunks: &[Chunk]) -> String {
        chunks.iter().map(|chunk| chunk.text.as_str()).collect()
    }

    #[test]
    fn a_character_split_between_reads_stays_whole_in_each_stream() {
        let now = Instant::now();
        let mut buffer = Buffer::new(1_000, 100);
        let euro = "€".as_bytes();
        buffer.push(Stream::Out, &euro[..1], now).unwrap();
        buffer.push(Stream::Err, b"x\n", now).unwrap();
        buffer.push(Stream::Out, &euro[1..], now).unwrap();
        assert_eq!(text_of(&buffer.take()), "x\n€");
        buffer.push(Stream::Err, &euro[..2], now).unwrap();
        buffer.note("== end", now);
        assert_eq!(text_of(&buffer.take()), "\u{fffd}\n== end\n");
    }

    #[test]
    fn what_is_too_much_is_cut_and_notes_still_fit() {
        let now = Instant::now();
        let mut buffer = Buffer::new(5, 100);
        assert_eq!(buffer.push(Stream::Out, b"12345678", now), Err(Overflow));
        buffer.note("cut", now);
        assert_eq!(text_of(&buffer.take()), "12345\ncut\n");
    }

    proptest! {
        #[test]
        fn lossless_and_offsets_count_bytes(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
            max_chunk in 4_usize..64,
        ) {
            let now = Instant::now();
            let mut buffer = Buffer::new(u64::MAX, max_chunk);
            let mut chunks = Vec::new();
            for piece in &pieces {
                buffer.push(Stream::Out, piece, now).unwrap();
                chunks.extend(buffer.take());
            }
            buffer.end_characters();
            chunks.extend(buffer.take());
            let text = text_of(&chunks);
            prop_assert_eq!(&text, &String::from_utf8_lossy(&pieces.concat()).into_owned());
            let mut offset = 0;
            for chunk in &chunks {
                prop_assert_eq!(chunk.offset, offset);
                prop_assert!(chunk.text.len() <= max_chunk && !chunk.text.is_empty());
                offset += chunk.text.len() as u64;
            }
        }
    }
}
