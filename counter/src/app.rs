//! Puts the counter together, and pulls.

use crate::{batch, config::Config};
use anyhow::{Context as _, anyhow};
use async_nats::jetstream::{Message, consumer::PullConsumer};
use cratemill_protocol::subjects;
use cratemill_service::{Context, backoff::Backoff, bus::Bus, http, streams};
use cratemill_store::{PgPool, connect, database};
use futures_util::TryStreamExt;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const NAME: &str = "cratemill-counter";
/// Messages per transaction: a transaction costs about the same for one as for all of them.
const MAX_MESSAGES: usize = 256;
/// How long an idle counter asks before it asks again, and so how long it may take to notice that it is to drain.
const PULL: Duration = Duration::from_secs(1);
/// Once something is there: how long to wait for more of it. A person does not notice, and a crowd shares a commit.
const GATHER: Duration = Duration::from_millis(20);
/// A batch is applied within milliseconds; one that was taken by a counter that died comes again after this.
const ACK_WAIT: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Runs until the process drains. Dependencies may be missing at any time: /readyz says which.
pub async fn run(config: Config, context: Context) -> anyhow::Result<()> {
    let pool = connect(&config.database.database_url, NAME);
    let bus = Bus::connect(&config.nats.nats_url, "counter").await?;
    let (db, nats) = (pool.clone(), bus.clone());
    context.health.require("postgres", move || {
        let pool = db.clone();
        async move { database::check(&pool).await }
    });
    context.health.require("nats", move || {
        let bus = nats.clone();
        async move { bus.check() }
    });
    let listener = http::bind(config.process.listen).await?;
    let shutdown = context.shutdown.clone();
    context.essential("the HTTP server", http::serve(listener, context.health.router(), shutdown.clone()));
    count(&pool, &bus, &shutdown).await;
    Ok(())
}

/// Takes and counts until the process drains; the batch in hand is finished first.
pub async fn count(pool: &PgPool, bus: &Bus, shutdown: &CancellationToken) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut failing = false;
    while !shutdown.is_cancelled() {
        let Some(consumer) = consumer(bus, shutdown).await else { return };
        let error = loop {
            if let Err(error) = turn(pool, &consumer, shutdown).await {
                break error;
            }
            if std::mem::take(&mut failing) {
                tracing::info!("counting again");
                backoff.reset();
            }
            if shutdown.is_cancelled() {
                return;
            }
        };
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(error = format!("{error:#}"), "cannot count now: downloads wait on the bus");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn consumer(bus: &Bus, shutdown: &CancellationToken) -> Option<PullConsumer> {
    let (stream, name) = (subjects::DOWNLOADS_STREAM, subjects::DOWNLOADS_CONSUMER);
    streams::shared_consumer(bus, stream, name, subjects::DOWNLOADS_ALL, ACK_WAIT, shutdown).await
}

/// One batch, if there is one.
async fn turn(pool: &PgPool, consumer: &PullConsumer, shutdown: &CancellationToken) -> anyhow::Result<()> {
    // Not cut short by a drain: the server may be sending what was asked for, and nobody would take it.
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(2 * PULL).await;
    };
    let first = tokio::select! {
        first = first(consumer) => first?,
        () = overdue => return Ok(()),
    };
    let Some(first) = first else { return Ok(()) };
    tokio::time::sleep(GATHER).await;
    let mut messages = vec![first];
    // Without those the first one still counts; they come again.
    match rest(consumer).await {
        Ok(rest) => messages.extend(rest),
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "no more than one message could be taken");
        }
    }
    batch::settle(pool, messages).await.context("the database failed")
}

/// Asks for one message only, so that a counter that drains leaves none behind in its buffer.
async fn first(consumer: &PullConsumer) -> anyhow::Result<Option<Message>> {
    let mut messages = consumer.batch().max_messages(1).expires(PULL).messages().await?;
    messages.try_next().await.map_err(|error| anyhow!(error))
}

/// What is there now.
async fn rest(consumer: &PullConsumer) -> anyhow::Result<Vec<Message>> {
    let messages = consumer.fetch().max_messages(MAX_MESSAGES - 1).messages().await?;
    messages.try_collect().await.map_err(|error| anyhow!(error))
}
