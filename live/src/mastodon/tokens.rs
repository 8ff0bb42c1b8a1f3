//! Whether the tokens of those who are here are good still. Mastodon says so when one is not; that may get lost, while Redis
//! is away or before somebody's channels are subscribed.

use crate::{
    dialects::mastodon::channel::{Channel, TokenId},
    reactor::{Mail, Reactors},
};
use cratemill_store::{bulk::Pool, mastodon};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Tokens of one statement.
const AT_ONCE: usize = 1_000;

#[derive(Debug)]
pub(super) struct Tokens {
    pool: Pool,
    reactors: Arc<Reactors>,
    /// They are being looked at.
    busy: AtomicBool,
}

impl Tokens {
    pub(super) fn new(pool: Pool, reactors: Arc<Reactors>) -> Arc<Self> {
        Arc::new(Self { pool, reactors, busy: AtomicBool::new(false) })
    }

    /// Those whose channels these are. Nobody waits for it: if the database does not answer, the next look is soon.
    pub(super) fn check(self: &Arc<Self>, channels: &[Channel]) {
        let token = |channel: &Channel| match channel {
            Channel::AccessToken(token) => Some(token.0),
            _ => None,
        };
        let tokens: Vec<i64> = channels.iter().filter_map(token).collect();
        if tokens.is_empty() || self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = this.look(&tokens).await {
                tracing::warn!(%error, "cannot see whether tokens are good still");
            }
            this.busy.store(false, Ordering::Release);
        });
    }

    async fn look(&self, tokens: &[i64]) -> Result<(), mastodon::Error> {
        for part in tokens.chunks(AT_ONCE) {
            let good: HashSet<i64> = mastodon::good_tokens(&self.pool, part).await?.into_iter().collect();
            for token in part.iter().filter(|token| !good.contains(token)) {
                self.reactors.mail(Mail::Kill(Channel::AccessToken(TokenId(*token))));
            }
        }
        Ok(())
    }
}
