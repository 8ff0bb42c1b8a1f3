//! Builders' requests for jobs: recorded in the database, where any dispatcher can serve them.

use crate::{
    consume::{self, Handled, Work},
    wakes::Wakes,
};
use async_nats::jetstream::Message;
use cratemill_protocol::{
    bus::{self, BuildRequest},
    subjects,
};
use cratemill_service::bus::Bus;
use cratemill_store::{PgPool, sessions};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const WORK: Work = Work {
    stream: subjects::BUILD_STREAM,
    consumer: subjects::REQUESTS_CONSUMER,
    filter: subjects::BUILD_REQUESTS,
    ack_wait: Duration::from_secs(10),
    concurrency: 32,
};
/// A database that is away comes back within seconds, or a builder's wait does not matter.
const RETRY: Duration = Duration::from_secs(1);

pub async fn run(
    pool: PgPool,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    consume::run(bus, WORK, shutdown, async |message: Message| {
        let handled = record(&pool, &message.payload).await;
        if handled == Handled::Done {
            wakes.jobs.notify_one();
        }
        (message, handled)
    })
    .await
}

async fn record(pool: &PgPool, payload: &[u8]) -> Handled {
    let request: BuildRequest = match bus::decode(payload) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(%error, "a build request cannot be read: dropped");
            return Handled::Poison;
        }
    };
    let result = async {
        let mut conn = pool.acquire().await?;
        sessions::request(&mut conn, &request).await
    };
    match result.await {
        Ok(true) => Handled::Done,
        Ok(false) => {
            tracing::debug!(builder = %request.builder, "a request of a connection that is gone, or an old one");
            Handled::Done
        }
        Err(error) => {
            tracing::warn!(builder = %request.builder, %error, "cannot record a build request yet");
            Handled::Later(RETRY)
        }
    }
}
