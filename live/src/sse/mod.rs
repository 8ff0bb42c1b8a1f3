//! `GET /live/events`: server-sent events over HTTP/1.1.
//!
//! ```text
//! subscription -> a place in a channel -> the socket goes to a reactor          [park]
//!              -> a log, or too much was missed -> a future on its connection   [follow]
//! ```

mod follow;
pub(crate) mod park;

use crate::{
    auth::Access,
    dialects::native::Subscription,
    engine::{
        Engine,
        backfill::Backfills,
        log_job,
        seats::{Seat, Seats},
    },
    metrics,
    origin::Origins,
    problem::Problem,
    reactor::Reactors,
};
use axum::{
    Router,
    extract::{Query, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::Response,
    routing::get,
};
use cratemill_protocol::topic::Topic;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Fifty of the longest topics, a position with a cursor for each, and a token.
const MAX_QUERY_BYTES: usize = 16 * 1024;
/// The same bound for the header.
const MAX_ID_BYTES: usize = 4 * 1024;

#[derive(Debug, Clone)]
pub struct Gateway {
    pub engine: Arc<Engine>,
    pub access: Arc<Access>,
    pub backfills: Arc<Backfills>,
    pub reactors: Arc<Reactors>,
    /// One for each viewer that this node takes.
    pub seats: Arc<Seats>,
    /// And for each that has a task.
    pub followers: Arc<Semaphore>,
    pub origins: Arc<Origins>,
    pub shutdown: CancellationToken,
}

pub fn router(gateway: Gateway) -> Router {
    // A HEAD would be answered by the handler of GET, and has no socket to give.
    let head = async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "GET follows events");
    Router::new().route("/live/events", get(events).head(head)).with_state(gateway)
}

async fn events(
    State(gateway): State<Gateway>,
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
    gateway
        .access
        .subscribe(&headers, &query, &subscription.topics)
        .inspect_err(|_| metrics::refused("denied"))?;
    let seat = admit(&gateway)?;
    check_logs(&gateway.engine, &subscription.topics).await?;
    let response = match park::find(&gateway, &subscription, gateway.reactors.choose()).await {
        park::Found::Place(place) => park::park(&gateway, &subscription, place, seat),
        park::Found::NotYet => return Err(refuse("starting", "the bus is away, try again")),
        park::Found::None => follow::follow(&gateway, subscription, seat)?,
    };
    Ok(with_headers(response))
}

fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Asks what stands between not to collect the answer before it passes it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// What is no text, or longer than any id of ours, is there and cannot be read.
fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("last-event-id")?;
    Some(value.to_str().ok().filter(|id| id.len() <= MAX_ID_BYTES).unwrap_or("unreadable"))
}

pub(crate) fn admit(gateway: &Gateway) -> Result<Seat, Problem> {
    if gateway.shutdown.is_cancelled() {
        return Err(refuse("draining", "this node is going away, try again"));
    }
    gateway.seats.take().ok_or_else(|| refuse("full", "this node has as many viewers as it takes, try again"))
}

/// A log of a job that does not exist would be waited for in vain.
async fn check_logs(engine: &Engine, topics: &[Topic]) -> Result<(), Problem> {
    for job in topics.iter().filter_map(log_job) {
        match engine.archive.knows(job).await {
            Ok(true) => {}
            Ok(false) => return Err(Problem::not_found(format!("there is no job {job}"))),
            Err(error) => {
                tracing::warn!(%job, %error, "cannot look for a job");
                return Err(refuse("database", "the database is away, logs have to wait"));
            }
        }
    }
    Ok(())
}

fn refuse(reason: &'static str, detail: &str) -> Problem {
    metrics::refused(reason);
    Problem::unavailable(detail)
}
