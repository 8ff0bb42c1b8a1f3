//! Extractors whose refusals are problems: path, query and JSON body.

use crate::problem::Problem;
use axum::{
    body::Body,
    extract::{
        FromRequest, FromRequestParts, Request,
        path::ErrorKind,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Every body we read as JSON is a handful of fields; a public key is the longest.
const MAX_JSON_BYTES: usize = 64 * 1024;
/// For such a body, over any line that works at all.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// Segments of the path. One that cannot be a name or an id names nothing: 404.
#[derive(Debug)]
pub(crate) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => Err(match error.kind() {
                ErrorKind::InvalidUtf8InPathParam { key } => {
                    Problem::bad_request("a segment of the path is not UTF-8").at(key)
                }
                ErrorKind::ParseErrorAtKey { key, .. } | ErrorKind::DeserializeError { key, .. } => {
                    Problem::not_found(error.body_text()).at(key)
                }
                _ => Problem::not_found(error.body_text()),
            }),
            Err(error) => {
                tracing::error!(%error, "a route and its handler disagree about the path");
                Err(Problem::internal())
            }
        }
    }
}

/// Parameters of the query string. Unknown ones are ignored, repeated ones refused.
#[derive(Debug)]
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(Problem::bad_request(error.body_text()))
            }
            Err(error) => Err(Problem::bad_request(error.body_text())),
        }
    }
}

/// A JSON body, read to its end within a bound and a time.
#[derive(Debug)]
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "the body must be JSON: content-type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let bytes = read(request.into_body()).await?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            refuse(error.inner(), &path)
        })?;
        json.end().map_err(|error| refuse(&error, "."))?;
        Ok(Self(value))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_JSON_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("the body is longer than {MAX_JSON_BYTES} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Ok(Err(_)) => Err(Problem::bad_request("the body broke off")),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// Text that is not JSON is 400; JSON of the wrong shape is 422 and names the field.
fn refuse(error: &serde_json::Error, path: &str) -> Problem {
    if error.is_data() {
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
        if path == "." { problem } else { problem.at(path) }
    } else {
        Problem::bad_request(format!("the body is not JSON: {error}"))
    }
}
