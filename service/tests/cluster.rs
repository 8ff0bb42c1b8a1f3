//! The bus over three servers: copies, and what the death of a leader costs.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use cratemill_protocol::subjects;
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use futures_util::StreamExt;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Elections take up to ten seconds on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_mins(1);
const ACK_WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

async fn connect(nats: &Nats, user: &str) -> Bus {
    Bus::connect(&nats.url(user).unwrap().parse().unwrap(), user).await.unwrap()
}

async fn outcomes(bus: &Bus) -> PullConsumer {
    let (stream, name) = (subjects::BUILD_STREAM, subjects::OUTCOMES_CONSUMER);
    let shutdown = CancellationToken::new();
    let consumer = streams::shared_consumer(bus, stream, name, subjects::BUILD_OUTCOMES, ACK_WAIT, &shutdown);
    consumer.await.unwrap()
}

#[tokio::test]
async fn streams_grow_to_three_copies_and_outlive_their_leader() {
    let data_dir = DataDir::temporary().unwrap();
    let mut secrets = Secrets::open(data_dir.path()).unwrap();
    let mut nats = Nats::start_servers(&data_dir, &mut secrets, 3).await.unwrap();
    let (dispatcher, api) = (connect(&nats, "dispatcher").await, connect(&nats, "api").await);
    let shutdown = CancellationToken::new();
    streams::ensure(&dispatcher, 1, &shutdown).await.unwrap();
    outcomes(&dispatcher).await;
    let store = async |job: i64| {
        let subject = subjects::build_outcome("node");
        api.store(&subject, &job.to_string(), Bytes::from(job.to_string()), PATIENCE).await.unwrap()
    };
    store(1).await;

    streams::ensure(&dispatcher, 3, &shutdown).await.unwrap();
    nats.wait_for_replicas(PATIENCE).await.unwrap();
    let copied = async {
        while copies_of(&outcomes(&dispatcher).await).await != Some(2) {
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(PATIENCE, copied).await.expect("a consumer has the copies of its stream");

    let leader = nats.leader(subjects::BUILD_STREAM).await.unwrap();
    nats.servers[leader].kill9().await.unwrap();
    let stored = store(2).await;
    assert!(stored.sequence == 2 && store(2).await.duplicate, "the id is known to the new leader");
    let mut messages = BTreeSet::new();
    let emptied = async {
        // Who leads the consumer need not lead the stream, which hears of it a moment later.
        while messages.len() < 2 || !is_empty(&dispatcher).await {
            take(&outcomes(&dispatcher).await, &mut messages).await;
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(PATIENCE, emptied).await.expect("all is taken, and what is acknowledged is gone");
    assert!(messages.iter().eq(["1", "2"]), "{messages:?}");
}

/// None while nobody leads it.
async fn copies_of(consumer: &PullConsumer) -> Option<usize> {
    Some(consumer.get_info().await.ok()?.cluster?.replicas.len())
}

/// Takes and acknowledges what is there. One whose acknowledgement is lost comes again.
async fn take(consumer: &PullConsumer, taken: &mut BTreeSet<String>) {
    let Ok(mut batch) = consumer.fetch().max_messages(2).messages().await else { return };
    while let Some(Ok(message)) = batch.next().await {
        taken.insert(String::from_utf8(message.payload.to_vec()).unwrap());
        message.double_ack().await.ok();
    }
}

/// As far as anybody knows.
async fn is_empty(bus: &Bus) -> bool {
    let stream = bus.jetstream.get_stream(subjects::BUILD_STREAM).await;
    stream.is_ok_and(|stream| stream.cached_info().state.messages == 0)
}
