//! WebSockets: any number of streams on one connection, each asked for when it is open, the first perhaps in its address.

use super::{
    Mastodon,
    auth::{self, Holder},
    entry::Asking,
};
use crate::{
    dialects::{
        Dialect,
        mastodon::request::{Error, Named},
    },
    reactor::{First, Kind, Listener, Parking},
    ws,
};
use axum::{
    http::{HeaderValue, header},
    response::Response,
};
use cratemill_service::take_over::{TakeOver, Taken};
use std::sync::Arc;

pub(super) async fn open(
    mastodon: Arc<Mastodon>,
    key: &HeaderValue,
    asking: &Asking,
) -> Result<Response, Error> {
    let protocol = auth::protocol(&asking.headers);
    let holder = mastodon.holder(&asking.headers, &asking.query, protocol.as_ref()).await?;
    let Holder { token, account, scopes, sees_all, languages } = holder;
    if !mastodon.redis.is_up_soon().await {
        return Err(Error::Away);
    }
    let guard = mastodon.limits.admit(token, &asking.headers, asking.peer)?;
    let seat = mastodon.entrance.admit()?;
    let wanted = Some(Named::of_query(&asking.query)).filter(|named| named.stream.is_some());
    let first = First::Socket { wanted };
    let listener = Box::new(Listener { account, token, scopes, sees_all, languages, guard, first });
    let reactors = Arc::clone(&mastodon.entrance.reactors);
    let reactor = reactors.of_account(account);
    let take_over = TakeOver::new(move |Taken { stream, head, early }| {
        let kind = Kind::Listener { reactor, listener, early };
        reactors.park(Parking { stream, seat, dialect: Dialect::MastodonSocket, owed: head, kind });
    });
    let mut response = ws::switch(key, take_over).map_err(|_| Error::Unexpected)?;
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}
