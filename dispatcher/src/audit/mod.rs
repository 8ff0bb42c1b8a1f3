//! The audit: whether the database, the bus and the object store hold what the invariants promise.
//!
//! It only reads, and any number of jobs may run meanwhile: each row is judged as one moment shows it, and what is on
//! its way only once it takes longer than anything that moves it on. With `--at-rest` nothing may be on its way.
//!
//! ```text
//! open-jobs, outbox, unarchived-logs, sessions, download-batches, work-queues     what must come to rest
//! jobs, doubled-jobs, final-events                                                every job stands once, and ends once
//! artifacts, current-artifacts                                                    what is served is what was signed
//! bus-logs                                                                        every event once, in order
//! archived-logs                                                                   whole, by what was counted in archiving
//! late-uploads, late-logs                                                         a lease fences
//! leases, waiting-jobs, cancels, leftovers, downloads                             nothing is stuck or cannot be
//! ```

mod artifacts;
mod bus_logs;
pub mod command;
pub mod config;
mod events;
mod jobs;
mod logs;
mod objects;
pub mod report;
mod scan;
mod stuck;
mod work_queues;

use config::Demands;
use cratemill_service::bus::Bus;
use cratemill_store::{
    PgPool,
    audit::{Scope, uploads},
    objects::Objects,
};
use report::{Check, Report};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Clocks of servers may differ by so much, and what was under way when an attempt ended arrives by then.
const CLOCK_SKEW: time::Duration = time::Duration::seconds(5);
/// Objects that are read at once, each in constant memory: an audit must not crowd out those who download.
const OBJECTS_AT_ONCE: usize = 4;
/// How often is looked whether all has come to rest: the archive looks every second.
const SETTLE_POLL: Duration = Duration::from_millis(250);

/// What an audit needs.
#[derive(Debug)]
pub struct Auditor {
    pool: PgPool,
    bus: Bus,
    objects: Objects,
    at_rest: bool,
    settle: Duration,
    scope: Scope,
}

impl Auditor {
    pub fn new(pool: PgPool, bus: Bus, objects: Objects, demands: &Demands) -> Self {
        let settle = Duration::from_secs(demands.settle_s);
        Self { pool, bus, objects, at_rest: demands.at_rest, settle, scope: demands.scope() }
    }

    /// An error means that something could not be read, and that nothing is said about anything.
    pub async fn audit(&self) -> anyhow::Result<Report> {
        let whole = self.scope.job.is_none();
        let mut checks = if whole { self.settled().await? } else { Vec::new() };
        checks.push(jobs::check(self).await?);
        checks.push(events::check(self).await?);
        checks.push(artifacts::check(self).await?);
        if whole {
            checks.push(artifacts::check_current(self).await?);
        }
        checks.push(logs::check(self).await?);
        checks.extend(bus_logs::check(self).await?);
        checks.push(self.late_uploads().await?);
        if whole {
            checks.extend(stuck::still(self).await?);
        }
        Ok(Report::new(checks))
    }

    /// What must come to rest, if it is to, gets the time to.
    async fn settled(&self) -> anyhow::Result<Vec<Check>> {
        let deadline = Instant::now() + self.settle;
        loop {
            let mut checks = stuck::moving(self).await?;
            checks.push(work_queues::check(self).await?);
            if !self.at_rest || checks.iter().all(Check::is_clean) || Instant::now() >= deadline {
                return Ok(checks);
            }
            sleep(SETTLE_POLL).await;
        }
    }

    async fn late_uploads(&self) -> anyhow::Result<Check> {
        let mut conn = self.pool.acquire().await?;
        let late = uploads::late(&mut conn, self.scope, CLOCK_SKEW.as_seconds_f64()).await?;
        Ok(Check::of("late-uploads", &late, |what, age_s| {
            format!("{what} was stored {age_s:.1} s after the attempt had ended")
        }))
    }
}
