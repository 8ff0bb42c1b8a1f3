//! A body on its way from the object store to a client, in constant memory.
//!
//! The last chunk is held back until the whole object has arrived and the download's count is durable: nobody gets
//! the whole file without being counted, and nobody is counted for one that broke off. Which parts count is said in
//! [`super::counted`].

use axum::body::Body;
use bytes::Bytes;
use cratemill_store::objects;
use futures_util::stream;
use std::io;

struct Relay<F> {
    source: objects::Body,
    held: Option<Bytes>,
    /// Bytes that are still to come from the store.
    left: u64,
    counted: Option<F>,
}

/// `counted` is awaited, where there is one, before the last chunk goes out.
pub(crate) fn body<F>(source: objects::Body, length: u64, counted: Option<F>) -> Body
where
    F: Future<Output = ()> + Send + 'static,
{
    let relay = Relay { source, held: None, left: length, counted };
    Body::from_stream(stream::unfold(Some(relay), async |relay| {
        let mut relay = relay?;
        match relay.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(relay))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a download broke off at the object store");
                Some((Err(error), None))
            }
        }
    }))
}

impl<F: Future<Output = ()>> Relay<F> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Some(chunk) = self.source.next().await else { break };
            let chunk = chunk.map_err(io::Error::other)?;
            self.left = self
                .left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| io::Error::other("the object is longer than it was"))?;
            if chunk.is_empty() {
                continue;
            }
            if let Some(earlier) = self.held.replace(chunk) {
                return Ok(Some(earlier));
            }
        }
        if self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(counted) = self.counted.take() {
            counted.await;
        }
        Ok(self.held.take())
    }
}
