//! Going on while something is away: waits that grow, and one line in the log when it goes and one when it is back.

use crate::backoff::Backoff;
use std::{fmt::Display, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A dependency that is back is noticed within this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

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

/// False when the process drains.
pub async fn pause(wait: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(wait) => !shutdown.is_cancelled(),
        () = shutdown.cancelled() => false,
    }
}
