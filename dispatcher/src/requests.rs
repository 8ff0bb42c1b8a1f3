//! Builders' requests for jobs: recorded in the database, where any dispatcher can serve them.
//!
//! Those of all messages that are at hand are recorded in one statement.

use crate::{
    consume::{self, Handled, Work},
    wakes::Wakes,
};
use async_nats::jetstream::Message;
use cratemill_protocol::{
    bus::{self, BuildRequest, RequestBatch},
    subjects,
};
use cratemill_service::{
    bus::Bus,
    group::{Rounds, group},
};
use cratemill_store::{PgPool, patience::in_time, sessions};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const WORK: Work = Work {
    stream: subjects::BUILD_STREAM,
    consumer: subjects::REQUESTS_CONSUMER,
    filter: subjects::BUILD_REQUESTS,
    ack_wait: Duration::from_secs(10),
    concurrency: 32,
};
/// Messages whose requests are recorded together; one of a node holds those of many builders.
const MAX_MESSAGES: usize = 32;
/// A database that is away comes back within seconds, or a builder's wait does not matter.
const RETRY: Duration = Duration::from_secs(1);

pub async fn run(
    pool: PgPool,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (recorded, rounds) = group::<RequestBatch, bool>(MAX_MESSAGES);
    let work = consume::run(bus, WORK, shutdown, async |message: Message| {
        let handled = match bus::decode(&message.payload) {
            // Nobody records any more: another dispatcher does.
            Ok(batch) => match recorded.submit(batch).await {
                Ok(true) => Handled::Done,
                Ok(false) | Err(_) => Handled::Later(RETRY),
            },
            Err(error) => {
                tracing::error!(%error, "build requests cannot be read: dropped");
                Handled::Poison
            }
        };
        (message, handled)
    });
    tokio::select! {
        result = work => result,
        () = record(pool, wakes, rounds) => Ok(()),
    }
}

/// Tells of each batch whether it is recorded.
async fn record(pool: PgPool, wakes: Arc<Wakes>, mut rounds: Rounds<RequestBatch, bool>) {
    while let Some((batches, answers)) = rounds.next(MAX_MESSAGES).await {
        let count = batches.len();
        let requests: Vec<_> = batches.into_iter().flat_map(|batch| batch.requests).collect();
        let recorded = match in_time(record_all(&pool, &requests)).await {
            Ok(changed) => {
                tracing::trace!(requests = requests.len(), changed, "requests recorded");
                wakes.builders_ask(requests.iter().flat_map(|of| &of.targets).map(|target| &**target));
                true
            }
            Err(error) => {
                tracing::warn!(requests = requests.len(), %error, "cannot record build requests yet");
                false
            }
        };
        answers.send(vec![recorded; count]);
    }
}

async fn record_all(pool: &PgPool, requests: &[BuildRequest]) -> Result<u64, cratemill_store::Error> {
    let mut tx = pool.begin().await?;
    let changed = sessions::requests(&mut tx, requests).await?;
    tx.commit().await?;
    Ok(changed)
}
