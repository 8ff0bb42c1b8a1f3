//! `GET /live/ws`: many topics on one connection, as JSON.
//!
//! ```text
//! handshake -> the socket goes to a reactor -> "subscribe" -> [subscribe] finds a place or starts a task -> Answer
//! ```

pub mod frames;
mod subscribe;

pub use subscribe::run;

use crate::{
    dialects::Dialect,
    native::Native,
    problem::Problem,
    reactor::{Kind, Parking},
};
use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use cratemill_service::take_over::{TakeOver, Taken};
use std::sync::Arc;
use tungstenite::handshake::derive_accept_key;

/// The only version there is.
const VERSION: &str = "13";
/// Sixteen bytes, in base64.
const KEY_LEN: usize = 24;

pub fn router(native: Native) -> Router {
    // A HEAD would be answered by the handler of GET, and opens nothing.
    let head = async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "GET opens a WebSocket");
    Router::new().route("/live/ws", get(open).head(head)).with_state(native)
}

async fn open(
    State(native): State<Native>,
    version: Version,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Problem::bad_request(error.body_text()))?;
    let Some(key) = handshake(version, &headers)? else { return Ok(upgrade_required()) };
    if !native.origins.allow(&headers) {
        return Err(Problem::forbidden("pages of this origin may not open a WebSocket here"));
    }
    let holder = native.access.holder(&headers, &query)?;
    let gateway = &native.gateway;
    let seat = gateway.admit()?;
    let reactors = Arc::clone(&gateway.reactors);
    let reactor = reactors.choose();
    let take_over = TakeOver::new(move |Taken { stream, head, early }| {
        let kind = Kind::WebSocket { reactor, holder, early };
        reactors.park(Parking { stream, seat, dialect: Dialect::NativeSocket, owed: head, kind });
    });
    switch(&key, take_over)
}

/// The answer to a handshake with this key.
pub(crate) fn switch(key: &HeaderValue, take_over: TakeOver) -> Result<Response, Problem> {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    for (name, value) in [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accept(key)?),
    ] {
        response.headers_mut().insert(name, value);
    }
    response.extensions_mut().insert(take_over);
    Ok(response)
}

/// The client's key; none if it did not ask for a WebSocket of our version.
pub(crate) fn handshake(version: Version, headers: &HeaderMap) -> Result<Option<HeaderValue>, Problem> {
    let has = |name: HeaderName, token: &str| {
        let values = headers.get_all(name);
        let mut tokens =
            values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        tokens.any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    let asks = has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket");
    if !asks || !has(header::SEC_WEBSOCKET_VERSION, VERSION) || version != Version::HTTP_11 {
        return Ok(None);
    }
    // It would be read as frames.
    let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Problem::bad_request("a handshake has no body"));
    }
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) if key.len() == KEY_LEN => Ok(Some(key.clone())),
        _ => Err(Problem::bad_request("sec-websocket-key is missing, or not 16 bytes in base64")),
    }
}

fn accept(key: &HeaderValue) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Problem::bad_request("sec-websocket-key is no key"))
}

fn upgrade_required() -> Response {
    let problem =
        Problem::new(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket: version 13, and an upgrade");
    let mut response = problem.into_response();
    response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}
