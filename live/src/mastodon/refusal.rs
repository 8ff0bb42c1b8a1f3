//! Errors as Mastodon's clients know them.

use crate::{dialects::mastodon::request::Error, gateway, metrics};
use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

/// What is away is usually better soon.
const RETRY_AFTER_S: &str = "1";
const X_ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

impl From<gateway::Refusal> for Error {
    fn from(refusal: gateway::Refusal) -> Self {
        let _ = refusal.counted();
        Self::Away
    }
}

fn status(error: Error) -> StatusCode {
    StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        metrics::refused("mastodon");
        let body = serde_json::json!({ "error": self.to_string() });
        let mut response = (status(self), axum::Json(body)).into_response();
        retry(&mut response);
        response
    }
}

/// To one that wanted a WebSocket: browsers show nothing of it, other clients a header.
pub(super) fn of_handshake(error: Error) -> Response {
    metrics::refused("mastodon");
    let mut response = status(error).into_response();
    if let Ok(why) = HeaderValue::from_str(&error.to_string()) {
        response.headers_mut().insert(X_ERROR_MESSAGE, why);
    }
    retry(&mut response);
    response
}

fn retry(response: &mut Response) {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
    }
}
