//! Lists of events, as long as they may be: a page is read when the client has taken the one before.

use super::{EventApi, error::Error};
use crate::dialects::event_api::json;
use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use cratemill_store::{
    PgPool,
    events::lists::{After, BEGINNING, Of, page},
    patience::in_time,
};
use futures_util::{Stream, stream};
use std::sync::Arc;

/// Events that are read together: a megabyte at most, for each who is slow to take them.
const PAGE: i64 = 32;

/// What anybody who is logged in may read, who knows its id.
pub(super) async fn of_collection(
    State(api): State<Arc<EventApi>>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    api.caller(&headers).await?;
    // What is no id is the id of nothing.
    let id = id.ok().and_then(|Path(id)| id.parse().ok());
    Ok(answer(&api, vec![("{\"events\":[", id.map(Of::Collection))]))
}

/// Those of the user's own collection, and those that the user has inserted anywhere.
pub(super) async fn of_user(State(api): State<Arc<EventApi>>, headers: HeaderMap) -> Result<Response, Error> {
    let (user, own) = api.caller(&headers).await?;
    let parts =
        vec![("{\"info\":[", Some(Of::Collection(own.0))), ("],\"events\":[", Some(Of::User(user.0)))];
    Ok(answer(&api, parts))
}

/// An object of lists, each behind what comes before it.
fn answer(api: &EventApi, parts: Vec<(&'static str, Option<Of>)>) -> Response {
    let lists = Lists { pool: api.pool.clone(), parts: parts.into_iter(), now: None, ended: false };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lists.into_stream())).into_response()
}

struct Lists {
    pool: PgPool,
    parts: std::vec::IntoIter<(&'static str, Option<Of>)>,
    /// The list that is being written, and up to where it is.
    now: Option<(Of, After)>,
    ended: bool,
}

impl Lists {
    fn into_stream(self) -> impl Stream<Item = cratemill_store::Result<Bytes>> + Send {
        stream::try_unfold(self, |mut lists| async {
            let next = lists.next().await.inspect_err(|error| tracing::warn!(%error, "a list breaks off"))?;
            Ok(next.map(|bytes| (bytes, lists)))
        })
    }

    /// The next piece; nothing behind the last.
    async fn next(&mut self) -> cratemill_store::Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        let mut out = Vec::new();
        loop {
            if let Some((of, after)) = self.now.take() {
                let events = async { page(&mut *self.pool.acquire().await?, of, after, PAGE).await };
                let events = in_time(events).await?;
                for (nth, event) in events.iter().enumerate() {
                    if nth > 0 || after != BEGINNING {
                        out.push(b',');
                    }
                    json::put_event(event, &mut out);
                }
                if let Some(last) = events.last().filter(|_| i64::try_from(events.len()) == Ok(PAGE)) {
                    self.now = Some((of, (last.timestamp, last.seq)));
                    break;
                }
            }
            let Some((before, of)) = self.parts.next() else {
                out.extend_from_slice(b"]}");
                self.ended = true;
                break;
            };
            out.extend_from_slice(before.as_bytes());
            self.now = of.map(|of| (of, BEGINNING));
        }
        Ok(Some(out.into()))
    }
}
