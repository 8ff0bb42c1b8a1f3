//! Bodies of requests: JSON, and not much of it.

use super::error::Error;
use axum::{
    body::Bytes,
    extract::{FromRequest as _, Request},
    http::{HeaderMap, StatusCode, header},
};
use std::time::Duration;
use tokio::time::timeout;

pub(super) const MAX_BYTES: usize = 32 * 1024;
/// How long it may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn read(request: Request) -> Result<Bytes, Error> {
    if !is_json(request.headers()) {
        return Err(Error::ContentType);
    }
    match timeout(PATIENCE, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Error::TooLong(MAX_BYTES)),
        Ok(Err(_)) => Err(Error::Body),
        Err(_) => Err(Error::TooSlow),
    }
}

/// Whatever is said of its characters: JSON has one set.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}
