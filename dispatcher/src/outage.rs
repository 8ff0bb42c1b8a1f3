//! Going on while something is away: waits that grow, and one line in the log when it goes and one when it is back.

use cratemill_service::backoff::Backoff;
use futures_util::FutureExt;
use std::{fmt::Display, io, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A dependency that is back is noticed within this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The server gives a statement thirty seconds: an answer that has not come by then got lost with the connection.
const ROUND_TIMEOUT: Duration = Duration::from_secs(35);

#[derive(Debug)]
pub struct Outage {
    work: &'static str,
    backoff: Backoff,
    since: Option<Instant>,
}

impl Outage {
    pub fn new(work: &'static str) -> Self {
        Self { work, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT), since: None }
    }

    /// The work failed: how long to wait before the next try.
    pub fn failed(&mut self, error: impl Display) -> Duration {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!(work = self.work, error = format!("{error:#}"), "failed, going on trying");
        } else {
            tracing::debug!(work = self.work, error = format!("{error:#}"), "failed again");
        }
        self.backoff.next_wait()
    }

    /// The work went well; true if it had failed before.
    pub fn over(&mut self) -> bool {
        let Some(since) = self.since.take() else { return false };
        self.backoff.reset();
        tracing::info!(work = self.work, after_ms = since.elapsed().as_millis(), "works again");
        true
    }
}

/// Gives up a transaction that the database says nothing about: where a network swallows packets, nobody else tells. It may
/// have been committed all the same.
pub fn in_time<T, E>(transaction: impl Future<Output = Result<T, E>>) -> impl Future<Output = Result<T, E>>
where
    E: From<cratemill_store::Error>,
{
    within(ROUND_TIMEOUT, transaction)
}

fn within<T, E>(
    limit: Duration,
    transaction: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>>
where
    E: From<cratemill_store::Error>,
{
    timeout(limit, transaction).map(|answer| {
        answer.unwrap_or_else(|_| {
            let silent = io::Error::new(io::ErrorKind::TimedOut, "no answer from the database");
            Err(cratemill_store::Error::Io(silent).into())
        })
    })
}

/// False when the process drains.
pub async fn pause(wait: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(wait) => !shutdown.is_cancelled(),
        () = shutdown.cancelled() => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_says_nothing_is_away() {
        let silent = std::future::pending::<Result<(), cratemill_store::Error>>();
        let given_up = within(Duration::from_millis(1), silent).await;
        assert!(matches!(given_up, Err(cratemill_store::Error::Io(_))));
        assert_eq!(in_time(async { Ok::<_, cratemill_store::Error>(7) }).await.unwrap(), 7);
    }
}
