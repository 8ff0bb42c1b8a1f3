//! The outbox relay: publishes what transactions wrote there, in order, by one dispatcher at a time.
//!
//! An entry is deleted after the bus has all of its events. A crash between the two publishes them again, with the same
//! ids, which the stream drops. What has nothing to do with each other is published together, and when more waits than one
//! transaction takes, only the newest event of each subject is published: it says all that is true of its subject, and
//! the bus has to catch up.

mod waves;

use crate::{metrics, wakes::Wakes};
use cratemill_service::{
    bus::{Bus, Error},
    outage::{Outage, pause},
};
use cratemill_store::{
    PgConnection, PgPool,
    database::{Alone, try_lock},
    outbox,
    patience::in_time,
    queue,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use waves::Event;

/// Entries per transaction; one holds up to a thousand events.
const BATCH: i64 = 64;
/// Without any wake-up; also how soon another dispatcher takes over.
const POLL: Duration = Duration::from_secs(1);
/// Between two transactions, unless more waits already: what is said in that time is published together.
const REST: Duration = Duration::from_millis(10);
/// Before this one asks again whether another dispatcher is done.
const BUSY: Duration = Duration::from_millis(50);
/// The queue's length is told at most this often.
const QUEUE_INTERVAL: Duration = Duration::from_secs(1);
/// Counting a long queue takes long, and events wait: one part of the time in so many at most.
const QUEUE_SHARE: u32 = 20;
/// How long an event is tried while the lock and a connection are held.
const PATIENCE: Duration = Duration::from_secs(5);

/// A transaction that says nothing for half a minute is ended: no wave begins after this, and one takes twice [`PATIENCE`].
const LONGEST: Duration = Duration::from_secs(15);

pub async fn run(
    pool: PgPool,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut outage = Outage::new("the outbox relay");
    let mut length = QueueLength::default();
    while !shutdown.is_cancelled() {
        match in_time(relay(&pool, &bus, &mut length)).await {
            Ok(Relayed::Full) => drop(outage.over()),
            Ok(Relayed::Busy) => {
                outage.over();
                pause(BUSY, &shutdown).await;
            }
            Ok(Relayed::All) => {
                outage.over();
                if !pause(REST, &shutdown).await {
                    break;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relayed {
    /// As much as one transaction takes: there may be more.
    Full,
    All,
    /// Another dispatcher is at it, and may have looked before what woke this one was there.
    Busy,
}

/// Publishes one batch, if no other dispatcher is at it.
async fn relay(pool: &PgPool, bus: &Bus, length: &mut QueueLength) -> anyhow::Result<Relayed> {
    let started = Instant::now();
    let mut tx = pool.begin().await?;
    if !try_lock(&mut tx, Alone::Outbox).await? {
        return Ok(Relayed::Busy);
    }
    length.tell(&mut tx).await?;
    let entries = outbox::oldest(&mut tx, BATCH).await?;
    metrics::outbox_lag(entries.len());
    let is_full = i64::try_from(entries.len()).is_ok_and(|count| count >= BATCH);
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    let mut events = waves::events(entries);
    if is_full {
        events = waves::newest(events);
    }
    let left = publish_all(bus, &events, started + LONGEST).await?;
    let ids = waves::delivered(ids, left);
    if !ids.is_empty() {
        outbox::delete(&mut tx, &ids).await?;
    }
    tx.commit().await?;
    Ok(if is_full || !left.is_empty() { Relayed::Full } else { Relayed::All })
}

/// Returns those that there was no time for: what the bus has by then need not be said again.
async fn publish_all<'a>(bus: &Bus, events: &'a [Event], until: Instant) -> Result<&'a [Event], Error> {
    let mut left = events;
    for (n, wave) in waves::waves(events).into_iter().enumerate() {
        // One at least, or nothing would ever be done.
        if n > 0 && Instant::now() > until {
            tracing::warn!(left = left.len(), "the bus takes events slowly");
            break;
        }
        // One first: hundreds that are each tried again and again would say nothing more of a bus that is away.
        let (first, others) = wave.split_at(1);
        publish(bus, first).await?;
        publish(bus, others).await?;
        left = &left[wave.len()..];
    }
    Ok(left)
}

/// Returns once the bus has them all.
async fn publish(bus: &Bus, wave: &[Event]) -> Result<(), Error> {
    let stored =
        wave.iter().map(|event| bus.store(&event.subject, &event.id, event.payload.clone(), PATIENCE));
    for (event, stored) in wave.iter().zip(join_all(stored).await) {
        match stored {
            Ok(_) => {}
            // It must not hold up all that follow; whoever misses it finds the truth in the database.
            Err(Error::Refused(why)) => {
                tracing::error!(subject = event.subject, why, "the bus refuses an event: dropped");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What was last said about the queue, and when.
#[derive(Debug, Default)]
struct QueueLength {
    /// From when on it is told again, and what was told.
    told: Option<(Instant, (u64, u64))>,
}

impl QueueLength {
    /// Writes an event to the outbox if the queue's length changed.
    async fn tell(&mut self, conn: &mut PgConnection) -> Result<(), cratemill_store::Error> {
        let started = Instant::now();
        if self.told.is_some_and(|(next, _)| started < next) {
            return Ok(());
        }
        let now = queue::lengths(conn).await?;
        metrics::queue(now.0, now.1);
        if self.told.is_none_or(|(_, told)| told != now) {
            outbox::queue_changed(conn, now.0, now.1).await?;
        }
        self.told = Some((Instant::now() + QUEUE_INTERVAL.max(started.elapsed() * QUEUE_SHARE), now));
        Ok(())
    }
}
