//! Puts the counter together: one task takes and adds up, the other writes, so that neither waits for the other.

use crate::{config::Config, gather::Gather, leftovers, settle};
use cratemill_protocol::subjects;
use cratemill_service::{Context, backoff::Backoff, bus::Bus, http, streams};
use cratemill_store::{
    bulk::{self, Pool},
    downloads::Writer,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const NAME: &str = "cratemill-counter";
/// A group is written within a second or two; one that was taken by a counter that died comes again after this.
const ACK_WAIT: Duration = Duration::from_secs(15);
/// The group that is being written has another one behind it, which grows meanwhile.
const WAITING_GROUPS: usize = 1;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Runs until the process drains. Dependencies may be missing at any time: /readyz says which.
pub async fn run(config: Config, context: Context) -> anyhow::Result<()> {
    let pool = bulk::connect(&config.database.database_url, NAME)?;
    let bus = Bus::connect(&config.nats.nats_url, "counter").await?;
    let (db, nats) = (pool.clone(), bus.clone());
    context.health.require("postgres", move || {
        let pool = db.clone();
        async move { bulk::check(&pool).await }
    });
    context.health.require("nats", move || {
        let bus = nats.clone();
        async move { bus.check() }
    });
    let listener = http::bind(config.process.listen)?;
    let shutdown = context.shutdown.clone();
    context.essential("the HTTP server", http::serve(listener, context.health.router(), shutdown.clone()));
    count(pool, &bus, &shutdown).await;
    Ok(())
}

/// Takes and counts until the process drains; what was taken is finished first.
pub async fn count(pool: Pool, bus: &Bus, shutdown: &CancellationToken) {
    let (groups, taken) = mpsc::channel(WAITING_GROUPS);
    let settle = Box::pin(settle::all(Writer::new(pool.clone()), bus, taken));
    let leftovers = Box::pin(leftovers::run(Writer::new(pool), bus, shutdown));
    tokio::join!(take(bus, groups, shutdown), settle, leftovers);
}

/// Ends when the process drains, and with it the channel.
async fn take(bus: &Bus, groups: mpsc::Sender<settle::Taken>, shutdown: &CancellationToken) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut failing = false;
    while !shutdown.is_cancelled() {
        let (stream, name) = (subjects::DOWNLOADS_STREAM, subjects::DOWNLOADS_CONSUMER);
        let consumer =
            streams::shared_consumer(bus, stream, name, subjects::DOWNLOADS_ALL, ACK_WAIT, shutdown).await;
        let Some(consumer) = consumer else { return };
        let mut gather = Gather::new(consumer, shutdown);
        let error = loop {
            match gather.next(&groups).await {
                Ok(true) if std::mem::take(&mut failing) => {
                    tracing::info!("taking downloads again");
                    backoff.reset();
                }
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => break error,
            }
        };
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(error = format!("{error:#}"), "cannot take downloads now: they wait on the bus");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => {}
        }
    }
}
