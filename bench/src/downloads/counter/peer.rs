//! What both peers have: a table as ours was, and a look at how fast it fills.

use crate::statistics::per_s;
use anyhow::{Result, ensure};
use sqlx::{Connection, PgConnection};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// For connections to be there, and most rows.
const WARM_UP: Duration = Duration::from_secs(4);

/// Events whose counts are committed.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<AtomicUsize>);

impl Progress {
    pub(super) fn add(&self, events: usize) {
        self.0.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn all(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Events a second, once it is warm.
    pub(super) async fn watch(&self, time: Duration) -> f64 {
        sleep(WARM_UP).await;
        let (before, started) = (self.all(), Instant::now());
        sleep(time).await;
        per_s(self.all() - before, started.elapsed())
    }
}

/// Empty. Half of each page stays free, so that a row that is counted up stays on its page.
pub(super) async fn table(url: &str) -> Result<()> {
    let mut conn = PgConnection::connect(url).await?;
    for statement in [
        "DROP TABLE IF EXISTS peer_daily",
        "CREATE TABLE peer_daily (artifact_id bigint, day date, client text, count bigint NOT NULL,
                                  PRIMARY KEY (artifact_id, day, client)) WITH (fillfactor = 50)",
        // What was written before is on the disk before this begins.
        "CHECKPOINT",
    ] {
        sqlx::query(statement).execute(&mut conn).await?;
    }
    Ok(())
}

/// That it has counted what it says.
pub(super) async fn check(url: &str, events: usize) -> Result<()> {
    let mut conn = PgConnection::connect(url).await?;
    let sum: i64 = sqlx::query_scalar("SELECT coalesce(sum(count), 0)::bigint FROM peer_daily")
        .fetch_one(&mut conn)
        .await?;
    ensure!(usize::try_from(sum)? == events, "a peer counted {sum} of {events}");
    Ok(())
}
