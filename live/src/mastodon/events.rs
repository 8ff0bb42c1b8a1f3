//! A stream of server-sent events: what it is to have stands in the path.

use super::{Mastodon, auth::Holder, entry::Asking};
use crate::{
    dialects::{
        Dialect,
        mastodon::request::{self, Error, Named},
    },
    reactor::{First, Kind, Listener, Parking},
    sse::last_event_id,
};
use axum::{
    http::{HeaderValue, Method, header},
    response::{IntoResponse as _, Response},
};
use cratemill_service::take_over::{TakeOver, Taken};
use std::sync::Arc;

pub(super) async fn follow(
    mastodon: Arc<Mastodon>,
    path: &str,
    method: &Method,
    asking: &Asking,
) -> Result<Response, Error> {
    let name = request::of_path(path, &asking.query).ok_or(Error::UnknownChannel)?;
    if *method != Method::GET {
        return Err(Error::Method);
    }
    let holder = mastodon.holder(&asking.headers, &asking.query, None).await?;
    let Holder { token, account, scopes, sees_all, languages } = holder;
    let named = Named { stream: Some(name), ..Named::of_query(&asking.query) };
    let stream = named.allowed(scopes)?;
    let admission = mastodon.admission(account, sees_all, &stream).await?;
    if !mastodon.redis.is_up_soon().await {
        return Err(Error::Away);
    }
    let guard = mastodon.limits.admit(token, &asking.headers, asking.peer)?;
    let seat = mastodon.entrance.admit()?;
    let last_event_id = last_event_id(&asking.headers).map(Into::into);
    let first = First::Stream { stream, admission, last_event_id };
    let listener = Box::new(Listener { account, token, scopes, sees_all, languages, guard, first });
    let reactors = Arc::clone(&mastodon.entrance.reactors);
    let reactor = reactors.of_account(account);
    let mut response = ().into_response();
    for (name, value) in
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "private, no-store")]
    {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.extensions_mut().insert(TakeOver::new(move |Taken { stream, head, early: _ }| {
        let kind = Kind::Listener { reactor, listener, early: bytes::Bytes::new() };
        reactors.park(Parking { stream, seat, dialect: Dialect::MastodonEvents, owed: head, kind });
    }));
    Ok(response)
}
