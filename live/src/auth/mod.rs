//! Who may publish to a user topic, and who may follow a private one.
//!
//! A token is checked when a request begins, and not again: a stream that is open when its token expires goes on until
//! it ends, and cannot be resumed then. Tokens stand in no log.

pub mod command;
pub mod token;

use self::token::{Claims, Secret, Signer};
use crate::problem::Problem;
use axum::http::{HeaderMap, header};
use cratemill_protocol::{UserTopic, topic::Topic};
use cratemill_service::clock;
use std::sync::Arc;

/// A query's key for a token: browsers cannot set a header for an event stream.
const QUERY_KEY: &str = "token";

#[derive(Debug)]
pub struct Access {
    /// None where the operator has set no secret: then there are no tokens.
    signer: Option<Signer>,
    /// Most have no token.
    anybody: Arc<Holder>,
}

#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("publishing is not configured: neither are private topics")]
    NotConfigured,
    #[error("this takes a token: authorization: Bearer TOKEN")]
    NoToken,
    #[error(transparent)]
    Token(#[from] token::Error),
    #[error("the token does not let its holder publish to {0}")]
    Publish(UserTopic),
    #[error("the token does not let its holder follow {0}")]
    Subscribe(UserTopic),
}

impl Access {
    pub fn new(secret: Option<&Secret>) -> Self {
        let signer = secret.map(Signer::new);
        let anybody = if signer.is_some() { Holder::NoToken } else { Holder::NotConfigured };
        Self { signer, anybody: Arc::new(anybody) }
    }

    pub fn publish(&self, headers: &HeaderMap, topic: &UserTopic) -> Result<(), Denied> {
        let claims = self.claims(bearer(headers))?;
        if claims.may_publish(topic) { Ok(()) } else { Err(Denied::Publish(topic.clone())) }
    }

    /// Who opens a connection on which topics are named later. A token that is no good is refused at once.
    pub fn holder(&self, headers: &HeaderMap, query: &[(String, String)]) -> Result<Arc<Holder>, Denied> {
        match bearer(headers).or_else(|| in_query(query)) {
            Some(token) if self.signer.is_some() => {
                Ok(Arc::new(Holder::Claims(Box::new(self.claims(Some(token))?))))
            }
            _ => Ok(Arc::clone(&self.anybody)),
        }
    }

    /// All of it or nothing. Without a private topic nobody looks at a token.
    pub fn subscribe(
        &self,
        headers: &HeaderMap,
        query: &[(String, String)],
        topics: &[Topic],
    ) -> Result<(), Denied> {
        let mut private = topics.iter().filter_map(private).peekable();
        if private.peek().is_none() {
            return Ok(());
        }
        let claims = self.claims(bearer(headers).or_else(|| in_query(query)))?;
        match private.find(|topic| !claims.may_subscribe(topic)) {
            None => Ok(()),
            Some(topic) => Err(Denied::Subscribe(topic.clone())),
        }
    }

    /// Who somebody with a token is, if the token says so; nobody without one. A token that is no good is refused.
    pub fn subject(&self, headers: &HeaderMap, query: &[(String, String)]) -> Result<Option<String>, Denied> {
        match bearer(headers).or_else(|| in_query(query)) {
            None => Ok(None),
            token => Ok(self.claims(token)?.sub),
        }
    }

    fn claims(&self, token: Option<&str>) -> Result<Claims, Denied> {
        let signer = self.signer.as_ref().ok_or(Denied::NotConfigured)?;
        Ok(signer.verify(token.ok_or(Denied::NoToken)?, clock::now_s())?)
    }
}

/// What somebody may follow, for as long as the connection is open.
#[derive(Debug)]
pub enum Holder {
    NotConfigured,
    NoToken,
    Claims(Box<Claims>),
}

impl Holder {
    pub fn subscribe(&self, topic: &Topic) -> Result<(), Denied> {
        let Some(topic) = private(topic) else { return Ok(()) };
        match self {
            Self::NotConfigured => Err(Denied::NotConfigured),
            Self::NoToken => Err(Denied::NoToken),
            Self::Claims(claims) if claims.has_expired(clock::now_s()) => {
                Err(Denied::Token(token::Error::Expired))
            }
            Self::Claims(claims) if claims.may_subscribe(topic) => Ok(()),
            Self::Claims(_) => Err(Denied::Subscribe(topic.clone())),
        }
    }
}

fn in_query(query: &[(String, String)]) -> Option<&str> {
    query.iter().find(|(key, _)| key == QUERY_KEY).map(|(_, token)| token.as_str())
}

fn private(topic: &Topic) -> Option<&UserTopic> {
    match topic {
        Topic::User(topic) if topic.is_private() => Some(topic),
        _ => None,
    }
}

/// What is no bearer token is for somebody else on the way.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim_start())
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NoToken | Denied::Token(_) => Self::unauthorized(denied.to_string()),
            Denied::NotConfigured | Denied::Publish(_) | Denied::Subscribe(_) => {
                Self::forbidden(denied.to_string())
            }
        }
    }
}
