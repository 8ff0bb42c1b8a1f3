//! Rescue: attempts whose lease ran out are over, and sessions of nodes that died are closed.

use crate::{ending, metrics, wakes::Wakes};
use anyhow::{Context as _, anyhow};
use cratemill_protocol::{FailureClass, Outcome, bus::BuilderState, job::Timings};
use cratemill_service::{
    bus::Bus,
    outage::{Outage, pause},
};
use cratemill_store::{PgPool, database, outbox, patience::in_time, queue, sessions};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(1);
/// Jobs per transaction.
const BATCH: i64 = 100;
/// A node marks itself every five seconds; after eighteen missed marks it is dead.
const SILENT_S: i32 = 90;
/// A database that takes longer to say that it is there is not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// From when on what is overdue counts as lost.
///
/// While the database, the bus or all dispatchers were away, nobody could renew a lease, mark a session or hand in an
/// outcome: they get `grace` to catch up before anybody's work is thrown away.
#[derive(Debug)]
pub struct Patience {
    grace: Duration,
    pub outage: Outage,
    until: Instant,
}

impl Patience {
    /// All dispatchers may have been away until `now`.
    pub fn new(grace: Duration, now: Instant) -> Self {
        Self { grace, outage: Outage::new("rescue"), until: now + grace }
    }
}

pub async fn run(
    pool: PgPool,
    bus: Bus,
    wakes: Arc<Wakes>,
    grace: Duration,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut patience = Patience::new(grace, Instant::now());
    let mut wait = INTERVAL;
    while pause(wait, &shutdown).await {
        let turn = async {
            // No node lets builders in without it.
            bus.check().map_err(|why| anyhow!("the bus is away: {why}"))?;
            turn(&pool, &wakes, &mut patience, Instant::now()).await
        };
        wait = match turn.await {
            Ok(()) => INTERVAL,
            Err(error) => patience.outage.failed(error),
        };
    }
    Ok(())
}

/// Ends what is overdue, unless something was away not long ago. It looks all the time: what goes away while others still
/// catch up is an outage of its own.
pub async fn turn(pool: &PgPool, wakes: &Wakes, patience: &mut Patience, now: Instant) -> anyhow::Result<()> {
    let answer = timeout(ANSWER_TIMEOUT, database::check(pool)).await.context("no answer in time")?;
    answer.map_err(|why| anyhow!("the database is away: {why}"))?;
    if patience.outage.over() {
        patience.until = now + patience.grace;
    }
    if now >= patience.until {
        round(pool, wakes).await?;
    }
    Ok(())
}

async fn round(pool: &PgPool, wakes: &Wakes) -> Result<(), cratemill_store::Error> {
    while in_time(expire_leases(pool)).await? > 0 {
        wakes.attempt_returned();
    }
    in_time(expire_sessions(pool)).await
}

/// One transaction; returns how many attempts it ended.
pub async fn expire_leases(pool: &PgPool) -> Result<usize, cratemill_store::Error> {
    let mut tx = pool.begin().await?;
    let mut expired = queue::expired(&mut tx, BATCH).await?;
    // Sessions are locked in one order, so that two rescues never wait for each other.
    expired.sort_by_key(|held| held.builder);
    for held in &expired {
        let what = if held.accepted { "renew its lease" } else { "accept the job" };
        let message = format!("the builder did not {what} in time");
        let lost =
            Outcome::Failed { class: FailureClass::Lost, message, stage: None, timings: Timings::default() };
        if sessions::give_back(&mut tx, &[ending::gone(held)]).await? > 0 {
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
    let expired = sessions::expire(&mut tx, SILENT_S).await?;
    if !expired.is_empty() {
        outbox::builders_changed(&mut tx, &expired, BuilderState::Disconnected).await?;
    }
    tx.commit().await?;
    for (builder, name) in expired {
        tracing::warn!(%builder, name, "the node that held the builder's connection is silent: session closed");
    }
    Ok(())
}
