//! What is due at a moment: jobs with a `run_at`, and events of the event API with a timestamp.
//!
//! ```text
//! [leader]: one process of all, by a lock of the database; the others wait for it
//!    +-> [jobs]    due -> their lines, from which dispatchers assign
//!    +-> [events]  due -> claimed -> TIMELINE, in order -> confirmed
//! ```
//! Nothing is looked for at intervals: the leader knows when the next thing falls due, sleeps until then, and is woken
//! when something is due earlier. It looks again from time to time all the same, since such a hint may get lost.

mod alarm;
mod events;
mod jobs;
mod leader;
mod metrics;
mod timeline;

use cratemill_service::bus::Bus;
use cratemill_store::PgPool;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a process that may schedule has.
#[derive(Debug, Clone)]
pub struct Scheduler {
    pub pool: PgPool,
    pub bus: Bus,
    /// Says that jobs were queued. None where there are none: a gateway that stands alone.
    pub jobs: Option<Arc<Notify>>,
}

/// Leads whenever no other process does, until the process drains.
pub async fn run(scheduler: Scheduler, shutdown: CancellationToken) -> anyhow::Result<()> {
    leader::run(&scheduler, &shutdown).await;
    Ok(())
}
