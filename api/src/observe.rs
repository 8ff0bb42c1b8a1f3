//! One id, one log line and one measurement for each request.

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use std::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// An id from outside is for people to search a log with.
const MAX_ID_CHARS: usize = 64;
const DURATION: &str = "cratemill_http_request_seconds";

/// The time is that until the head of the answer: a body may take as long as its reader.
pub(crate) async fn request(mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = given_id(request.headers()).unwrap_or_else(new_id);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = method_name(request.method());
    let path: String = request.uri().path().chars().take(200).collect();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), method, path);

    let mut response = next.run(request).instrument(span.clone()).await;
    response.headers_mut().insert(REQUEST_ID, id);
    let (status, taken) = (response.status().as_u16(), start.elapsed());
    metrics::histogram!(DURATION, "method" => method, "route" => route.clone(), "status" => status.to_string())
        .record(taken.as_secs_f64());
    let ms = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
    let _entered = span.enter();
    // Probes come every second and say nothing.
    if matches!(route.as_str(), "/healthz" | "/readyz" | "/metrics") {
        tracing::debug!(status, ms, "answered");
    } else {
        tracing::info!(status, ms, "answered");
    }
    response
}

fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = (1..=MAX_ID_CHARS).contains(&id.len()) && id.chars().all(good);
    fits.then(|| HeaderValue::from_str(id).ok()).flatten()
}

fn new_id() -> HeaderValue {
    HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("a UUID is ASCII")
}

/// Methods that somebody made up must not become labels.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
