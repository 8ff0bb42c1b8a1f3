//! A log in the object store: gzip, unpacked while it streams.

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use cratemill_store::objects;
use flate2::write::MultiGzDecoder;
use futures_util::stream;
use std::io::{self, Write};

/// Packed bytes are unpacked in pieces of this size: at the most that gzip can do, a thousand to one, each makes 4 MB.
const PIECE_BYTES: usize = 4 * 1024;

/// Unpacks an object, but for the bytes that a reader has already.
pub(crate) struct Archive {
    source: objects::Body,
    /// Arrived and not unpacked yet.
    packed: Bytes,
    /// None once the end is unpacked.
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    skip: u64,
}

impl Archive {
    pub(crate) fn new(source: objects::Body, skip: u64) -> Self {
        Self { source, packed: Bytes::new(), decoder: Some(MultiGzDecoder::new(Vec::new())), skip }
    }

    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(decoder) = &mut self.decoder {
            if self.packed.is_empty() {
                match self.source.next().await {
                    Some(chunk) => self.packed = chunk.map_err(io::Error::other)?,
                    // An archive that breaks off is an error here.
                    None => decoder.try_finish()?,
                }
            }
            let ended = self.packed.is_empty();
            let piece = self.packed.split_to(self.packed.len().min(PIECE_BYTES));
            decoder.write_all(&piece)?;
            let text = std::mem::take(decoder.get_mut());
            if ended {
                self.decoder = None;
            }
            let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(text.len());
            self.skip -= skip as u64;
            if skip < text.len() {
                return Ok(Some(Bytes::from(text).slice(skip..)));
            }
        }
        Ok(None)
    }
}

pub(crate) fn unpacked(archive: Archive) -> Body {
    Body::from_stream(stream::unfold(Some(archive), async |archive| {
        let mut archive = archive?;
        match archive.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(archive))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "an archived log broke off");
                Some((Err(error), None))
            }
        }
    }))
}

pub(crate) fn packed(source: objects::Body) -> Body {
    Body::from_stream(stream::unfold(source, async |mut source| {
        let chunk = source.next().await?;
        Some((chunk.map_err(io::Error::other), source))
    }))
}

/// Whether the client takes gzip as a content encoding, said with a weight above 0.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight.is_some_and(|weight| weight <= 0.0)
        };
        name.eq_ignore_ascii_case("gzip") && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    async fn read(packed: Vec<u8>, skip: u64) -> io::Result<Vec<u8>> {
        let mut archive = Archive::new(objects::Body::from(packed), skip);
        let mut text = Vec::new();
        while let Some(bytes) = archive.next().await? {
            text.extend_from_slice(&bytes);
        }
        Ok(text)
    }

    #[tokio::test]
    async fn what_the_reader_has_is_left_out() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        for skip in [0, 1, 70_000, text.len()] {
            assert!(read(gzip(&text), skip as u64).await.unwrap() == text[skip..], "{skip}");
        }
        assert_eq!(read(gzip(b""), 0).await.unwrap(), b"");
        assert_eq!(read(gzip(b"short"), 9).await.unwrap(), b"");
        // Members after each other are one text, as for gunzip.
        assert_eq!(read([gzip(b"a"), gzip(b"b")].concat(), 0).await.unwrap(), b"ab");
    }

    #[tokio::test]
    async fn what_is_no_archive_is_an_error() {
        let packed = gzip(&b"some text ".repeat(100));
        assert!(read(packed[..packed.len() - 9].to_vec(), 0).await.is_err());
        assert!(read(b"not gzip at all".to_vec(), 0).await.is_err());
    }

    #[test]
    fn gzip_is_sent_to_who_wants_it() {
        for (accept, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0, br", false),
            ("identity", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, accept.parse().unwrap())]);
            assert_eq!(takes_gzip(&headers), expected, "{accept}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
