//! Signing up and logging in.

use super::{EventApi, body, error::Error};
use crate::dialects::event_api::request::{Credentials, SignUp};
use axum::{
    Json,
    extract::{Extension, Request, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use cratemill_protocol::UserId;
use cratemill_service::{clock, http::PeerAddr};
use cratemill_store::users::{self, User};
use serde_json::json;
use std::{net::SocketAddr, sync::Arc};
use uuid::Uuid;

pub(super) async fn sign_up(
    State(api): State<Arc<EventApi>>,
    Extension(PeerAddr(peer)): Extension<PeerAddr>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Error> {
    let SignUp { credentials: Credentials { username, password }, collection_id } =
        SignUp::parse(&admitted(&api, peer, &headers, request).await?)?;
    api.limits.name(&headers, peer.ip(), &username)?;
    // Nobody waits a fifth of a second for what is known now.
    if users::is_taken(&mut *api.pool.acquire().await?, &username).await? {
        return Err(Error::Taken);
    }
    let password_hash = api.passwords.hash(password).await?;
    let user = User { id: UserId(Uuid::new_v4()), password_hash, collection_id };
    if !users::add(&mut *api.pool.acquire().await?, &username, &user).await? {
        return Err(Error::Taken);
    }
    Ok(Json(json!({"id": user.id})).into_response())
}

/// Whether there is no such user or the password is another one: the same answer, after the same time.
pub(super) async fn log_in(
    State(api): State<Arc<EventApi>>,
    Extension(PeerAddr(peer)): Extension<PeerAddr>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Error> {
    let Credentials { username, password } =
        Credentials::parse(&admitted(&api, peer, &headers, request).await?)?;
    api.limits.name(&headers, peer.ip(), &username)?;
    // Postgres has no room for it, and so nobody of that name.
    let user = if username.contains('\0') {
        None
    } else {
        users::named(&mut *api.pool.acquire().await?, &username).await?
    };
    let (id, hash) = user.map(|user| (user.id, user.password_hash)).unzip();
    let is_right = api.passwords.verify(password, hash).await?;
    let id = id.filter(|_| is_right).ok_or(Error::Credentials)?;
    let jwt = api.tokens.issue(id, clock::now_s()).ok_or(Error::Away("no secret is configured"))?;
    Ok(Json(json!({"jwt": jwt})).into_response())
}

/// The body, if as much may be tried from there.
async fn admitted(
    api: &EventApi,
    peer: SocketAddr,
    headers: &HeaderMap,
    request: Request,
) -> Result<Bytes, Error> {
    if let Err(error) = api.limits.address(headers, peer.ip()) {
        body::discard(request).await;
        return Err(error);
    }
    body::read(request).await
}
