//! Bodies of requests: JSON, and not much of it.
//!
//! Also what is refused is read, within bounds: a client that still sends when the connection ends would not see why.

use super::error::Error;
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use std::time::Duration;
use tokio::time::timeout;

const MAX_BYTES: usize = 32 * 1024;
/// What is read of one that is too long, or not wanted.
const MAX_UNWANTED_BYTES: usize = 1 << 20;
/// How long it may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
const UNWANTED_PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn read(request: Request) -> Result<Bytes, Error> {
    if !is_json(request.headers()) {
        discard(request).await;
        return Err(Error::ContentType);
    }
    timeout(PATIENCE, collect(request.into_body())).await.map_err(|_| Error::TooSlow)?
}

/// The answer does not depend on it.
pub(super) async fn discard(request: Request) {
    let _ = timeout(UNWANTED_PATIENCE, collect(request.into_body())).await;
}

async fn collect(body: Body) -> Result<Bytes, Error> {
    let (mut all, mut length) = (BytesMut::new(), 0);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::Body)?;
        length += chunk.len();
        if length > MAX_UNWANTED_BYTES {
            break;
        }
        if length <= MAX_BYTES {
            all.extend_from_slice(&chunk);
        } else {
            all = BytesMut::new();
        }
    }
    if length > MAX_BYTES { Err(Error::TooLong(MAX_BYTES)) } else { Ok(all.freeze()) }
}

/// Whatever is said of its characters: JSON has one set.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}
