//! `GET /live/events`: server-sent events over HTTP/1.1.
//!
//! ```text
//! subscription -> a place in a channel -> the socket goes to a reactor          [park]
//!              -> a log, or too much was missed -> a future on its connection   [follow]
//! ```

mod follow;
pub(crate) mod park;

use crate::{
    dialects::native::Subscription,
    engine::{Engine, log_job},
    gateway::Refusal,
    metrics,
    native::Native,
    problem::Problem,
};
use axum::{
    Router,
    extract::{Query, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::Response,
    routing::get,
};
use cratemill_protocol::topic::Topic;

/// Fifty of the longest topics, a position with a cursor for each, and a token.
const MAX_QUERY_BYTES: usize = 16 * 1024;
/// The same bound for the header.
const MAX_ID_BYTES: usize = 4 * 1024;

pub fn router(native: Native) -> Router {
    // A HEAD would be answered by the handler of GET, and has no socket to give.
    let head = async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "GET follows events");
    Router::new().route("/live/events", get(events).head(head)).with_state(native)
}

async fn events(
    State(native): State<Native>,
    RawQuery(raw): RawQuery,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if raw.is_some_and(|raw| raw.len() > MAX_QUERY_BYTES) {
        let detail = format!("the query is longer than {MAX_QUERY_BYTES} bytes");
        return Err(Problem::new(StatusCode::URI_TOO_LONG, detail));
    }
    let Query(query) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Problem::bad_request(error.body_text()))?;
    let subscription = Subscription::parse(&query, last_event_id(&headers))
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    native
        .access
        .subscribe(&headers, &query, &subscription.topics)
        .inspect_err(|_| metrics::refused("denied"))?;
    let gateway = &native.gateway;
    let seat = gateway.admit()?;
    check_logs(&native.engine, &subscription.topics).await?;
    let response = match park::find(gateway, &subscription, gateway.reactors.choose()).await {
        park::Found::Place(place, reset) => park::park(gateway, &subscription, (place, reset), seat),
        park::Found::NotYet => return Err(Refusal::Starting.into()),
        park::Found::None => follow::follow(&native, subscription, seat)?,
    };
    Ok(with_headers(response))
}

pub(crate) fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Asks what stands between not to collect the answer before it passes it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// What is no text, or longer than any id of ours, is there and cannot be read.
pub(crate) fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("last-event-id")?;
    Some(value.to_str().ok().filter(|id| id.len() <= MAX_ID_BYTES).unwrap_or("unreadable"))
}

/// A log of a job that does not exist would be waited for in vain.
async fn check_logs(engine: &Engine, topics: &[Topic]) -> Result<(), Problem> {
    for job in topics.iter().filter_map(log_job) {
        match engine.archive.knows(job).await {
            Ok(true) => {}
            Ok(false) => return Err(Problem::not_found(format!("there is no job {job}"))),
            Err(error) => {
                tracing::warn!(%job, %error, "cannot look for a job");
                return Err(Refusal::Database.into());
            }
        }
    }
    Ok(())
}
