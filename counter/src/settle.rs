//! What was taken from the bus: decoded, written in one transaction, acknowledged after its commit.

use crate::{metrics, refusals::Refusals, sane};
use async_nats::jetstream::{AckKind, Message};
use cratemill_protocol::bus::{self, DownloadBatch};
use cratemill_service::{backoff::Backoff, bus::Bus};
use cratemill_store::downloads::{Error, Group, Writer};
use futures_util::future::join_all;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::{sync::mpsc::Receiver, time::Instant};

/// What the database has refused is refused again, unless somebody mends it.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);
/// What a newer program sent is left for newer counters, which are on their way.
const FOR_NEWER: Duration = Duration::from_secs(10);
/// While the database is away: what was taken comes again in this time, to whoever asks.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Messages, and their counts together.
#[derive(Default)]
pub(crate) struct Taken {
    messages: Vec<Message>,
    pub(crate) group: Group,
}

impl Taken {
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Poison is terminated at once: it would come again for ever.
    pub(crate) async fn add(&mut self, message: Message) {
        match DownloadBatch::decode(&message.payload) {
            Ok(batch) if !sane::has_sender(&batch) => terminate(&message, "no node's name").await,
            Ok(mut batch) => {
                let stored = message.info().map_or_else(|_| OffsetDateTime::now_utc(), |info| info.published);
                metrics::mended(&sane::mend(&mut batch, stored));
                self.group.push(batch);
                self.messages.push(message);
            }
            Err(bus::Error::Version(version)) => {
                tracing::warn!(
                    version,
                    "a download batch is of a newer version: it is left for newer counters"
                );
                answer(&message, AckKind::Nak(Some(FOR_NEWER))).await;
            }
            Err(error) => terminate(&message, &error.to_string()).await,
        }
    }
}

/// Until nothing more comes.
pub(crate) async fn all(writer: Writer, bus: &Bus, mut taken: Receiver<Taken>) {
    let mut settle = Settle { writer, refusals: Refusals::default() };
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut failing = false;
    while let Some(next) = taken.recv().await {
        match settle.one(next).await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("counting again");
                    backoff.reset();
                }
                // Acknowledgements are on their way before anything else is begun, or the process ends.
                if let Err(error) = bus.client.flush().await {
                    tracing::debug!(%error, "what was counted comes again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %error, "cannot count now: downloads wait on the bus");
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

struct Settle {
    writer: Writer,
    refusals: Refusals,
}

impl Settle {
    /// An error means that what was not counted comes again.
    async fn one(&mut self, mut taken: Taken) -> Result<(), Error> {
        if taken.messages.is_empty() {
            return Ok(());
        }
        match apply(&mut self.writer, &mut taken.group).await {
            Ok(()) => {
                acknowledge(&taken.messages).await;
                Ok(())
            }
            // One bad message must not keep the others from being counted: each stands for itself.
            Err(error) if error.is_permanent() => self.one_by_one(taken).await,
            Err(error) => {
                hand_back(&taken.messages).await;
                Err(error)
            }
        }
    }

    async fn one_by_one(&mut self, taken: Taken) -> Result<(), Error> {
        for (position, (message, mut group)) in taken.messages.iter().zip(taken.group.split()).enumerate() {
            match apply(&mut self.writer, &mut group).await {
                Ok(()) => acknowledge(std::slice::from_ref(message)).await,
                Err(error) if error.is_permanent() => self.refused(message, &group, &error).await,
                Err(error) => {
                    hand_back(&taken.messages[position..]).await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn refused(&mut self, message: &Message, group: &Group, error: &Error) {
        let enough = group.batches().first().is_none_or(|batch| self.refusals.refused(batch));
        if enough {
            terminate(message, &error.to_string()).await;
        } else {
            tracing::warn!(subject = %message.subject, %error, "a download batch is refused: it is tried again");
            answer(message, AckKind::Nak(Some(REFUSED_AGAIN))).await;
        }
    }
}

async fn apply(writer: &mut Writer, group: &mut Group) -> Result<(), Error> {
    let (batches, rows, started) = (group.len(), group.rows(), Instant::now());
    let applied = writer.apply(group).await?;
    metrics::applied_in(started.elapsed().as_secs_f64());
    metrics::batches("applied", batches);
    metrics::counted(applied);
    tracing::debug!(batches, rows, counted = applied.counted, "counted");
    if applied.homeless > 0 {
        tracing::warn!(
            downloads = applied.homeless,
            "downloads of artifacts that do not exist count nowhere"
        );
    }
    Ok(())
}

/// Now rather than after the acknowledgement deadline.
async fn hand_back(messages: &[Message]) {
    join_all(messages.iter().map(|message| answer(message, AckKind::Nak(None)))).await;
}

/// One that is lost means that the message comes again, which changes nothing.
async fn acknowledge(messages: &[Message]) {
    join_all(messages.iter().map(|message| answer(message, AckKind::Ack))).await;
}

async fn terminate(message: &Message, why: &str) {
    tracing::error!(subject = %message.subject, why, "a download batch cannot be counted: dropped");
    metrics::batches("poison", 1);
    answer(message, AckKind::Term).await;
}

async fn answer(message: &Message, answer: AckKind) {
    if let Err(error) = message.ack_with(answer).await {
        tracing::debug!(%error, "a message comes again");
    }
}
