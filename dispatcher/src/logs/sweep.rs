//! Takes archived logs off the bus.
//!
//! A subject is purged when two sweeps in a row have found it archived: whoever was reading it from the bus had the
//! time between to finish. What is on the bus says what is left to do, so that no crash leaves anything behind.

use crate::outage::{Outage, pause};
use async_nats::jetstream::stream::Stream;
use cratemill_protocol::{Attempt, JobId, subjects};
use cratemill_service::{bus::Bus, streams};
use cratemill_store::{PgPool, attempts};
use futures_util::TryStreamExt;
use std::{collections::HashSet, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long a reader has, at least.
const INTERVAL: Duration = Duration::from_secs(30);

type Archived = HashSet<(JobId, Attempt)>;

pub async fn run(pool: PgPool, bus: Bus, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(stream) = streams::wait_for(&bus, subjects::LOGS_STREAM, &shutdown).await else { return Ok(()) };
    let mut outage = Outage::new("purging archived logs");
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

/// Purges what was archived `before` and still is on the bus; returns what else is both.
pub async fn round(pool: &PgPool, stream: &Stream, before: &Archived) -> anyhow::Result<Archived> {
    let on_bus: Vec<(String, usize)> =
        stream.info_with_subjects(subjects::LOGS_ALL).await?.try_collect().await?;
    let on_bus: Vec<_> = on_bus.iter().filter_map(|(subject, _)| attempt_of(subject)).collect();
    let mut conn = pool.acquire().await?;
    let archived = attempts::archived_among(&mut conn, &on_bus).await?;
    drop(conn);
    let mut fresh = Archived::new();
    for (job, attempt) in archived {
        if before.contains(&(job, attempt)) {
            stream.purge().filter(subjects::log(job, attempt)).await?;
        } else {
            fresh.insert((job, attempt));
        }
    }
    Ok(fresh)
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
