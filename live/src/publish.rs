//! `POST /live/topics/{topic}`: what people publish, answered once the bus has it.
//!
//! A message has an id, the publisher's or one that is made here, and the bus keeps one message of each id and topic: who
//! got no answer sends the same again, to any node.

use crate::{
    auth::Access,
    metrics::{self, NotPublished},
    problem::Problem,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest as _, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use cratemill_protocol::{
    JsonText, UserTopic,
    bus::{self, TopicMessage},
};
use cratemill_service::{bus::Bus, clock};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// The largest body: a quarter of what the bus takes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// How long a body may take to come; a slow one holds a place.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// How long the bus may take: longer than it takes to come back after a restart.
const BUS_PATIENCE: Duration = Duration::from_secs(5);
/// Under way at once on a node: 64 MiB of the largest.
const MAX_PUBLISHES: usize = 256;
const MAX_MESSAGE_ID_BYTES: usize = 64;

#[derive(Debug, Clone)]
pub struct Publisher {
    bus: Bus,
    access: Arc<Access>,
    places: Arc<Semaphore>,
}

impl Publisher {
    pub fn new(bus: Bus, access: Arc<Access>) -> Self {
        Self { bus, access, places: Arc::new(Semaphore::new(MAX_PUBLISHES)) }
    }
}

pub fn router(publisher: Publisher) -> Router {
    Router::new()
        .route("/live/topics/{topic}", post(publish))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(publisher)
}

#[derive(Debug, Serialize)]
struct Published {
    topic: UserTopic,
    /// Its place in the stream of all topics.
    sequence: u64,
    id: String,
    /// The bus had it already.
    duplicate: bool,
}

async fn publish(
    State(publisher): State<Publisher>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    match publisher.take(&topic, &headers, request).await {
        Ok(stored) => {
            metrics::published(stored.duplicate);
            let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            Ok((StatusCode::CREATED, no_store, Json(stored)).into_response())
        }
        Err((reason, problem)) => {
            metrics::not_published(reason);
            Err(problem)
        }
    }
}

type Refusal = (NotPublished, Problem);

impl Publisher {
    async fn take(&self, topic: &str, headers: &HeaderMap, request: Request) -> Result<Published, Refusal> {
        let bad = |detail: String| (NotPublished::Bad, Problem::bad_request(detail));
        let topic: UserTopic = topic.parse().map_err(|error| bad(format!("{error}")))?;
        let id = message_id(headers).map_err(bad)?;
        self.access.publish(headers, &topic).map_err(|denied| (NotPublished::Denied, denied.into()))?;
        let _place = self.places.try_acquire().map_err(|_| {
            (NotPublished::Full, Problem::unavailable("this node publishes as much as it can, try again"))
        })?;
        let body = body(request).await?;
        if body.is_empty() {
            return Err(bad("the body is empty: expected JSON".into()));
        }
        let data = JsonText::parse(&body).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
        drop(body);
        let message = TopicMessage { topic, at_ms: clock::now_ms(), data };
        self.store(message, id).await
    }

    async fn store(&self, message: TopicMessage, id: String) -> Result<Published, Refusal> {
        let payload = bus::encode(&message).into();
        let topic = message.topic;
        // Neither has a line break, and a topic has no space: the same id on another topic is another message.
        match self.bus.store(&topic, &format!("{topic} {id}"), payload, BUS_PATIENCE).await {
            Ok(stored) => Ok(Published { topic, sequence: stored.sequence, id, duplicate: stored.duplicate }),
            Err(error) => {
                tracing::warn!(%topic, %error, "not published");
                let detail = "the bus did not take it in time: repeat it with the same message-id";
                Err((NotPublished::Bus, Problem::unavailable(detail)))
            }
        }
    }
}

/// The publisher's, or a new one.
fn message_id(headers: &HeaderMap) -> Result<String, String> {
    let Some(value) = headers.get("message-id") else {
        return Ok(format!("{:032x}", rand::random::<u128>()));
    };
    let id = value.to_str().ok().filter(|id| (1..=MAX_MESSAGE_ID_BYTES).contains(&id.len()));
    let id = id.filter(|id| id.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    id.map(str::to_owned)
        .ok_or_else(|| format!("message-id: expected 1 to {MAX_MESSAGE_ID_BYTES} printable ASCII characters"))
}

async fn body(request: Request) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY_PATIENCE, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) => {
            let status = rejection.status();
            let detail = match status {
                StatusCode::PAYLOAD_TOO_LARGE => format!("the body is longer than {MAX_BODY_BYTES} bytes"),
                _ => "the body did not come whole".into(),
            };
            Err((NotPublished::Bad, Problem::new(status, detail)))
        }
        Err(_) => {
            let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly");
            Err((NotPublished::Bad, problem))
        }
    }
}
