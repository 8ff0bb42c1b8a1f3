//! The JetStream streams and durable consumers. The dispatcher makes them; everybody else waits for them.

use crate::{backoff::Backoff, bus::Bus};
use async_nats::jetstream::{
    consumer::{AckPolicy, PullConsumer, pull},
    stream::{Config, DiscardPolicy, Republish, RetentionPolicy, StorageType, Stream},
};
use cratemill_protocol::subjects;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const MIB: i64 = 1 << 20;
/// How long a message id is remembered: longer than any publisher goes on trying.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);
/// How long events can be replayed.
const EVENTS_AGE: Duration = Duration::from_hours(24);
/// How long what people publish can be replayed.
const TOPICS_AGE: Duration = Duration::from_hours(24);
/// How long published events of the event API can be replayed.
const TIMELINE_AGE: Duration = Duration::from_hours(24);
/// And how much of one topic: a busy one does not push out what others have said.
pub const TOPIC_MESSAGES: u32 = 10_000;
/// Messages that a shared consumer hands out before the first is acknowledged.
const MAX_ACK_PENDING: i64 = 4_096;

/// Makes or updates every stream, until it works or the process drains.
pub async fn ensure(bus: &Bus, replicas: usize, shutdown: &CancellationToken) -> anyhow::Result<()> {
    ensure_some(bus, replicas, |_| true, shutdown).await
}

/// Only those with these names.
pub async fn ensure_some(
    bus: &Bus,
    replicas: usize,
    wanted: impl Fn(&str) -> bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    for config in configs(replicas).into_iter().filter(|config| wanted(&config.name)) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while let Err(error) = bus.jetstream.create_or_update_stream(config.clone()).await {
            tracing::warn!(stream = config.name, %error, "cannot make the stream yet");
            if !pause(&mut backoff, shutdown).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The consumer that all processes of a kind share, made if it is not there yet.
pub async fn shared_consumer(
    bus: &Bus,
    stream: &str,
    name: &str,
    filter: &str,
    ack_wait: Duration,
    shutdown: &CancellationToken,
) -> Option<PullConsumer> {
    let config = pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: filter.to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        max_ack_pending: MAX_ACK_PENDING,
        ..Default::default()
    };
    let stream = wait_for(bus, stream, shutdown).await?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match stream.get_or_create_consumer(name, config.clone()).await {
            Ok(consumer) => return Some(consumer),
            Err(error) => tracing::warn!(consumer = name, %error, "cannot make the consumer yet"),
        }
        if !pause(&mut backoff, shutdown).await {
            return None;
        }
    }
}

/// A stream that somebody else makes; `None` when the process drains first.
pub async fn wait_for(bus: &Bus, name: &str, shutdown: &CancellationToken) -> Option<Stream> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match bus.jetstream.get_stream(name).await {
            Ok(stream) => return Some(stream),
            Err(error) => tracing::info!(stream = name, %error, "waiting for the stream"),
        }
        if !pause(&mut backoff, shutdown).await {
            return None;
        }
    }
}

/// False when the process drains.
async fn pause(backoff: &mut Backoff, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(backoff.next_wait()) => true,
        () = shutdown.cancelled() => false,
    }
}

fn configs(replicas: usize) -> [Config; 7] {
    let stream = |name: &str, subject: &str, max_bytes: i64| Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        storage: StorageType::File,
        num_replicas: replicas,
        max_bytes,
        duplicate_window: DUPLICATE_WINDOW,
        // What was acknowledged is not thrown away for what is new: the publisher gets an error and waits.
        discard: DiscardPolicy::New,
        allow_direct: true,
        ..Default::default()
    };
    let republish = |subject: &str| {
        Some(Republish {
            source: subject.to_owned(),
            destination: format!("{}{subject}", subjects::LIVE_PREFIX),
            headers_only: false,
        })
    };
    [
        Config {
            retention: RetentionPolicy::WorkQueue,
            ..stream(subjects::BUILD_STREAM, subjects::BUILD_ALL, 512 * MIB)
        },
        Config {
            retention: RetentionPolicy::WorkQueue,
            ..stream(subjects::DOWNLOADS_STREAM, subjects::DOWNLOADS_ALL, 1_024 * MIB)
        },
        Config {
            republish: republish(subjects::LOGS_ALL),
            ..stream(subjects::LOGS_STREAM, subjects::LOGS_ALL, 4_096 * MIB)
        },
        Config {
            republish: republish(subjects::EVENTS_ALL),
            // Events are news, and Postgres has the truth: the oldest may go.
            discard: DiscardPolicy::Old,
            max_age: EVENTS_AGE,
            ..stream(subjects::EVENTS_STREAM, subjects::EVENTS_ALL, 512 * MIB)
        },
        Config {
            republish: republish(subjects::TOPICS_ALL),
            // A new message is worth more than an old one, and no publisher is held up.
            discard: DiscardPolicy::Old,
            max_age: TOPICS_AGE,
            max_messages_per_subject: i64::from(TOPIC_MESSAGES),
            ..stream(subjects::TOPICS_STREAM, subjects::TOPICS_ALL, 512 * MIB)
        },
        Config {
            republish: republish(subjects::TIMELINE_ALL),
            // Postgres has all of them, and whoever comes late gets the latest of each name.
            discard: DiscardPolicy::Old,
            max_age: TIMELINE_AGE,
            ..stream(subjects::TIMELINE_STREAM, subjects::TIMELINE_ALL, 512 * MIB)
        },
        Config {
            // Viewers are told that something is there, and fetch it.
            republish: republish(subjects::PUBSUB_ALL)
                .map(|republish| Republish { headers_only: true, ..republish }),
            // A log is kept: when there is no room publishers are told so.
            ..stream(subjects::PUBSUB_STREAM, subjects::PUBSUB_ALL, 1_024 * MIB)
        },
    ]
}
