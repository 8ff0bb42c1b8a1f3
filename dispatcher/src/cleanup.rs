//! Clean-up: what failed attempts left in the object store, and marks of publishers that are gone.

use anyhow::Context as _;
use cratemill_protocol::{Attempt, JobId};
use cratemill_service::outage::{Outage, pause};
use cratemill_store::{
    PgPool, downloads,
    objects::Objects,
    patience::in_time,
    uploads::{self, Orphan},
};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_mins(5);
/// Longer than any outcome is under way.
const ORPHAN_AGE: time::Duration = time::Duration::hours(1);
/// Longer than any message stays on the bus or in a node's journal.
const PUBLISHER_DAYS: i32 = 30;
/// Longer than the two requests of an install are apart.
const INSTALL_MINUTES: i32 = 30;
const BATCH: i64 = 100;
/// Requests of installs that are forgotten in one statement: a moment's work.
const INSTALLS: i64 = 10_000;
/// Nothing waits for it, but a drain.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Removes what attempts that ended before `before` left behind, and old marks. Neither waits for the other to go well.
pub async fn round(pool: &PgPool, objects: &Objects, before: OffsetDateTime) -> anyhow::Result<()> {
    let publishers =
        in_time(async { downloads::forget_publishers(&mut *pool.acquire().await?, PUBLISHER_DAYS).await });
    let publishers = publishers.await;
    let installs = forget_installs(pool).await;
    remove_orphans(pool, objects, before).await?;
    publishers?;
    installs
}

async fn forget_installs(pool: &PgPool) -> anyhow::Result<()> {
    loop {
        let forgotten = in_time(async {
            downloads::forget_installs(&mut *pool.acquire().await?, INSTALL_MINUTES, INSTALLS).await
        });
        if forgotten.await? < INSTALLS.unsigned_abs() {
            return Ok(());
        }
    }
}

async fn remove_orphans(pool: &PgPool, objects: &Objects, before: OffsetDateTime) -> anyhow::Result<()> {
    let mut after = (JobId(0), Attempt(0), String::new());
    loop {
        let orphans = in_time(async {
            let after = (after.0, after.1, &*after.2);
            uploads::orphans(&mut *pool.acquire().await?, before, after, BATCH).await
        });
        let orphans = orphans.await?;
        let Some(last) = orphans.last() else { return Ok(()) };
        after = (last.job, last.attempt, last.name.clone());
        let mut removed = 0;
        for orphan in &orphans {
            removed += usize::from(remove(pool, objects, orphan).await?);
        }
        if removed > 0 {
            tracing::info!(uploads = removed, "removed what failed attempts left");
        }
    }
}

/// False if just this object cannot be deleted: it must not keep the others. An error says that nothing can be done now.
async fn remove(pool: &PgPool, objects: &Objects, orphan: &Orphan) -> anyhow::Result<bool> {
    // First the bytes, then the record: the other way round a crash would leave bytes that nobody knows of.
    let deleted = timeout(ANSWER_TIMEOUT, objects.delete(&orphan.object)).await;
    if let Err(error) = deleted.context("no answer in time").and_then(|deleted| Ok(deleted?)) {
        let answers = timeout(ANSWER_TIMEOUT, objects.check()).await.context("no answer in time");
        answers.and_then(|answers| Ok(answers?)).context("the object store is away")?;
        let error = format!("{error:#}");
        tracing::warn!(object = orphan.object, error, "what a failed attempt left cannot be deleted now");
        return Ok(false);
    }
    in_time(async { uploads::forget(&mut *pool.acquire().await?, orphan).await }).await?;
    Ok(true)
}
