//! Logs of attempts that wrote nothing, many at a time: none of them needs an object of its own.

use super::{Archive, EMPTY, GZIP};
use crate::metrics;
use anyhow::Context as _;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use cratemill_protocol::{
    Attempt, JobId,
    bus::{self, LogBody, LogMessage},
    subjects,
};
use cratemill_store::{attempts, attempts::ToArchive};
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashSet;

/// Questions to the bus at once, each a few bytes.
const CONCURRENCY: usize = 32;

/// What the bus has of a log whose builder says that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnBus {
    Nothing,
    End,
    /// The builder is wrong: it is archived as any other.
    Events,
}

impl Archive {
    /// Archives those that are empty in fact; returns the others.
    pub(super) async fn silent(
        &self,
        stream: &Stream,
        said: Vec<ToArchive>,
    ) -> anyhow::Result<Vec<ToArchive>> {
        let seen: Vec<(ToArchive, OnBus)> = futures_util::stream::iter(said)
            .map(async |of| {
                let seen = on_bus(stream, of.job, of.attempt).await?;
                anyhow::Ok((of, seen))
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        let (talked, silent): (Vec<_>, Vec<_>) =
            seen.into_iter().partition(|(_, seen)| *seen == OnBus::Events);
        let talked = talked.into_iter().map(|(of, _)| of).collect();
        // Only after reading: until a row names an object, nobody takes a log off the bus.
        let silent = self.unarchived(silent).await?;
        if silent.is_empty() {
            return Ok(talked);
        }
        let unended: Vec<_> =
            silent.iter().filter(|(_, seen)| *seen == OnBus::Nothing).map(|(of, _)| of.clone()).collect();
        futures_util::stream::iter(unended)
            .map(async |of| self.publish_end(&of, 1).await)
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        self.empty_object().await?;
        let ids: Vec<_> = silent.iter().map(|(of, _)| (of.job, of.attempt)).collect();
        let mut conn = self.pool.acquire().await?;
        let named = attempts::archived_empty(&mut conn, &ids, EMPTY).await?;
        metrics::logs_archived(named);
        tracing::debug!(logs = named, "empty logs archived");
        Ok(talked)
    }

    /// Without those that another dispatcher has archived since they were listed.
    async fn unarchived(&self, all: Vec<(ToArchive, OnBus)>) -> anyhow::Result<Vec<(ToArchive, OnBus)>> {
        let ids: Vec<_> = all.iter().map(|(of, _)| (of.job, of.attempt)).collect();
        let mut conn = self.pool.acquire().await?;
        let archived: HashSet<_> = attempts::archived_among(&mut conn, &ids).await?.into_iter().collect();
        Ok(all.into_iter().filter(|(of, _)| !archived.contains(&(of.job, of.attempt))).collect())
    }

    /// Stores the object that all empty logs share, once.
    pub(super) async fn empty_object(&self) -> anyhow::Result<()> {
        let put = async || {
            let gzip = GzEncoder::new(Vec::new(), Compression::default()).finish()?;
            anyhow::Ok(self.objects.put(EMPTY, gzip.into(), GZIP).await?)
        };
        self.empty.get_or_try_init(put).await.map(drop)
    }
}

/// Asked of the stream's leader, as [`super::read`] does.
async fn on_bus(stream: &Stream, job: JobId, attempt: Attempt) -> anyhow::Result<OnBus> {
    let subject = subjects::log(job, attempt);
    let stored = match stream.get_first_raw_message_by_subject(&subject, 1).await {
        Ok(stored) => stored,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(OnBus::Nothing),
        Err(error) => return Err(error).context("cannot read the stream"),
    };
    // An end is the last of a log: where it is the first, there is nothing else.
    match bus::decode::<LogMessage>(&stored.payload) {
        Ok(LogMessage { body: LogBody::End { .. }, .. }) => Ok(OnBus::End),
        _ => Ok(OnBus::Events),
    }
}
