//! Outcomes: how attempts ended, as builders said it, made durable.
//!
//! An outcome is handled in one transaction and acknowledged after its commit; a repeated or late one finds that the
//! attempt no longer has the job, and changes nothing. What a success claims is checked ([`verify`]), and what follows
//! from it is queued ([`follow_up`]) in the same transaction.

mod apply;
pub mod follow_up;
pub mod verify;

pub use apply::{Applied, apply};

use crate::{
    consume::{self, Handled, Work, deliveries},
    metrics,
    wakes::Wakes,
};
use async_nats::jetstream::Message;
use cratemill_protocol::{
    bus::{self, OutcomeMessage},
    subjects,
};
use cratemill_service::bus::Bus;
use cratemill_store::{PgPool, database, objects::Objects, queue};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const WORK: Work = Work {
    stream: subjects::BUILD_STREAM,
    consumer: subjects::OUTCOMES_CONSUMER,
    filter: subjects::BUILD_OUTCOMES,
    // Shorter than a lease: what a dispatcher had in hand when it was killed is handled before the rescue takes the job.
    // Where the object store is slower, the outcome is handled twice, and the second time changes nothing.
    ack_wait: Duration::from_secs(20),
    concurrency: 8,
};
/// Something is away: it is back within seconds, or minutes in which the outcome waits on the bus.
const RETRY: Duration = Duration::from_secs(2);
/// While an outcome waits for the object store, its attempt keeps the job this long at a time.
const HELD_S: i32 = 60;
/// The database refuses the data each time: after so many times it will not change its mind.
const MAX_REFUSED: i64 = 5;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database failed: {0}")]
    Database(#[from] cratemill_store::Error),
    #[error("the object store failed: {0}")]
    Objects(cratemill_store::objects::Error),
}

pub async fn run(
    pool: PgPool,
    objects: Objects,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    consume::run(bus, WORK, shutdown, async |message: Message| {
        let handled = handle(&pool, &objects, &message.payload, deliveries(&message)).await;
        wakes.ended.notify_one();
        (message, handled)
    })
    .await
}

/// Handles one message that the bus has handed out `deliveries` times.
pub async fn handle(pool: &PgPool, objects: &Objects, payload: &[u8], deliveries: i64) -> Handled {
    let message: OutcomeMessage = match bus::decode(payload) {
        Ok(message) => message,
        Err(error) => {
            tracing::error!(%error, "an outcome cannot be read: dropped, its lease will run out");
            metrics::outcome("poison");
            return Handled::Poison;
        }
    };
    let (job, attempt) = (message.job, message.attempt);
    match apply(pool, objects, &message).await {
        Ok(Applied::Ended { state, result }) => {
            tracing::info!(%job, %attempt, result, %state, "an attempt ended");
            metrics::outcome(result);
            Handled::Done
        }
        Ok(Applied::Stale) => {
            tracing::info!(%job, %attempt, "a late or repeated outcome changes nothing");
            metrics::outcome("stale");
            Handled::Done
        }
        Err(Error::Database(error)) if database::is_permanent(&error) && deliveries >= MAX_REFUSED => {
            tracing::error!(%job, %attempt, %error, "the database refuses an outcome: dropped, its lease will run out");
            metrics::outcome("poison");
            Handled::Poison
        }
        Err(error) => {
            tracing::warn!(%job, %attempt, %error, "an outcome waits");
            if let Err(error) = keep(pool, &message).await {
                tracing::debug!(%job, %attempt, %error, "its lease could not be renewed");
            }
            Handled::Later(RETRY)
        }
    }
}

/// The builder has done its part: its work must not be thrown away because something of ours is away.
async fn keep(pool: &PgPool, message: &OutcomeMessage) -> Result<(), cratemill_store::Error> {
    let mut conn = pool.acquire().await?;
    queue::renew(&mut conn, message.builder, &[(message.job, message.attempt)], HELD_S).await?;
    Ok(())
}
