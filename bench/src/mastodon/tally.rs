//! What viewers got, and what that took of the node's processors.

use super::{farm::Farm, viewers::Viewers};
use crate::statistics::count;
use anyhow::Result;
use std::time::Duration;
use tokio::time::sleep;

/// Nothing comes any more.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// From a moment on.
pub(super) struct Tally {
    messages: u64,
    bytes: u64,
    cpu: Duration,
}

pub(super) struct Deliveries {
    pub(super) count: u64,
    pub(super) per_cpu_s: f64,
    /// Of each.
    pub(super) bytes: u64,
}

impl Tally {
    pub(super) fn begin(farm: &Farm, viewers: &Viewers) -> Result<Self> {
        Ok(Self { messages: viewers.messages()?, bytes: viewers.bytes(), cpu: farm.cpu()? })
    }

    pub(super) fn so_far(&self, viewers: &Viewers) -> Result<u64> {
        Ok(viewers.messages()? - self.messages)
    }

    /// Once nothing more comes.
    pub(super) async fn end(self, farm: &Farm, viewers: &Viewers) -> Result<Deliveries> {
        settle(viewers).await?;
        let count_of_all = self.so_far(viewers)?;
        let cpu = farm.cpu()?.saturating_sub(self.cpu);
        Ok(Deliveries {
            count: count_of_all,
            per_cpu_s: count(usize::try_from(count_of_all)?) / cpu.as_secs_f64(),
            bytes: (viewers.bytes() - self.bytes) / count_of_all.max(1),
        })
    }
}

/// Until nothing more comes.
pub(super) async fn settle(viewers: &Viewers) -> Result<()> {
    let mut last = viewers.messages()?;
    loop {
        sleep(QUIET).await;
        let now = viewers.messages()?;
        if now == last {
            return Ok(());
        }
        last = now;
    }
}
