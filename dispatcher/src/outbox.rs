//! The outbox relay: publishes what transactions wrote there, in order, by one dispatcher at a time.
//!
//! An entry is deleted after the bus has it. A crash between the two publishes it again, with the same id, which the
//! stream drops.

use crate::{
    metrics,
    outage::{Outage, pause},
    wakes::Wakes,
};
use cratemill_service::bus::{Bus, Error};
use cratemill_store::{
    PgConnection, PgPool,
    database::{Alone, try_lock},
    outbox::{self, Entry},
    queue,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Entries per transaction.
const BATCH: i64 = 256;
/// Without any wake-up; also how soon another dispatcher takes over.
const POLL: Duration = Duration::from_secs(1);
/// The queue's length is told at most this often.
const QUEUE_INTERVAL: Duration = Duration::from_secs(1);
/// How long one entry is tried while the lock and a connection are held.
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn run(
    pool: PgPool,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut outage = Outage::new("the outbox relay");
    let mut length = QueueLength::default();
    while !shutdown.is_cancelled() {
        match relay(&pool, &bus, &mut length).await {
            Ok(more) => {
                outage.over();
                if more {
                    continue;
                }
                tokio::select! {
                    () = wakes.outbox.notified() => {}
                    () = tokio::time::sleep(POLL) => {}
                    () = shutdown.cancelled() => {}
                }
            }
            Err(error) => {
                // What it said may have been rolled back: say it again.
                length = QueueLength::default();
                pause(outage.failed(error), &shutdown).await;
            }
        }
    }
    Ok(())
}

/// Publishes one batch, if no other dispatcher is at it; true if there may be more.
async fn relay(pool: &PgPool, bus: &Bus, length: &mut QueueLength) -> anyhow::Result<bool> {
    let mut tx = pool.begin().await?;
    if !try_lock(&mut tx, Alone::Outbox).await? {
        return Ok(false);
    }
    length.tell(&mut tx).await?;
    let entries = outbox::oldest(&mut tx, BATCH).await?;
    metrics::outbox_lag(entries.len());
    let mut published = Vec::with_capacity(entries.len());
    let mut failure = None;
    for entry in &entries {
        if let Err(error) = publish(bus, entry).await {
            failure = Some(error);
            break;
        }
        published.push(entry.id);
    }
    outbox::delete(&mut tx, &published).await?;
    tx.commit().await?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(i64::try_from(entries.len()).is_ok_and(|count| count >= BATCH)),
    }
}

async fn publish(bus: &Bus, entry: &Entry) -> Result<(), Error> {
    for (n, (subject, payload)) in entry.subjects.iter().zip(&entry.payloads).enumerate() {
        match bus.store(subject, &format!("o{}.{n}", entry.id), payload.clone().into(), PATIENCE).await {
            Ok(_) => {}
            // It must not hold up all that follow; whoever misses it finds the truth in the database.
            Err(Error::Refused(why)) => {
                tracing::error!(subject, why, "the bus refuses an event: dropped");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What was last said about the queue, and when.
#[derive(Debug, Default)]
struct QueueLength {
    told: Option<(Instant, (u64, u64))>,
}

impl QueueLength {
    /// Writes an event to the outbox if the queue's length changed.
    async fn tell(&mut self, conn: &mut PgConnection) -> Result<(), cratemill_store::Error> {
        if self.told.is_some_and(|(at, _)| at.elapsed() < QUEUE_INTERVAL) {
            return Ok(());
        }
        let now = queue::lengths(conn).await?;
        metrics::queue(now.0, now.1);
        if self.told.is_none_or(|(_, told)| told != now) {
            outbox::queue_changed(conn, now.0, now.1).await?;
        }
        self.told = Some((Instant::now(), now));
        Ok(())
    }
}
