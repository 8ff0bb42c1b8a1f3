//! The one shape of every error answer: `application/problem+json`. What went wrong inside stays in the log.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cratemill_store::objects;
use serde::Serialize;

/// A dependency that is away is usually back soon; a client that waits this long does not make it worse.
const RETRY_AFTER_S: &str = "2";

#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    field: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

pub(crate) type Result<T, E = Problem> = std::result::Result<T, E>;

/// The body. `type` is always `about:blank`: the status says the kind, `detail` the case.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Body {
    #[schema(example = "about:blank")]
    r#type: &'static str,
    /// What the status means.
    #[schema(example = "Not Found")]
    title: &'static str,
    #[schema(example = 404)]
    status: u16,
    /// What it means here, for a person.
    #[schema(example = "there is no crate named serd")]
    detail: String,
    /// The part of the request that is wrong, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), field: None, headers: Vec::new() }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// A part of the request that is well formed and cannot be.
    pub(crate) fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail).at(field)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Something we depend on is away.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S))
    }

    /// A fault of ours; the caller has logged it.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "something failed here; the operator's log says what")
    }

    #[must_use]
    pub(crate) fn at(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
            field: self.field,
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }
}

impl From<cratemill_store::Error> for Problem {
    fn from(error: cratemill_store::Error) -> Self {
        if is_away(&error) {
            tracing::warn!(%error, "the database is away");
            Self::unavailable("the database is away, try again")
        } else {
            tracing::error!(%error, "the database refused a statement");
            Self::internal()
        }
    }
}

/// Whether trying again later can help: no connection, or a server that starts, stops or is full.
pub(crate) fn is_away(error: &cratemill_store::Error) -> bool {
    use cratemill_store::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls};
    match error {
        Io(_) | PoolClosed | PoolTimedOut | Tls(_) | Protocol(_) => true,
        // Classes of SQLSTATE: connection, resources, operator intervention; and statements that met one another.
        Database(error) => error.code().is_some_and(|code| {
            ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                || matches!(&*code, "40001" | "40P01")
        }),
        _ => false,
    }
}

impl From<objects::Error> for Problem {
    fn from(error: objects::Error) -> Self {
        match error {
            objects::Error::NotFound(key) => {
                tracing::error!(object = key, "the object store lost an object");
                Self::internal()
            }
            objects::Error::Range => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "the asked range is not in the file")
            }
            objects::Error::Unavailable(why) => {
                tracing::warn!(why, "the object store is away");
                Self::unavailable("the object store is away, try again")
            }
        }
    }
}
