//! The deadline of attempts that renew their lease but never end: their builder is stuck, and would hold the job for ever.

use crate::{ending, metrics, wakes::Wakes};
use cratemill_protocol::{FailureClass, Outcome, job::Timings};
use cratemill_service::outage::{Outage, pause};
use cratemill_store::{PgPool, patience::in_time, queue, sessions};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Nothing waits for it: such an attempt is late by minutes already.
const INTERVAL: Duration = Duration::from_secs(15);
/// Jobs per transaction.
const BATCH: i64 = 100;
/// A builder ends a job at its wall-clock limit; then it sends the rest of the log and the outcome, over a connection that
/// may be down for minutes.
const GRACE_S: i64 = 600;

/// `wall_s` is what a job may take.
pub async fn run(
    pool: PgPool,
    wakes: Arc<Wakes>,
    wall_s: u32,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut outage = Outage::new("deadlines");
    let mut wait = INTERVAL;
    while pause(wait, &shutdown).await {
        wait = match in_time(end_overdue(&pool, wall_s)).await {
            Ok(ended) => {
                outage.over();
                if ended > 0 {
                    wakes.attempt_ended();
                }
                INTERVAL
            }
            // Not sooner when the database is back: outcomes that waited for it come first.
            Err(error) => outage.failed(error).max(INTERVAL),
        };
    }
    Ok(())
}

/// One transaction; returns how many attempts it ended. Their builders are told with their next heartbeat.
pub async fn end_overdue(pool: &PgPool, wall_s: u32) -> Result<usize, cratemill_store::Error> {
    let mut tx = pool.begin().await?;
    let mut overdue = queue::overdue(&mut tx, i64::from(wall_s) + GRACE_S, BATCH).await?;
    // Sessions are locked in one order, like everywhere.
    overdue.sort_by_key(|held| held.builder);
    for held in &overdue {
        let message = "the builder did not end the attempt in time".to_owned();
        let lost =
            Outcome::Failed { class: FailureClass::Lost, message, stage: None, timings: Timings::default() };
        sessions::give_back(&mut tx, &[ending::gone(held)]).await?;
        let state = ending::end(&mut tx, held, &lost, None).await?;
        tracing::warn!(job = %held.id, attempt = %held.attempt, builder = %held.builder, %state, "an attempt did not end");
    }
    tx.commit().await?;
    metrics::expired(overdue.len());
    Ok(overdue.len())
}
