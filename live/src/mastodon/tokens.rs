//! Whether the tokens of those who are here are good still. Mastodon says so when one is not; that may get lost, while Redis
//! is away or before somebody's channels are subscribed.

use crate::{
    dialects::mastodon::channel::{Channel, TokenId},
    reactor::{Mail, Reactors},
};
use cratemill_store::{bulk::Pool, mastodon};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};

/// Tokens of one statement.
const AT_ONCE: usize = 1_000;
/// A copy of the database that is behind may not have a token that another one had.
const BETWEEN: Duration = Duration::from_secs(5);

/// Those that are to be looked at.
#[derive(Debug)]
pub(super) struct Tokens(watch::Sender<Vec<i64>>);

impl Tokens {
    pub(super) fn new() -> (Self, watch::Receiver<Vec<i64>>) {
        let (sender, due) = watch::channel(Vec::new());
        (Self(sender), due)
    }

    /// Those whose channels these are, and no others any more. Nobody waits for it: if the database does not answer, the
    /// next look is soon.
    pub(super) fn check(&self, channels: &[Channel]) {
        let token = |channel: &Channel| match channel {
            Channel::AccessToken(token) => Some(token.0),
            _ => None,
        };
        self.0.send_replace(channels.iter().filter_map(token).collect());
    }
}

/// Looks whenever there is something to look at.
pub(super) async fn look(pool: Pool, reactors: Arc<Reactors>, mut due: watch::Receiver<Vec<i64>>) {
    let look = Look { pool, reactors };
    while due.changed().await.is_ok() {
        let tokens = due.borrow_and_update().clone();
        if let Err(error) = look.twice(&tokens).await {
            tracing::warn!(%error, "cannot see whether tokens are good still");
        }
    }
}

struct Look {
    pool: Pool,
    reactors: Arc<Reactors>,
}

impl Look {
    async fn twice(&self, tokens: &[i64]) -> Result<(), mastodon::Error> {
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
