//! What this node remembers of the artifacts that are asked for most, so that a download costs no query.
//!
//! It serves nothing that is blocked two seconds after the block, whatever fails: a task asks twice a second for the
//! catalogue's generation, and what is remembered is used only while the newest answer is fresh ([`validity`]). Without
//! one, each download asks the database itself. What is not there is never remembered: a job may just have made it.

mod cache;
mod validity;

use cache::Entries;
use cratemill_store::{PgConnection, PgPool, catalogue, database};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Two looks that fail or come late are one too many: see [`validity::LOOK_HOLDS`].
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Below the interval, so that after one that hangs the next is in time.
const LOOK_TIMEOUT: Duration = Duration::from_millis(400);
/// A server with much to do takes longer to let somebody in than to answer: without this a node would try for ever, and
/// remember nothing, when that is most needed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Clones share what they remember.
#[derive(Debug)]
pub(crate) struct Hot<V>(Arc<Entries<V>>);

impl<V> Clone for Hot<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V> Default for Hot<V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<V: Clone> Hot<V> {
    /// What is remembered under `key`, or what `load` finds, which is then remembered for `life` at most.
    pub(crate) async fn get<E, F>(&self, key: &str, life: Duration, load: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        self.0.get(key, life, load).await
    }

    /// What is remembered under `key`, and nothing else.
    pub(crate) fn peek(&self, key: &str) -> Option<V> {
        self.0.peek(key)
    }

    /// Remembers what is under `key` under another one too, for as long.
    pub(crate) fn also_as(&self, other: &str, key: &str) {
        self.0.also_as(other, key);
    }

    /// Looks for changes until `shutdown`.
    pub(crate) async fn watch(&self, pool: &PgPool, shutdown: &CancellationToken) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut conn = None;
        let mut relied = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let Some(looked) = shutdown.run_until_cancelled(look(pool, &mut conn)).await else { return };
            let error = match looked {
                Ok((generation, began)) => {
                    self.0.validity().looked(generation, began);
                    relied = true;
                    continue;
                }
                Err(error) => error,
            };
            if relied && !self.0.validity().holds(Instant::now()) {
                relied = false;
                tracing::warn!(
                    error,
                    "changes of the catalogue cannot be seen: each download asks the database"
                );
            }
        }
    }
}

/// The generation, and when the look began that has seen it; or why there is none. Over a connection of its own: were it
/// to wait for one of the pool, a busy node would become a busier one.
async fn look(pool: &PgPool, conn: &mut Option<PgConnection>) -> Result<(i64, Instant), String> {
    // Put back only if it works: one that failed or hangs is closed.
    let mut open = match conn.take() {
        Some(open) => open,
        None => in_time(CONNECT_TIMEOUT, database::dedicated(pool, LOOK_TIMEOUT)).await?,
    };
    let began = Instant::now();
    let generation = in_time(LOOK_TIMEOUT, catalogue::generation(&mut open)).await?;
    *conn = Some(open);
    Ok((generation, began))
}

async fn in_time<T>(limit: Duration, asking: impl Future<Output = sqlx::Result<T>>) -> Result<T, String> {
    let answered = timeout(limit, asking).await.map_err(|_| "no answer in time".to_owned())?;
    answered.map_err(|error| error.to_string())
}
