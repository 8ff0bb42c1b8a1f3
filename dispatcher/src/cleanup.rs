//! Clean-up: what failed attempts left in the object store, and marks of publishers that are gone.

use crate::outage::{Outage, pause};
use anyhow::Context as _;
use cratemill_store::{PgPool, downloads, objects::Objects, uploads};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_mins(5);
/// Longer than any outcome is under way.
const ORPHAN_AGE: time::Duration = time::Duration::hours(1);
/// Longer than any message stays on the bus.
const PUBLISHER_DAYS: i32 = 30;
const BATCH: i64 = 100;

pub async fn run(pool: PgPool, objects: Objects, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("clean-up");
    let mut wait = INTERVAL;
    while pause(wait, &shutdown).await {
        wait = match round(&pool, &objects, OffsetDateTime::now_utc() - ORPHAN_AGE).await {
            Ok(()) => {
                outage.over();
                INTERVAL
            }
            Err(error) => outage.failed(error),
        };
    }
    Ok(())
}

/// Removes what attempts that ended before `before` left behind, and old marks.
pub async fn round(pool: &PgPool, objects: &Objects, before: OffsetDateTime) -> anyhow::Result<()> {
    let mut conn = pool.acquire().await?;
    loop {
        let orphans = uploads::orphans(&mut conn, before, BATCH).await?;
        for orphan in &orphans {
            // First the bytes, then the record: the other way round a crash would leave bytes that nobody knows of.
            objects
                .delete(&orphan.object)
                .await
                .with_context(|| format!("cannot delete {}", orphan.object))?;
            uploads::forget(&mut conn, orphan).await?;
        }
        if orphans.is_empty() {
            break;
        }
        tracing::info!(uploads = orphans.len(), "removed what failed attempts left");
    }
    downloads::forget_publishers(&mut conn, PUBLISHER_DAYS).await?;
    Ok(())
}
