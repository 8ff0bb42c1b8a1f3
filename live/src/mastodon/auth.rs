//! Who somebody is, by the access token that they bring.

use super::Mastodon;
use crate::dialects::mastodon::{
    channel::{AccountId, TokenId},
    filter::Languages,
    request::Error,
    scopes::Scopes,
};
use axum::http::{HeaderMap, HeaderValue, header};
use cratemill_store::mastodon;

/// Allows its role to see feeds that are closed.
const VIEW_FEEDS: i64 = 0x10_0000;
/// Tokens of Mastodon have 43 letters.
const MAX_TOKEN_BYTES: usize = 1_024;

/// Somebody whose token is good.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) token: TokenId,
    pub(super) account: AccountId,
    pub(super) scopes: Scopes,
    pub(super) sees_all: bool,
    pub(super) languages: Languages,
}

/// The first protocol that a WebSocket offers: browsers cannot say a token otherwise.
pub(super) fn protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let first = offered.split(',').next()?.trim();
    HeaderValue::from_str(first).ok().filter(|first| !first.is_empty())
}

/// In the order in which Mastodon looks.
fn token(headers: &HeaderMap, query: &[(String, String)], protocol: Option<&HeaderValue>) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(header) = header.filter(|header| !header.is_empty()) {
        // Whatever else it says is no token.
        return Some(header.strip_prefix("Bearer ").unwrap_or(header).to_owned());
    }
    let in_query = query.iter().find(|(name, _)| name == "access_token").map(|(_, value)| value.clone());
    let in_protocol = || protocol?.to_str().ok().map(str::to_owned);
    in_query.filter(|token| !token.is_empty()).or_else(in_protocol)
}

impl Mastodon {
    pub(super) async fn holder(
        &self,
        headers: &HeaderMap,
        query: &[(String, String)],
        protocol: Option<&HeaderValue>,
    ) -> Result<Holder, Error> {
        let token = token(headers, query, protocol).ok_or(Error::MissingToken)?;
        if token.len() > MAX_TOKEN_BYTES || token.contains('\0') {
            return Err(Error::InvalidToken);
        }
        let found = mastodon::token(&self.pool, &token).await.map_err(|error| {
            tracing::warn!(%error, "nobody can be let in without Mastodon's database");
            Error::Away
        })?;
        let token = found.ok_or(Error::InvalidToken)?;
        let languages = token.languages.filter(|chosen| !chosen.is_empty());
        Ok(Holder {
            token: TokenId(token.id),
            account: AccountId(token.account),
            scopes: Scopes::parse(&token.scopes),
            sees_all: token.permissions & VIEW_FEEDS != 0,
            languages: languages.map(|chosen| self.languages.get(chosen)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_comes_before_the_query_before_the_protocol() {
        let query = vec![("access_token".to_owned(), "q".to_owned())];
        for (authorization, query, offered, expected) in [
            (Some("Bearer h"), &query[..], Some("p"), Some("h")),
            (Some("bearer h"), &query, Some("p"), Some("bearer h")),
            (None, &query, Some("p"), Some("q")),
            (None, &[], Some("p, other"), Some("p")),
            (None, &[("access_token".to_owned(), String::new())], Some("p"), Some("p")),
            (None, &[], None, None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in
                [(header::AUTHORIZATION, authorization), (header::SEC_WEBSOCKET_PROTOCOL, offered)]
            {
                headers.extend(value.map(|value| (name, HeaderValue::from_static(value))));
            }
            let protocol = protocol(&headers);
            assert_eq!(token(&headers, query, protocol.as_ref()).as_deref(), expected);
        }
    }
}
