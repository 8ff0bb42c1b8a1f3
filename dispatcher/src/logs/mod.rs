//! Logs of ended attempts: from the bus into the object store, and off the bus.
//!
//! ```text
//! attempt ends -> all events are there (or overdue) -> End is published -> gzip is stored -> the row says where
//!                                                                        -> a sweep later: its messages are deleted
//! ```
//! Each step may be repeated: a crash between any two changes nothing, but that it may leave an object that no row names.
//! Dispatchers may archive the same log at once: each stores an object of its own, and the row names the first.

pub mod assemble;
mod read;
mod silent;
pub mod sweep;

use crate::{metrics, wakes::Wakes};
use anyhow::Context as _;
use async_nats::jetstream::stream::Stream;
use cratemill_protocol::{
    bus::{self, LogBody, LogMessage},
    subjects,
};
use cratemill_service::{
    bus::{Bus, Error},
    clock,
    outage::{Outage, pause},
    streams,
};
use cratemill_store::{PgPool, attempts, attempts::ToArchive, objects::Objects};
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Without any wake-up; also how often an incomplete log is looked at again.
const POLL: Duration = Duration::from_secs(1);
/// Many logs are empty, and cheap; the others are as many at once as [`CONCURRENCY`] says.
const BATCH: i64 = 256;
/// Each holds one compressed log in memory.
const CONCURRENCY: usize = 4;
/// Events that are not there by then were lost with their node.
const OVERDUE_S: f64 = 10.0;
const PATIENCE: Duration = Duration::from_secs(5);
const GZIP: &str = "application/gzip";
/// The object of all logs without text.
const EMPTY: &str = "logs/empty.log.gz";
/// Between two rounds: logs of many attempts that end together are looked for together.
const REST: Duration = Duration::from_millis(100);
/// What a builder adds of its own: the lines that say what it does, some hundred bytes each.
const NOTES_BYTES: u64 = 1 << 20;
/// A byte that is no text becomes a replacement character, which is this long.
const TEXT_PER_BYTE: u64 = 3;

/// What archiving needs.
#[derive(Debug, Clone)]
pub struct Archive {
    pub pool: PgPool,
    pub bus: Bus,
    pub objects: Objects,
    /// The most output that a job may write.
    pub log_bytes: u64,
    /// Whether this process has stored [`EMPTY`].
    pub empty: Arc<OnceCell<()>>,
}

/// The longest text that a job's output becomes on the bus.
fn longest_text(log_bytes: u64) -> u64 {
    log_bytes.saturating_mul(TEXT_PER_BYTE).saturating_add(NOTES_BYTES)
}

