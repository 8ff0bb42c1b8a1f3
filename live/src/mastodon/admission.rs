//! What has to be looked up before somebody may listen to a stream that many listen to.

use super::{Mastodon, Viewer};
use crate::{
    dialects::mastodon::{channel::AccountId, filter::Closed, request::Error, stream::Stream},
    reactor::{Answer, Question},
};
use cratemill_store::mastodon;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc::UnboundedReceiver};

/// Questions of WebSockets that are looked into at once: the others wait for their turn.
const AT_ONCE: usize = 64;
/// What a setting says that closes a feed to all but a few.
const DISABLED: &str = "--- disabled\n";

/// How somebody gets a stream.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Whose rules it is judged by, if by any.
    pub viewer: Option<Arc<Viewer>>,
    pub closed: Closed,
}

impl Mastodon {
    /// For somebody whose token is good for it.
    pub(super) async fn admission(
        &self,
        account: AccountId,
        sees_all: bool,
        stream: &Stream,
    ) -> Result<Admission, Error> {
        let away = |error: mastodon::Error| {
            tracing::warn!(%error, "nobody can be let in without Mastodon's database");
            Error::Away
        };
        match stream {
            Stream::User | Stream::UserNotification | Stream::Direct => Ok(Admission::default()),
            Stream::List { list, .. } => {
                let is_owner = mastodon::owns_list(&self.pool, list.0, account.0).await.map_err(away)?;
                if is_owner { Ok(Admission::default()) } else { Err(Error::List) }
            }
            Stream::Public { .. } | Stream::Hashtag { .. } => {
                let closed =
                    if sees_all { Closed::default() } else { self.closed(stream).await.map_err(away)? };
                let viewer = self.viewers.get(account).await.map_err(away)?;
                Ok(Admission { viewer: Some(viewer), closed })
            }
        }
    }

    async fn closed(&self, stream: &Stream) -> Result<Closed, mastodon::Error> {
        let [local, remote] = match stream {
            Stream::Hashtag { .. } => ["local_topic_feed_access", "remote_topic_feed_access"],
            _ => ["local_live_feed_access", "remote_live_feed_access"],
        };
        let settings = mastodon::settings(&self.pool, &[local, remote]).await?;
        let is_closed = |name: &str| {
            settings.iter().any(|(var, value)| var == name && value.as_deref() == Some(DISABLED))
        };
        Ok(Closed { local: is_closed(local), remote: is_closed(remote) })
    }
}

/// What WebSockets ask for when they are open.
pub(super) async fn answer(mastodon: Arc<Mastodon>, mut questions: UnboundedReceiver<Question>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(Question { who, account, sees_all, stream }) = questions.recv().await {
        // Nobody closes it.
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        let mastodon = Arc::clone(&mastodon);
        tokio::spawn(async move {
            let admission = mastodon.admission(account, sees_all, &stream).await;
            mastodon.entrance.reactors.answer(who, Answer::Admitted(stream, admission));
            drop(turn);
        });
    }
}
