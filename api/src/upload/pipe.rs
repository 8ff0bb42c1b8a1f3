//! From a request's body to the object store, hashed on its way, in constant memory.

use super::pace::{Pace, SILENCE};
use axum::body::Body;
use bytes::Bytes;
use cratemill_protocol::Sha256Hex;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{sync::mpsc, time::Instant};

/// Chunks between the two ends: one on its way in, one on its way out, and some slack.
const CHUNKS: usize = 4;

type Sink = mpsc::Sender<io::Result<Bytes>>;

/// Why a body did not come through.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Broken {
    Silent,
    Slow,
    /// Longer or shorter than announced, or broken off.
    Length,
    Digest(Sha256Hex),
    /// The other end stopped taking it.
    Sink,
}

/// The two ends: what is sent into the first is the body at the second.
pub(crate) fn pipe(length: u64) -> (Sink, Piped) {
    let (sink, source) = mpsc::channel(CHUNKS);
    (sink, Piped { source, left: length })
}

/// Passes the body on, and its last chunk only if length and digest are right: a body that is wrong is never whole at
/// the other end.
pub(crate) async fn verify(
    body: Body,
    length: u64,
    sha256: Sha256Hex,
    sink: Option<Sink>,
) -> Result<(), Broken> {
    let result = pass_on(body, length, sha256, sink.as_ref()).await;
    if let (Err(_), Some(sink)) = (&result, &sink) {
        // If the other end is gone already it needs no telling.
        let _ = sink.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
    }
    result
}

async fn pass_on(mut body: Body, length: u64, sha256: Sha256Hex, sink: Option<&Sink>) -> Result<(), Broken> {
    let (mut hasher, mut left, mut last, mut pace) = (Sha256::new(), length, None, Pace::default());
    loop {
        let asked = Instant::now();
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| Broken::Silent)?;
        let Some(frame) = frame else { break };
        let Ok(chunk) = frame.map_err(|_| Broken::Length)?.into_data() else { continue };
        left = left.checked_sub(chunk.len() as u64).ok_or(Broken::Length)?;
        if !pace.is_kept(chunk.len(), asked.elapsed()) {
            return Err(Broken::Slow);
        }
        hasher.update(&chunk);
        if let Some(earlier) = last.replace(chunk) {
            send(sink, earlier).await?;
        }
    }
    if left > 0 {
        return Err(Broken::Length);
    }
    let is = Sha256Hex::from_hasher(hasher);
    if is != sha256 {
        return Err(Broken::Digest(is));
    }
    match last {
        Some(last) => send(sink, last).await,
        None => Ok(()),
    }
}

async fn send(sink: Option<&Sink>, chunk: Bytes) -> Result<(), Broken> {
    match sink {
        Some(sink) => sink.send(Ok(chunk)).await.map_err(|_| Broken::Sink),
        None => Ok(()),
    }
}

/// The end that the object store reads.
#[derive(Debug)]
pub(crate) struct Piped {
    source: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl http_body::Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let chunk = std::task::ready!(self.source.poll_recv(cx));
        if let Some(Ok(bytes)) = &chunk {
            self.left = self.left.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use proptest::prelude::*;

    fn body(chunks: &[Vec<u8>]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().cloned().map(|chunk| Ok::<_, io::Error>(Bytes::from(chunk))).collect();
        Body::from_stream(stream::iter(chunks))
    }

    async fn through(
        chunks: &[Vec<u8>],
        length: u64,
        sha256: Sha256Hex,
    ) -> (Result<(), Broken>, Option<Bytes>) {
        let (sink, source) = pipe(length);
        let (verified, received) =
            futures_util::future::join(verify(body(chunks), length, sha256, Some(sink)), source.collect())
                .await;
        (verified, received.ok().map(http_body_util::Collected::to_bytes))
    }

    proptest! {
        #[test]
        fn what_is_right_comes_through_and_nothing_else_is_whole(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12), wrong in 0..4_u8,
        ) {
            let whole = chunks.concat();
            let (length, sha256) = (whole.len() as u64, Sha256Hex::of(&whole));
            let other = Sha256Hex::of(b"something else");
            let (length, sha256) = match wrong {
                0 => (length, sha256),
                1 => (length + 1, sha256),
                2 => (length.saturating_sub(1), sha256),
                _ => (length, other),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (verified, received) = runtime.block_on(through(&chunks, length, sha256));
            let right = wrong == 0 || (wrong == 2 && whole.is_empty());
            prop_assert_eq!(verified.is_ok(), right, "{:?}", verified);
            prop_assert_eq!(received.map(|received| received.to_vec()), right.then_some(whole));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let silent = Body::from_stream(stream::pending::<io::Result<Bytes>>());
        let result = verify(silent, 1, Sha256Hex::of(b""), None).await;
        assert!(matches!(result, Err(Broken::Silent)), "{result:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn crawling_ends_it() {
        let crawling = stream::unfold((), async |()| {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
        });
        let begun = Instant::now();
        let result = verify(Body::from_stream(crawling), 1 << 30, Sha256Hex::of(b""), None).await;
        assert!(matches!(result, Err(Broken::Slow)), "{result:?}");
        assert!(begun.elapsed() < 2 * SILENCE);
    }

    #[tokio::test]
    async fn a_store_that_goes_away_ends_it() {
        let (sink, source) = pipe(2);
        drop(source);
        let result = verify(body(&[vec![1], vec![2]]), 2, Sha256Hex::of(&[1, 2]), Some(sink)).await;
        assert!(matches!(result, Err(Broken::Sink)), "{result:?}");
    }
}