pub async fn run(archive: Archive, wakes: Arc<Wakes>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(stream) = streams::wait_for(&archive.bus, subjects::LOGS_STREAM, &shutdown).await else {
        return Ok(());
    };
    let mut outage = Outage::new("archiving logs");
    while !shutdown.is_cancelled() {
        match archive.round(&stream).await {
            Ok(Round::Full) => drop(outage.over()),
            Ok(Round::All) => {
                outage.over();
                if !pause(REST, &shutdown).await {
                    break;
                }
                tokio::select! {
                    () = wakes.ended.notified() => {}
                    () = tokio::time::sleep(POLL) => {}
                    () = shutdown.cancelled() => {}
                }
            }
            Err(error) => {
                pause(outage.failed(error), &shutdown).await;
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// As many as one round takes, some of which are done: there may be more.
    Full,
    All,
}

impl Archive {
    /// Tries each attempt; one that fails does not keep the others waiting.
    async fn round(&self, stream: &Stream) -> anyhow::Result<Round> {
        let mut conn = self.pool.acquire().await?;
        let attempts = attempts::to_archive(&mut conn, BATCH).await?;
        drop(conn);
        let is_full = i64::try_from(attempts.len()).is_ok_and(|count| count >= BATCH);
        let (silent, talked): (Vec<_>, Vec<_>) = attempts.into_iter().partition(|of| of.last_seq == Some(0));
        let said = silent.len();
        let (left, mut failure) = match self.silent(stream, silent).await {
            Ok(left) => (left, None),
            Err(error) => (Vec::new(), Some(error.context("logs of attempts that wrote nothing"))),
        };
        let done = said - left.len();
        let results: Vec<anyhow::Result<()>> = futures_util::stream::iter(talked.into_iter().chain(left))
            .map(async |attempt| {
                let (job, number) = (attempt.job, attempt.attempt);
                self.archive(stream, &attempt).await.with_context(|| format!("the log of {job}.{number}"))
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        failure = failure.or(results.into_iter().find_map(Result::err));
        match failure {
            Some(error) => Err(error),
            None if is_full && done > 0 => Ok(Round::Full),
            None => Ok(Round::All),
        }
    }

    /// Archives one log, unless parts of it are still on their way.
    pub async fn archive(&self, stream: &Stream, attempt: &ToArchive) -> anyhow::Result<()> {
        let (job, number) = (attempt.job, attempt.attempt);
        let log = read::read(stream, job, number, longest_text(self.log_bytes)).await?;
        // Only after reading: until a row names an object, nobody takes the log off the bus.
        if self.is_archived(attempt).await? {
            return Ok(());
        }
        let last_seq = attempt.last_seq.map_or(0, i64::unsigned_abs);
        let missing = log.missing(last_seq);
        if missing > 0 {
            if attempt.ended_ago_s < OVERDUE_S {
                return Ok(());
            }
            tracing::warn!(%job, attempt = %number, last_seq, missing, "events of a log are missing: archived without them");
        }
        if !log.ended {
            self.publish_end(attempt, log.last_seq.max(last_seq) + 1).await?;
        }
        self.store(attempt, log, missing).await
    }

    /// Another dispatcher has archived it since it was listed.
    async fn is_archived(&self, attempt: &ToArchive) -> anyhow::Result<bool> {
        let mut conn = self.pool.acquire().await?;
        let log = attempts::log(&mut conn, attempt.job, Some(attempt.attempt)).await?;
        Ok(log.is_none_or(|log| log.log_object.is_some()))
    }

    async fn store(&self, attempt: &ToArchive, log: assemble::Log, missing: u64) -> anyhow::Result<()> {
        let (job, number) = (attempt.job, attempt.attempt);
        let (bytes, missing) = (i64::try_from(log.bytes)?, i64::try_from(missing)?);
        let object = if bytes == 0 {
            self.empty_object().await?;
            EMPTY.to_owned()
        } else {
            let object = format!("logs/{job}/{number}-{}.log.gz", Uuid::new_v4().simple());
            self.objects.put(&object, log.gzip.into(), GZIP).await?;
            object
        };
        let mut conn = self.pool.acquire().await?;
        if !attempts::archived(&mut conn, job, number, &object, bytes, missing).await? {
            drop(conn);
            tracing::debug!(%job, attempt = %number, "another dispatcher was faster");
            if bytes > 0 {
                self.objects.delete(&object).await?;
            }
            return Ok(());
        }
        metrics::logs_archived(1);
        tracing::debug!(%job, attempt = %number, bytes, "log archived");
        Ok(())
    }

    /// Tells viewers that nothing follows.
    async fn publish_end(&self, attempt: &ToArchive, seq: u64) -> anyhow::Result<()> {
        let (job, number) = (attempt.job, attempt.attempt);
        let body = LogBody::End { state: attempt.state };
        let message = LogMessage { job, attempt: number, seq, at_ms: clock::now_ms(), body };
        let (subject, id) = (subjects::log(job, number), format!("end-{job}-{number}"));
        match self.bus.store(&subject, &id, bus::encode(&message).into(), PATIENCE).await {
            Ok(_) => Ok(()),
            // The stream is full, and archiving is what empties it: viewers do without, the database says the same.
            Err(Error::Refused(why)) => {
                tracing::error!(%job, attempt = %number, why, "the bus refuses the end of a log");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
