//! Redirects that were sent before, answered before the request gets to the router.
//!
//! Most downloads are the same few redirects. For a plain GET of a path that the node has answered so a moment ago nothing is
//! left to find out: it is counted and answered here, with the same head, the same measurement and the same rule for what is
//! remembered ([`crate::hot`]). Everything else, a query, a range, a condition, an id of its own, goes the long way.

use super::ROUTE;
use crate::{App, config::Downloads, downloads::Asker, observe};
use axum::{
    extract::Request,
    http::{Method, StatusCode, header},
    response::Response,
};
use cratemill_service::http::PeerAddr;
use std::time::Instant;

/// What the long way looks at, and this one does not.
const LOOKED_AT: [header::HeaderName; 4] =
    [header::RANGE, header::IF_NONE_MATCH, header::IF_RANGE, observe::REQUEST_ID];
/// Every path of the route begins so.
const PREFIX: &str = "/api/v1/crates/";

/// The answer, if there is one.
pub(crate) fn answer<B>(
    app: &App,
    request: &Request<B>,
    peer: PeerAddr,
) -> Option<impl Future<Output = Response> + Send + 'static + use<B>> {
    let start = Instant::now();
    let (uri, headers) = (request.uri(), request.headers());
    let plain = *request.method() == Method::GET
        && uri.query().is_none()
        && app.config.downloads == Downloads::Redirect
        && !LOOKED_AT.iter().any(|name| headers.contains_key(name));
    if !plain {
        return None;
    }
    let artifact = app.hot.peek(uri.path())?;
    let url = artifact.known_url()?;
    let counted = app.counts.count(artifact.id, Asker::of(headers, peer, &app.signer));
    let measured = app.durations.of(ROUTE, "GET", StatusCode::FOUND.as_u16());
    Some(async move {
        counted.await;
        let mut response = super::answer::redirected(url, &artifact);
        response.headers_mut().insert(observe::REQUEST_ID, observe::new_id());
        measured.record(start.elapsed().as_secs_f64());
        response
    })
}

/// The next one that asks for this path need not go the long way.
pub(super) fn remember(app: &App, path: &str, query: Option<&str>, key: &str) {
    if app.config.downloads == Downloads::Redirect && query.is_none() && path.starts_with(PREFIX) {
        app.hot.also_as(path, key);
    }
}
