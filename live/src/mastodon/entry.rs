//! Every request: a WebSocket on whatever path, or a stream of events on the path of its name.

use super::{Mastodon, events, refusal, sockets};
use crate::{dialects::mastodon::request::Error, problem::Problem, ws};
use axum::{
    extract::{Query, State},
    http::{HeaderMap, Method, Uri, request::Parts},
    response::{IntoResponse as _, Response},
};
use cratemill_service::http::PeerAddr;
use std::{net::IpAddr, sync::Arc};

/// What paths begin with.
const PREFIX: &str = "/api/v1/streaming/";
/// A tag, a token and air.
const MAX_QUERY_BYTES: usize = 16 * 1024;

/// What a request says, as far as anybody here wants to know.
pub(super) struct Asking {
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) peer: Option<IpAddr>,
}

pub(super) async fn enter(State(mastodon): State<Arc<Mastodon>>, request: Parts) -> Response {
    let Parts { method, uri, version, headers, extensions, .. } = request;
    let handshake = if method == Method::GET { ws::handshake(version, &headers) } else { Ok(None) };
    let key = match handshake {
        Ok(key) => key,
        Err(problem) => return problem.into_response(),
    };
    let Some(query) = query(&uri) else {
        return if key.is_some() {
            refusal::of_handshake(Error::Unexpected)
        } else {
            Error::UnknownChannel.into_response()
        };
    };
    let peer = extensions.get().map(|PeerAddr(peer)| peer.ip());
    let asking = Asking { query, headers, peer };
    if let Some(key) = key {
        return sockets::open(mastodon, &key, &asking).await.unwrap_or_else(refusal::of_handshake);
    }
    let path = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    if path == "health" && (method == Method::GET || method == Method::HEAD) {
        return "OK".into_response();
    }
    events::follow(mastodon, path, &method, &asking).await.unwrap_or_else(Error::into_response)
}

/// Where other dialects are spoken too.
pub(super) async fn enter_or_not_found(state: State<Arc<Mastodon>>, request: Parts) -> Response {
    match ws::handshake(request.version, &request.headers) {
        Ok(Some(_)) => enter(state, request).await,
        _ => Problem::not_found("there is nothing here").into_response(),
    }
}

fn query(uri: &Uri) -> Option<Vec<(String, String)>> {
    if uri.query().is_some_and(|query| query.len() > MAX_QUERY_BYTES) {
        return None;
    }
    Query::<Vec<(String, String)>>::try_from_uri(uri).ok().map(|Query(query)| query)
}
