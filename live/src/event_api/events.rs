//! Inserting an event, and cancelling it.

use super::{EventApi, body, error::Error};
use crate::dialects::event_api::{json, request::Insert};
use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use cratemill_protocol::EventId;
use cratemill_service::clock;
use cratemill_store::events::{
    Event,
    cancel::{Cancelled, cancel},
    insert::{Inserted, NewEvent},
};
use std::sync::Arc;
use uuid::Uuid;

pub(super) async fn insert(
    State(api): State<Arc<EventApi>>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Error> {
    let user_id = match api.tokens.user(&headers, clock::now_s()) {
        Ok(user) => user,
        Err(error) => {
            body::discard(request).await;
            return Err(error);
        }
    };
    let Insert { event, collection_id, timestamp, data } = Insert::parse(&body::read(request).await?)?;
    let id = EventId(Uuid::new_v4());
    let new = NewEvent { id, user_id, collection_id, event, timestamp, data: data.into() };
    match api.inserter.insert(new.clone()).await? {
        Inserted::Done => Ok(answer(&inserted(new))),
        Inserted::NoUser => Err(Error::Token),
        Inserted::TooMany => Err(Error::Quota(api.most_per_user)),
    }
}

/// As it is at this moment: nothing is published before it is inserted.
fn inserted(new: NewEvent) -> Event {
    let NewEvent { id, user_id, collection_id, event, timestamp, data } = new;
    Event { id, seq: 0, user_id, collection_id, event, timestamp, published: false, cancelled: false, data }
}

pub(super) async fn cancel_one(
    State(api): State<Arc<EventApi>>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let (user, _) = api.caller(&headers).await?;
    let id = id.ok().and_then(|Path(id)| id.parse().ok()).ok_or(Error::Unknown)?;
    match cancel(&mut *api.pool.acquire().await?, EventId(id), user).await? {
        Cancelled::Now(event) => Ok(answer(&event)),
        Cancelled::Already => Err(Error::Cancelled),
        Cancelled::Published => Err(Error::Published),
        Cancelled::NotTheirs => Err(Error::NotTheirs),
        Cancelled::Unknown => Err(Error::Unknown),
    }
}

fn answer(event: &Event) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, json::event(event)).into_response()
}
