//! Takes archived logs off the bus.
//!
//! A log goes when two sweeps in a row have found it archived: whoever was reading it from the bus had the time between to
//! finish. What is on the bus says what is left to do, so that no crash leaves anything behind.
//!
//! It goes message by message. A server of a cluster that restarts does again what it did since its last snapshot, and
//! nats-server 2.9 takes a purge of one subject for one of the whole stream then: logs that nobody had archived yet were
//! gone after a restart.

use anyhow::Context as _;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use cratemill_protocol::{Attempt, JobId, subjects};
use cratemill_service::{
    bus::Bus,
    outage::{Outage, pause},
    streams,
};
use cratemill_store::{PgPool, attempts};
use futures_util::{StreamExt, TryStreamExt};
use std::{collections::HashSet, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long a reader has, at least.
const INTERVAL: Duration = Duration::from_secs(30);

/// Logs that are taken off at once, each by one request after the other.
const CONCURRENCY: usize = 16;

type Archived = HashSet<(JobId, Attempt)>;

pub async fn run(pool: PgPool, bus: Bus, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(stream) = streams::wait_for(&bus, subjects::LOGS_STREAM, &shutdown).await else { return Ok(()) };
    let mut outage = Outage::new("taking archived logs off the bus");
    let mut before = Archived::new();
    let mut wait = INTERVAL;
    while pause(wait, &shutdown).await {
        wait = match round(&pool, &stream, &before).await {
            Ok(archived) => {
                outage.over();
                before = archived;
                INTERVAL
            }
            Err(error) => outage.failed(error),
        };
    }
    Ok(())
}

/// Takes off what was archived `before` and still is on the bus; returns what else is both.
pub async fn round(pool: &PgPool, stream: &Stream, before: &Archived) -> anyhow::Result<Archived> {
    let on_bus: Vec<(String, usize)> =
        stream.info_with_subjects(subjects::LOGS_ALL).await?.try_collect().await?;
    let on_bus: Vec<_> = on_bus.iter().filter_map(|(subject, _)| attempt_of(subject)).collect();
    let mut conn = pool.acquire().await?;
    let archived = attempts::archived_among(&mut conn, &on_bus).await?;
    drop(conn);
    let (known, fresh): (Archived, Archived) = archived.into_iter().partition(|log| before.contains(log));
    futures_util::stream::iter(known)
        .map(async |(job, attempt)| take_off(stream, job, attempt).await)
        .buffer_unordered(CONCURRENCY)
        .try_collect::<()>()
        .await?;
    Ok(fresh)
}

/// Deletes all messages of one log.
pub async fn take_off(stream: &Stream, job: JobId, attempt: Attempt) -> anyhow::Result<()> {
    let subject = subjects::log(job, attempt);
    let mut next = 1;
    loop {
        let sequence = match stream.get_first_raw_message_by_subject(&subject, next).await {
            Ok(message) => message.sequence,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(()),
            Err(error) => return Err(error).context("cannot read what is to go"),
        };
        // Another sweep may have been faster; whatever else is wrong, the next one sees it again.
        if let Err(error) = stream.delete_message(sequence).await {
            tracing::debug!(%job, %attempt, sequence, %error, "a message of an archived log stays for now");
        }
        next = sequence + 1;
    }
}

/// The attempt whose log a subject carries.
fn attempt_of(subject: &str) -> Option<(JobId, Attempt)> {
    let (job, attempt) = subject.strip_prefix("log.")?.split_once('.')?;
    Some((job.parse().ok()?, attempt.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_parse_back() {
        assert_eq!(attempt_of(&subjects::log(JobId(7), Attempt(2))), Some((JobId(7), Attempt(2))));
        for other in ["log.7", "log.x.1", "event.7.1", "log.7.1.2"] {
            assert_eq!(attempt_of(other), None);
        }
    }
}
