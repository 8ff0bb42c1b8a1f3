//! Cuts decompressed bytes into pieces of text at character boundaries, from an offset on. Pure.

/// Bytes of text in one piece: a frame that a slow connection still takes in one go.
const PIECE_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub struct Pieces {
    /// What came and was not given out: a piece that is not full, or the start of a character.
    buffer: Vec<u8>,
    /// Bytes that are still to be left out at the front.
    skip: u64,
    /// Of the next byte to be given out.
    offset: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not UTF-8 at byte {0}")]
pub struct NotText(u64);

#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub text: String,
}

impl Pieces {
    /// Leaves out the first `offset` bytes, and the rest of a character that this would cut.
    pub fn starting_at(offset: u64) -> Self {
        Self { buffer: Vec::new(), skip: offset, offset }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        let mut bytes = &bytes[skipped..];
        // Continuation bytes can only be first where the offset lies inside a character.
        while self.buffer.is_empty() && self.skip == 0 && bytes.first().is_some_and(|b| b & 0xC0 == 0x80) {
            bytes = &bytes[1..];
            self.offset += 1;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next full piece, or with `rest` whatever there is.
    pub fn pop(&mut self, rest: bool) -> Result<Option<Piece>, NotText> {
        if self.buffer.is_empty() || (self.buffer.len() < PIECE_BYTES && !rest) {
            return Ok(None);
        }
        let most = self.buffer.len().min(PIECE_BYTES);
        let valid = match std::str::from_utf8(&self.buffer[..most]) {
            Ok(text) => text.len(),
            // The rest of the character is in the buffer behind, or yet to come.
            Err(error) if error.error_len().is_none() && (most < self.buffer.len() || !rest) => {
                error.valid_up_to()
            }
            Err(error) => return Err(NotText(self.offset + error.valid_up_to() as u64)),
        };
        let piece: Vec<u8> = self.buffer.drain(..valid).collect();
        let text = String::from_utf8(piece).map_err(|_| NotText(self.offset))?;
        let offset = self.offset;
        self.offset += text.len() as u64;
        Ok(Some(Piece { offset, text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(text: &str, offset: u64, step: usize) -> Vec<Piece> {
        let mut pieces = Pieces::starting_at(offset);
        let mut all = Vec::new();
        for bytes in text.as_bytes().chunks(step) {
            pieces.push(bytes);
            while let Some(piece) = pieces.pop(false).unwrap() {
                all.push(piece);
            }
        }
        while let Some(piece) = pieces.pop(true).unwrap() {
            all.push(piece);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn all_text_from_the_offset_on_comes_once(
            line in "[a-zäöü€🦀]{1,40}", repeat in 1usize..3_000, offset in 0u64..200_000, step in 1usize..100_000,
        ) {
            let text = line.repeat(repeat);
            let mut from = usize::try_from(offset).unwrap().min(text.len());
            while !text.is_char_boundary(from) {
                from += 1;
            }
            let pieces = cut(&text, offset, step);
            let joined: String = pieces.iter().map(|piece| &*piece.text).collect();
            prop_assert_eq!(&joined, &text[from..]);
            let mut next = pieces.first().map_or(0, |piece| piece.offset);
            for piece in &pieces {
                prop_assert_eq!(piece.offset, next);
                prop_assert!(piece.text.len() <= PIECE_BYTES);
                next += piece.text.len() as u64;
            }
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let mut pieces = Pieces::starting_at(0);
        pieces.push(b"ok\xff\xffno");
        assert_eq!(pieces.pop(true), Err(NotText(2)));
        let mut cut_off = Pieces::starting_at(0);
        cut_off.push(&"€".as_bytes()[..2]);
        assert_eq!(cut_off.pop(true), Err(NotText(0)));
    }
}
