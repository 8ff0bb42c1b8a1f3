//! Error answers of the event API: `{"error": "..."}`. What went wrong inside stays in the log.

use crate::{dialects::event_api::request, metrics};
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("this takes a token: authorization: Bearer JWT")]
    NoToken,
    #[error("the token is no good, or has expired")]
    Token,
    #[error("wrong username or password")]
    Credentials,
    #[error(transparent)]
    Request(#[from] request::Error),
    #[error("expected content-type: application/json")]
    ContentType,
    #[error("the body did not come whole")]
    Body,
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    #[error("the body came too slowly")]
    TooSlow,
    #[error("username already taken")]
    Taken,
    #[error("there is no such event")]
    Unknown,
    #[error("somebody else inserted this event")]
    NotTheirs,
    #[error("the event is published already")]
    Published,
    #[error("the event is cancelled already")]
    Cancelled,
    #[error("you have as many events as one may have: {0}")]
    Quota(u32),
    #[error("too many tries, wait {} s", .0.as_secs())]
    TooMany(Duration),
    #[error("{0}, try again")]
    Away(&'static str),
    #[error("{0}")]
    Method(&'static str),
}

impl Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::Token | Self::Credentials => StatusCode::UNAUTHORIZED,
            Self::Request(error) if error.is_meaning() => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Request(_) | Self::ContentType | Self::Body | Self::Taken => StatusCode::BAD_REQUEST,
            Self::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::NotTheirs => StatusCode::FORBIDDEN,
            Self::Published | Self::Cancelled => StatusCode::CONFLICT,
            Self::Quota(_) | Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// The database does not answer, or says no to what it should do.
impl From<cratemill_store::Error> for Error {
    fn from(error: cratemill_store::Error) -> Self {
        tracing::warn!(%error, "the event API has no answer of the database");
        Self::Away("the database is away")
    }
}

#[derive(Serialize)]
struct Body {
    error: String,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        metrics::event_api_refused(status.as_u16());
        let mut response = (status, Json(Body { error: self.to_string() })).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let wait_s = match self {
            Self::TooMany(wait) => Some(wait.as_secs()),
            Self::Away(_) => Some(1),
            _ => None,
        };
        if let Some(wait_s) = wait_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
