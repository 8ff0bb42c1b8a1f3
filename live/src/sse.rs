//! `GET /live/events`: server-sent events over HTTP/1.1.
//!
//! A viewer is one future that its connection polls: no task, no buffer beyond a few items, and nothing left behind when
//! the connection goes. A connection that takes no bytes is not polled; the hub lets its viewer go, and the kernel ends
//! the connection (see [`crate::app`]).

use crate::{
    dialects::native::{Subscription, encode},
    engine::{
        Engine, log_job,
        viewer::{Item, Start, Viewer, What},
    },
    metrics::{self, Viewing},
    problem::Problem,
};
use axum::{
    Router,
    body::Body,
    extract::{Query, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::{Bytes, BytesMut};
use cratemill_protocol::topic::Topic;
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Fifty of the longest topics, and a position with a cursor for each.
const MAX_QUERY_BYTES: usize = 8 * 1024;
/// The same bound for the header.
const MAX_ID_BYTES: usize = 4 * 1024;
/// Items that are ready when the connection takes bytes: they go in one write. At most a megabyte of an archived log.
const ITEMS: usize = 32;
/// A write holds no more than this and one item.
const WRITE_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone)]
pub struct Gateway {
    pub engine: Arc<Engine>,
    /// One for each viewer that this node takes.
    pub places: Arc<Semaphore>,
    pub shutdown: CancellationToken,
}

pub fn router(gateway: Gateway) -> Router {
    Router::new().route("/live/events", get(events)).with_state(gateway)
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
    let place = admit(&gateway)?;
    check_logs(&gateway.engine, &subscription.topics).await?;
    let Some((subscriber, positions)) = gateway.engine.hub.subscribe(&subscription.topics) else {
        return Err(refuse("starting", "the bus is away, try again"));
    };
    let Subscription { topics, since } = subscription;
    let (sender, items) = mpsc::channel(ITEMS);
    let start = Start { topics, since, subscriber, positions };
    let connection = Connection {
        viewer: Some(Box::pin(Viewer::run(Arc::clone(&gateway.engine), start, sender))),
        items,
        heartbeat: gateway.engine.heartbeat,
        shutdown: gateway.shutdown,
        ended: false,
        _place: place,
        _viewing: Viewing::start(),
    };
    Ok(answer(connection.into_stream()))
}

fn answer(stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Body::from_stream(stream).into_response();
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

fn admit(gateway: &Gateway) -> Result<OwnedSemaphorePermit, Problem> {
    if gateway.shutdown.is_cancelled() {
        return Err(refuse("draining", "this node is going away, try again"));
    }
    Arc::clone(&gateway.places)
        .try_acquire_owned()
        .map_err(|_| refuse("full", "this node has as many viewers as it takes, try again"))
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

/// A viewer and the bytes that it is owed.
struct Connection {
    /// None once it has said all it has to say.
    viewer: Option<BoxFuture<'static, ()>>,
    items: mpsc::Receiver<Item>,
    heartbeat: Duration,
    shutdown: CancellationToken,
    ended: bool,
    _place: OwnedSemaphorePermit,
    _viewing: Viewing,
}

impl Connection {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        let rest = stream::unfold(self, |mut connection| async {
            let bytes = connection.next().await?;
            Some((bytes, connection))
        });
        stream::once(async { encode::hello() }).chain(rest).map(Ok)
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        // Drives the viewer while it waits for an item; both keep their state when another branch wins.
        let viewer = async {
            match &mut self.viewer {
                Some(viewer) => viewer.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                self.ended = true;
                metrics::dropped("draining");
                Some(encode::draining())
            }
            item = self.items.recv() => item.map(|item| self.write(&item)),
            () = viewer => {
                self.viewer = None;
                // What it said last is in the queue.
                self.items.try_recv().ok().map(|item| self.write(&item))
            }
            () = tokio::time::sleep(self.heartbeat) => Some(encode::heartbeat()),
        }
    }

    /// This item, and those that are ready behind it.
    fn write(&mut self, first: &Item) -> Bytes {
        let mut out = BytesMut::new();
        let mut count = 1;
        self.put(first, &mut out);
        while out.len() < WRITE_BYTES
            && let Ok(item) = self.items.try_recv()
        {
            self.put(&item, &mut out);
            count += 1;
        }
        metrics::frames(count);
        out.freeze()
    }

    fn put(&mut self, item: &Item, out: &mut BytesMut) {
        encode::item(item, out);
        if let What::Dropped(reason) = item.what {
            metrics::dropped(encode::drop_reason(reason));
            self.ended = true;
        }
    }
}
