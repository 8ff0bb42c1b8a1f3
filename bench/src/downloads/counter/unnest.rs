//! A peer: each download is a message of its own on the bus; a consumer takes many, sums equal ones, writes the sums with
//! UNNEST in one transaction, and acknowledges each.
//!
//! Its messages have no id, which is cheaper for it: one that is sent twice counts twice.

use super::{
    events::Event,
    pace::{Bound, Pace},
    peer::{self, Progress},
};
use crate::downloads::cluster::Measured;
use anyhow::{Context, Result, anyhow};
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, PullConsumer, pull},
    stream::{RetentionPolicy, StorageType},
};
use bytes::Bytes;
use futures_util::StreamExt;
use sqlx::{Connection, PgConnection};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use time::Date;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The peer's own, beside those of the service.
const STREAM: &str = "PEER";
const SUBJECT: &str = "peer.download";
const PUBLISHERS: usize = 4;
/// Messages of a publisher that the bus has not acknowledged.
const WINDOW: usize = 2_048;
const MOST_WAITING: Bound = Bound::Messages(200_000);
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Handed out and not acknowledged: while one batch is written, the next ones arrive.
const BATCHES_PENDING: usize = 4;
/// For the next message, once no more are sent.
const QUIET: Duration = Duration::from_secs(2);

const UPSERT: &str = "
    INSERT INTO peer_daily (artifact_id, day, client, count)
    SELECT n.artifact, $2, n.client, n.count FROM unnest($1::bigint[], $3::text[], $4::bigint[]) AS n (artifact, client, count)
    ON CONFLICT (artifact_id, day, client) DO UPDATE SET count = peer_daily.count + excluded.count";

/// Events a second, with batches of so many.
pub(super) async fn measure(
    measured: &Measured,
    events: &Arc<Vec<Event>>,
    day: Date,
    batch: usize,
    time: Duration,
) -> Result<f64> {
    let (url, nats) = (measured.cluster.postgres.url(), &measured.cluster.nats);
    peer::table(&url).await?;
    let client = nats.client().await?;
    let consumer = consumer(&jetstream::new(client.clone()), batch).await?;
    let (pace, watcher) = Pace::start(client.clone(), STREAM, MOST_WAITING).await?;
    let (stop, progress, mut publishers) = (CancellationToken::new(), Progress::default(), JoinSet::new());
    for number in 0..PUBLISHERS {
        let jetstream =
            jetstream::ContextBuilder::new().ack_timeout(ACK_TIMEOUT).max_ack_inflight(2 * WINDOW);
        let jetstream = jetstream.build(nats.client().await?);
        let start = events.len() / PUBLISHERS * number;
        publishers.spawn(publish(jetstream, Arc::clone(events), start, pace.clone(), stop.clone()));
    }
    let conn = PgConnection::connect(&url).await?;
    let counting = tokio::spawn(count(consumer, conn, day, batch, progress.clone(), stop.clone()));
    let events_per_s = progress.watch(time).await;
    stop.cancel();
    let mut published = 0;
    while let Some(ended) = publishers.join_next().await {
        published += ended.context("a publisher broke")??;
    }
    counting.await??;
    drop(watcher);
    jetstream::new(client).delete_stream(STREAM).await?;
    peer::check(&url, published).await?;
    Ok(events_per_s)
}

async fn consumer(jetstream: &jetstream::Context, batch: usize) -> Result<PullConsumer> {
    let config = jetstream::stream::Config {
        name: STREAM.into(),
        subjects: vec![SUBJECT.into()],
        storage: StorageType::File,
        retention: RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    let stream = jetstream.create_stream(config).await?;
    let config = pull::Config {
        durable_name: Some("peer".into()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: i64::try_from(BATCHES_PENDING * batch)?,
        ..Default::default()
    };
    Ok(stream.create_consumer(config).await?)
}

async fn publish(
    jetstream: jetstream::Context,
    events: Arc<Vec<Event>>,
    start: usize,
    mut pace: Pace,
    stop: CancellationToken,
) -> Result<usize> {
    let (mut waiting, mut sent) = (VecDeque::new(), 0);
    while !stop.is_cancelled() {
        if sent % WINDOW == 0 {
            pace.room().await?;
        }
        let Event { artifact, class } = events[(start + sent) % events.len()];
        let payload = Bytes::from([&artifact.to_be_bytes(), class.as_bytes()].concat());
        waiting.push_back(jetstream.publish(SUBJECT, payload).await?);
        sent += 1;
        if waiting.len() >= WINDOW
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.await?;
        }
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(sent)
}

/// Until it is stopped and nothing comes any more.
async fn count(
    consumer: PullConsumer,
    mut conn: PgConnection,
    day: Date,
    batch: usize,
    progress: Progress,
    stop: CancellationToken,
) -> Result<()> {
    let stream = consumer.stream().max_messages_per_batch(2 * batch).messages().await?;
    let mut batches = std::pin::pin!(stream.ready_chunks(batch));
    loop {
        let messages = match tokio::time::timeout(QUIET, batches.next()).await {
            Ok(Some(messages)) => messages,
            Err(_) if stop.is_cancelled() => return Ok(()),
            Err(_) => continue,
            Ok(None) => return Err(anyhow!("the consumer ended")),
        };
        let mut sums: BTreeMap<(i64, &str), i64> = BTreeMap::new();
        let messages = messages.into_iter().collect::<Result<Vec<_>, _>>()?;
        for message in &messages {
            let (artifact, class) = message.payload.split_first_chunk().context("a short message")?;
            *sums.entry((i64::from_be_bytes(*artifact), std::str::from_utf8(class)?)).or_default() += 1;
        }
        let artifacts: Vec<i64> = sums.keys().map(|key| key.0).collect();
        let classes: Vec<&str> = sums.keys().map(|key| key.1).collect();
        let counts: Vec<i64> = sums.values().copied().collect();
        let upsert = sqlx::query(UPSERT).bind(artifacts).bind(day).bind(classes).bind(counts);
        upsert.execute(&mut conn).await?;
        progress.add(messages.len());
        for message in &messages {
            message.ack().await.map_err(|error| anyhow!(error))?;
        }
    }
}
