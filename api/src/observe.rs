//! One id, one log line and one measurement for each request.
//!
//! For the route that everything is about, downloads, a log line costs more than the answer: those that succeed are told at
//! the debug level, and the metrics have them.

use crate::download;
use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use metrics::Histogram;
use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tracing::{Instrument, Span};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// An id from outside is for people to search a log with.
const MAX_ID_CHARS: usize = 64;
/// Of a path, in a log.
const MAX_PATH_CHARS: usize = 200;
const DURATION: &str = "cratemill_http_request_seconds";

/// Where each kind of request is measured. There are as many as routes, methods and statuses of ours: none is made up by a
/// client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durations(Arc<RwLock<ByRoute>>);

type ByRoute = HashMap<String, HashMap<(&'static str, u16), Histogram>>;

/// The time is that until the head of the answer: a body may take as long as its reader.
pub(crate) async fn request(
    State(durations): State<Durations>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let id = given_id(request.headers()).unwrap_or_else(new_id);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = method_name(request.method());
    let uri = request.uri().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("none", MatchedPath::as_str);
    let told = Told { id: id.to_str().unwrap_or_default(), method, path: shortened(uri.path()) };
    let span = told.span(route);

    let mut response = if span.is_disabled() {
        next.run(request).await
    } else {
        next.run(request).instrument(span.clone()).await
    };
    let (status, taken) = (response.status(), start.elapsed());
    durations.of(route, method, status.as_u16()).record(taken.as_secs_f64());
    told.answered(&span, route, status, u64::try_from(taken.as_millis()).unwrap_or(u64::MAX));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What the log says of a request.
struct Told<'a> {
    id: &'a str,
    method: &'static str,
    path: &'a str,
}

impl Told<'_> {
    fn span(&self, route: &str) -> Span {
        let Self { id, method, path } = *self;
        if route == download::ROUTE {
            tracing::debug_span!("request", id, method, path)
        } else {
            tracing::info_span!("request", id, method, path)
        }
    }

    fn answered(&self, span: &Span, route: &str, status: StatusCode, ms: u64) {
        let Self { id, method, path } = *self;
        let code = status.as_u16();
        // Probes come every second and say nothing.
        let probe = matches!(route, "/healthz" | "/readyz" | "/metrics");
        let served = route == download::ROUTE && (status.is_success() || status.is_redirection());
        let _entered = span.enter();
        if probe || served {
            tracing::debug!(status = code, ms, "answered");
        } else if span.is_disabled() {
            tracing::info!(id, method, path, status = code, ms, "answered");
        } else {
            tracing::info!(status = code, ms, "answered");
        }
    }
}

impl Durations {
    pub(crate) fn of(&self, route: &str, method: &'static str, status: u16) -> Histogram {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(route).and_then(|of_route| of_route.get(&(method, status))).cloned();
        drop(known);
        found.unwrap_or_else(|| {
            let labels =
                [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
            let histogram = metrics::histogram!(DURATION, &labels);
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            known.entry(route.to_owned()).or_default().insert((method, status), histogram.clone());
            histogram
        })
    }
}

fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let given = headers.get(REQUEST_ID)?;
    let id = given.to_str().ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = (1..=MAX_ID_CHARS).contains(&id.len()) && id.chars().all(good);
    fits.then(|| given.clone())
}

/// Unlike any other: a random part for each run of the process, and a number.
pub(crate) fn new_id() -> HeaderValue {
    static RUN: LazyLock<u64> = LazyLock::new(rand::random);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = format!("{:016x}-{:x}", *RUN, NEXT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::from_maybe_shared(Bytes::from(id)).expect("hexadecimal digits and a '-'")
}

fn shortened(path: &str) -> &str {
    path.char_indices().nth(MAX_PATH_CHARS).map_or(path, |(end, _)| &path[..end])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_ids() {
        let (one, other) = (new_id(), new_id());
        assert_ne!(one, other);
        let headers = HeaderMap::from_iter([(REQUEST_ID, one.clone())]);
        assert_eq!(given_id(&headers), Some(one), "another node keeps it");
    }

    #[test]
    fn a_path_is_cut_between_characters() {
        assert_eq!(shortened("/a"), "/a");
        assert_eq!(shortened(&"\u{e9}".repeat(300)), "\u{e9}".repeat(MAX_PATH_CHARS));
    }
}
