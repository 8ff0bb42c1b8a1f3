//! What the bus keeps though it was acknowledged.
//!
//! A nats-server 2.9 that is killed forgets removals that were not on its disk yet: messages stand in the stream below what
//! the consumer has behind it, are handed out to nobody, and take the stream's room for ever. They are counted like any
//! other, which changes nothing if they were counted, since batches have numbers, and loses nothing if the server is wrong
//! about what it handed out; then they are removed.

use crate::sane;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use cratemill_protocol::{
    bus::{self, DownloadBatch},
    subjects,
};
use cratemill_service::bus::Bus;
use cratemill_store::downloads::{Group, Writer};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// They do no harm but take room.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What was stored after that may just be on its way out.
const SETTLED: Duration = Duration::from_secs(5);
/// Messages of a transaction.
const AT_ONCE: usize = 256;

/// Until the process drains.
pub(crate) async fn run(mut writer: Writer, bus: &Bus, shutdown: &CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        let sweep = async {
            match sweep(&mut writer, bus).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed what the bus kept though it was counted"),
                // Whatever is away, whoever counts says so.
                Err(error) => tracing::debug!(error = format!("{error:#}"), "cannot look for leftovers now"),
            }
        };
        tokio::select! {
            () = sweep => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn sweep(writer: &mut Writer, bus: &Bus) -> anyhow::Result<usize> {
    let stream = bus.jetstream.get_stream(subjects::DOWNLOADS_STREAM).await?;
    let consumer = stream.consumer_info(subjects::DOWNLOADS_CONSUMER).await?;
    let floor = consumer.ack_floor.stream_sequence;
    let (mut next, mut removed) = (stream.cached_info().state.first_sequence, 0);
    loop {
        let mut left = Left::read(&stream, &mut next, floor).await?;
        if left.len() == 0 {
            return Ok(removed);
        }
        match writer.apply(&mut left.group).await {
            Ok(_) => removed += remove(&stream, left.sequences).await,
            // One bad message must not keep the others here: each stands for itself.
            Err(error) if error.is_permanent() => {
                removed += one_by_one(writer, &stream, left.group, left.sequences).await?;
            }
            Err(error) => return Err(error.into()),
        }
        removed += remove(&stream, left.poison).await;
    }
}

async fn one_by_one(
    writer: &mut Writer,
    stream: &Stream,
    group: Group,
    sequences: Vec<u64>,
) -> anyhow::Result<usize> {
    let mut removed = 0;
    for (mut alone, sequence) in group.split().into_iter().zip(sequences) {
        match writer.apply(&mut alone).await {
            Ok(_) => removed += remove(stream, vec![sequence]).await,
            Err(error) if error.is_permanent() => {
                tracing::warn!(sequence, %error, "a download batch that the bus kept is refused: it stays there");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(removed)
}

/// How many are gone by this: another counter may have removed some.
async fn remove(stream: &Stream, sequences: Vec<u64>) -> usize {
    let mut removed = 0;
    for sequence in sequences {
        removed += usize::from(stream.delete_message(sequence).await.is_ok());
    }
    removed
}

/// Some messages that the bus kept.
#[derive(Default)]
struct Left {
    group: Group,
    /// Where each batch of the group stands.
    sequences: Vec<u64>,
    /// What is no batch.
    poison: Vec<u64>,
}

impl Left {
    /// From `next` on, none of them beyond `floor`.
    async fn read(stream: &Stream, next: &mut u64, floor: u64) -> anyhow::Result<Self> {
        let mut left = Self::default();
        let before = OffsetDateTime::now_utc() - SETTLED;
        while left.len() < AT_ONCE && *next <= floor {
            let found = stream.get_first_raw_message_by_subject(subjects::DOWNLOADS_ALL, *next).await;
            let message = match found {
                Ok(message) if message.sequence <= floor && message.time < before => message,
                Ok(_) => break,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(error.into()),
            };
            *next = message.sequence + 1;
            match DownloadBatch::decode(&message.payload) {
                Ok(mut batch) if sane::has_sender(&batch) => {
                    sane::mend(&mut batch, message.time);
                    left.group.push(batch);
                    left.sequences.push(message.sequence);
                }
                // For a newer counter, which looks too.
                Err(bus::Error::Version(_)) => {}
                Ok(_) | Err(_) => left.poison.push(message.sequence),
            }
        }
        Ok(left)
    }

    fn len(&self) -> usize {
        self.sequences.len() + self.poison.len()
    }
}
