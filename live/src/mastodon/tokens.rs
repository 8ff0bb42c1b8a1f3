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
    time::Duration,
};
use tokio::time::sleep;

/// Tokens of one statement.
const AT_ONCE: usize = 1_000;
/// A copy of the database that is behind may not have a token that another one had.
const BETWEEN: Duration = Duration::from_secs(5);

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
            if let Err(error) = this.look_twice(&tokens).await {
                tracing::warn!(%error, "cannot see whether tokens are good still");
            }
            this.busy.store(false, Ordering::Release);
        });
    }

    async fn look_twice(&self, tokens: &[i64]) -> Result<(), mastodon::Error> {
        let bad = self.bad(tokens).await?;
        if bad.is_empty() {
            return Ok(());
        }
        sleep(BETWEEN).await;
        for token in self.bad(&bad).await? {
            self.reactors.mail(Mail::Kill(Channel::AccessToken(TokenId(token))));
        }
        Ok(())
    }

    async fn bad(&self, tokens: &[i64]) -> Result<Vec<i64>, mastodon::Error> {
        let mut bad = Vec::new();
        for part in tokens.chunks(AT_ONCE) {
            let good: HashSet<i64> = mastodon::good_tokens(&self.pool, part).await?.into_iter().collect();
            bad.extend(part.iter().filter(|token| !good.contains(token)));
        }
        Ok(bad)
    }
}
