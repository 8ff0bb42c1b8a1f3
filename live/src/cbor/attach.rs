//! Connections get their sessions: the newest one has it, and the one of before is closed.

use super::{Cbor, Session};
use crate::{
    dialects::{Dialect, cbor::IdForm},
    metrics,
    problem::Problem,
    reactor::{Answer, Kind, Parking},
    ws::{self, frames::POLICY},
};
use anyhow::Context as _;
use axum::{
    Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, Uri, Version},
    response::Response,
    routing::get,
};
use cratemill_protocol::subjects;
use cratemill_service::take_over::{TakeOver, Taken};
use cratemill_store::{patience::in_time, pubsub::sessions};
use futures_util::StreamExt as _;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long the node that had the session may take to let go of it. One that is dead says nothing.
const LETTING_GO: Duration = Duration::from_millis(500);

pub(super) fn router(cbor: Arc<Cbor>) -> Router {
    let no_head = async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "GET opens a WebSocket");
    Router::new().route("/ws/{session}", get(open).head(no_head)).with_state(cbor)
}

async fn open(
    State(cbor): State<Arc<Cbor>>,
    Path(id): Path<String>,
    version: Version,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("a session is a UUID: /ws/UUID"))?;
    let Query(query) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Problem::bad_request(error.body_text()))?;
    let key = ws::handshake(version, &headers)?
        .ok_or_else(|| Problem::bad_request("this is a WebSocket: version 13, and an upgrade"))?;
    let owner = cbor.access.subject(&headers, &query)?;
    if owner.is_none() && cbor.require_v4 && id.get_version_num() != 4 {
        metrics::refused("guessable");
        return Err(Problem::forbidden(
            "without a token a session's id has to be random: a UUID of version 4",
        ));
    }
    let gateway = &cbor.gateway;
    let seat = gateway.admit()?;
    if gateway.hub.mark().is_none() {
        return Err(crate::gateway::Refusal::Starting.into());
    }
    let session = attach(&cbor, id, owner.as_deref()).await?;
    let (reactors, reactor) = (Arc::clone(&gateway.reactors), gateway.reactors.choose());
    // Whether the socket comes or not: the session is let go of when its connection ends.
    let guard = Attached { cbor: Arc::clone(&cbor), session: Some(session) };
    let take_over = TakeOver::new(move |Taken { stream, head, early }| {
        let mut guard = guard;
        let Some(session) = guard.session.take() else { return };
        let kind = Kind::Guest { reactor, session, early };
        let dialect = Dialect::Cbor(IdForm::default());
        reactors.park(Parking { stream, seat, dialect, owed: head, kind });
    });
    ws::switch(&key, take_over)
}

/// A session whose connection is not with a reactor yet.
struct Attached {
    cbor: Arc<Cbor>,
    session: Option<Session>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let cbor = Arc::clone(&self.cbor);
            tokio::spawn(async move { super::keep::detach(&cbor, &session).await });
        }
    }
}

async fn attach(cbor: &Arc<Cbor>, id: Uuid, owner: Option<&str>) -> Result<Session, Problem> {
    let away = |error: cratemill_store::Error| {
        tracing::warn!(session = %id, %error, "no session without the database");
        metrics::refused("database");
        Problem::unavailable("the database is away, try again")
    };
    let node = async { sessions::node(&mut *cbor.pool.acquire().await?, id).await };
    let node = in_time(node).await.map_err(away)?;
    if let Some(node) = node {
        take_over(cbor, id, &node).await;
    }
    let attached = async { sessions::attach(&mut *cbor.pool.acquire().await?, id, owner, &cbor.node).await };
    let Some(attached) = in_time(attached).await.map_err(away)? else {
        metrics::refused("owner");
        return Err(Problem::forbidden("this session is somebody else's: it takes their token"));
    };
    let confirmed = u64::try_from(attached.confirmed).unwrap_or(0);
    // Two may come at once: the older of them has to go, at whichever node it is.
    let (session, older) = cbor.sessions.begin(id, attached.epoch, confirmed);
    if let Some(older) = older {
        hang_up(cbor, &older);
    }
    if attached.epoch > 1 {
        cbor.gateway.bus.hint_of(subjects::SESSION, format!("{id} {}", attached.epoch)).await;
    }
    Ok(session)
}

/// Whoever has the session notes how far its client is, before another connection goes on from there.
async fn take_over(cbor: &Arc<Cbor>, id: Uuid, node: &str) {
    if node == cbor.node {
        if let Some(session) = cbor.sessions.get(id) {
            hang_up(cbor, &session);
            let _ = timeout(LETTING_GO, cbor.sessions.ends(&session)).await;
        }
        return;
    }
    let asked = cbor.gateway.bus.client.request(subjects::SESSION, id.to_string().into());
    if timeout(LETTING_GO, asked).await.is_err() {
        tracing::debug!(session = %id, node, "its node does not answer");
    }
}

/// Another connection has this session.
pub(super) fn hang_up(cbor: &Cbor, session: &Session) {
    if let Some(who) = session.supersede() {
        metrics::dropped("superseded");
        let answer = Answer::HangUp { code: POLICY, reason: "another connection has this session" };
        cbor.gateway.reactors.answer(who, answer);
    }
}

/// A session, and from which epoch on a connection may have it.
fn parse(message: &[u8]) -> Option<(Uuid, i64)> {
    let text = str::from_utf8(message).ok()?;
    match text.split_once(' ') {
        Some((id, epoch)) => Some((id.parse().ok()?, epoch.parse().ok()?)),
        // Whoever asks takes it over.
        None => Some((text.parse().ok()?, i64::MAX)),
    }
}

/// Answers other nodes that ask for sessions of ours, and hears of those that are somewhere else by now.
pub(super) async fn let_go(cbor: Arc<Cbor>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = cbor.gateway.bus.client.clone();
    let mut asked = client.subscribe(subjects::SESSION).await.context("cannot listen for sessions")?;
    loop {
        let message = tokio::select! {
            message = asked.next() => message.context("the subscription to sessions ended")?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let Some((id, epoch)) = parse(&message.payload) else { continue };
        let Some(session) = cbor.sessions.get(id).filter(|session| session.epoch() < epoch) else { continue };
        let (cbor, client) = (Arc::clone(&cbor), client.clone());
        tokio::spawn(async move {
            hang_up(&cbor, &session);
            let _ = timeout(LETTING_GO, cbor.sessions.ends(&session)).await;
            if let Some(reply) = message.reply {
                let _ = client.publish(reply, "".into()).await;
            }
        });
    }
}
