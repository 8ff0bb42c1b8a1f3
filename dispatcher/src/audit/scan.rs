//! Reads a stream once, from its first message to the one that was its last when the reading began.

use anyhow::{Context as _, anyhow, bail};
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    stream::Stream,
};
use cratemill_service::bus::Bus;
use futures_util::StreamExt;
use std::time::Duration;
use time::OffsetDateTime;

/// Messages asked for at a time; the largest have 32 KiB of log.
const BATCH: usize = 256;
/// A server that has messages sends one within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// The consumer goes away by itself when an audit is killed.
const INACTIVE: Duration = Duration::from_secs(30);
/// Times in a row that the server says it has messages and sends none: they may be purged in between.
const MAX_EMPTY: u32 = 5;

/// One message, as it stands in its stream.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    pub(super) subject: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) published: OffsetDateTime,
}

/// Hands each message to `each`, in order and once. An error if one may have been left out.
pub(super) async fn scan(
    bus: &Bus,
    stream: &str,
    filter: &str,
    mut each: impl FnMut(Stored<'_>),
) -> anyhow::Result<()> {
    let stream = bus.jetstream.get_stream(stream).await.with_context(|| format!("no stream {stream}"))?;
    let last = stream.cached_info().state.last_sequence;
    let consumer = open(&stream, filter).await?;
    let read = read(&consumer, last, &mut each).await;
    // It would go away by itself.
    if let Err(error) = stream.delete_consumer(&consumer.cached_info().name).await {
        tracing::debug!(%error, "the consumer of an audit stays for a while");
    }
    read.with_context(|| format!("cannot read the stream {}", stream.cached_info().config.name))
}

async fn open(stream: &Stream, filter: &str) -> anyhow::Result<PullConsumer> {
    let config = pull::Config {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        inactive_threshold: INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..Default::default()
    };
    stream.create_consumer(config).await.context("cannot make a consumer")
}

async fn read(consumer: &PullConsumer, last: u64, each: &mut impl FnMut(Stored<'_>)) -> anyhow::Result<()> {
    let (mut deliveries, mut empty) = (0, 0);
    let mut pending = consumer.cached_info().num_pending;
    while pending > 0 {
        let mut batch = consumer.fetch().max_messages(BATCH).messages().await?;
        let before = deliveries;
        while let Some(message) =
            tokio::time::timeout(PATIENCE, batch.next()).await.context("the server went silent")?
        {
            let message = message.map_err(|error| anyhow!(error))?;
            let info = message.info().map_err(|error| anyhow!(error))?;
            deliveries += 1;
            // Nothing is acknowledged, so nothing would come again.
            if info.consumer_sequence != deliveries {
                bail!("a message got lost on its way here");
            }
            if info.stream_sequence > last {
                return Ok(());
            }
            pending = info.pending;
            each(stored(&message, info.published));
        }
        empty = if deliveries == before { empty + 1 } else { 0 };
        if empty > 0 {
            pending = consumer.get_info().await.context("no word about the consumer")?.num_pending;
        }
        if empty > MAX_EMPTY && pending > 0 {
            bail!("{pending} messages are pending and none comes");
        }
    }
    Ok(())
}

fn stored(message: &jetstream::Message, published: OffsetDateTime) -> Stored<'_> {
    Stored { subject: &message.subject, payload: &message.payload, published }
}
