//! Rescue: attempts whose lease ran out are over, and sessions that nobody speaks of any more are closed.

use crate::{
    ending, metrics,
    outage::{Outage, pause},
    wakes::Wakes,
};
use cratemill_protocol::{FailureClass, Outcome, bus::BuilderState, job::Timings};
use cratemill_store::{PgPool, outbox, queue, sessions};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(1);
/// Jobs per transaction.
const BATCH: i64 = 100;
/// Nodes speak of their sessions with every heartbeat; after nine missed ones the node is dead.
const SILENT_S: i32 = 90;
/// While the database or all dispatchers were away, nobody could renew a lease or hand in an outcome: they get this
/// long to catch up, a heartbeat's time, before anybody's work is thrown away.
const GRACE: Duration = Duration::from_secs(10);

pub async fn run(pool: PgPool, wakes: Arc<Wakes>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("rescue");
    let mut wait = GRACE;
    while pause(wait, &shutdown).await {
        wait = match round(&pool, &wakes).await {
            Ok(()) if outage.over() => GRACE,
            Ok(()) => INTERVAL,
            Err(error) => outage.failed(error),
        };
    }
    Ok(())
}

async fn round(pool: &PgPool, wakes: &Wakes) -> Result<(), cratemill_store::Error> {
    while expire_leases(pool).await? > 0 {
        wakes.ended.notify_one();
    }
    expire_sessions(pool).await
}

/// One transaction; returns how many attempts it ended.
pub async fn expire_leases(pool: &PgPool) -> Result<usize, cratemill_store::Error> {
    let mut tx = pool.begin().await?;
    let expired = queue::expired(&mut tx, BATCH).await?;
    for held in &expired {
        let message = "the builder did not renew its lease in time".to_owned();
        let lost =
            Outcome::Failed { class: FailureClass::Lost, message, stage: None, timings: Timings::default() };
        if sessions::give_back(&mut tx, held.id, held.attempt).await? {
            tracing::info!(job = %held.id, attempt = %held.attempt, "an assignment got lost: its builder waits again");
        }
        let state = ending::end(&mut tx, held, &lost, None).await?;
        tracing::warn!(job = %held.id, attempt = %held.attempt, builder = %held.builder, %state, "a lease ran out");
    }
    tx.commit().await?;
    metrics::expired(expired.len());
    Ok(expired.len())
}

async fn expire_sessions(pool: &PgPool) -> Result<(), cratemill_store::Error> {
    let mut tx = pool.begin().await?;
    for (builder, name) in sessions::expire(&mut tx, SILENT_S).await? {
        tracing::warn!(%builder, name, "the node that held the builder's connection is silent: session closed");
        outbox::builder_changed(&mut tx, builder, &name, BuilderState::Disconnected).await?;
    }
    tx.commit().await
}
