//! The job queue: every change of a job's state, each fenced by the attempt number and announced in the outbox.
//!
//! ```text
//! enqueue      -> queued
//! assign          queued -> assigned       attempt + 1, lease until the builder accepts
//! accept          assigned -> running      lease until the next heartbeat
//! renew           running -> running
//! finish          assigned | running -> succeeded | failed | cancelled
//! retry_later     assigned | running -> queued      run_at later, and a try more if it ran
//! cancel          queued -> cancelled; assigned | running: asks for it
//! ```

mod ending;
mod lease;

pub use ending::{Cancelled, End, Held, cancel, expired, finish, hold, overdue, retry_later, withdraw};
pub use lease::{Candidate, Renewed, accept, assign, candidates, next_due, renew, set_stage};

use crate::{
    database::{Channel, notify},
    jobs, outbox,
};
use cratemill_protocol::{Features, JobId, Kind, Outcome, Priority, Target, VersionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone)]
pub struct NewJob {
    pub version: VersionId,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    pub priority: Priority,
    /// Not before; now if none.
    pub run_at: Option<OffsetDateTime>,
    pub parent: Option<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    New(JobId),
    /// The same thing is queued or being built already; its priority is raised if the new one is higher.
    Active(JobId),
}

impl Enqueued {
    pub fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Active(id) => id,
        }
    }
}

pub async fn enqueue(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Enqueued> {
    // Another transaction may end the active job between the two statements: then try again.
    for _ in 0..3 {
        if let Some(id) = insert(conn, job).await? {
            announce(conn, id).await?;
            notify(conn, Channel::Jobs).await?;
            return Ok(Enqueued::New(id));
        }
        if let Some(id) = raise(conn, job).await? {
            notify(conn, Channel::Jobs).await?;
            return Ok(Enqueued::Active(id));
        }
    }
    Err(sqlx::Error::RowNotFound)
}

async fn insert(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<JobId>> {
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO jobs (version_id, kind, target, features, priority, run_at, parent_id)
         VALUES ($1, $2, $3, $4, $5, coalesce($6, now()), $7)
         ON CONFLICT (version_id, kind, target, features) WHERE state IN ('queued', 'assigned', 'running')
         DO NOTHING RETURNING id",
    )
    .bind(job.version.0)
    .bind(job.kind.as_str())
    .bind(&*job.target)
    .bind(job.features.to_string())
    .bind(job.priority.rank())
    .bind(job.run_at)
    .bind(job.parent.map(|id| id.0))
    .fetch_optional(conn)
    .await?;
    Ok(id.map(JobId))
}

/// A job that is asked for again runs at the higher of both priorities and, before its first attempt, at the earlier of
/// both times.
async fn raise(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<JobId>> {
    let id: Option<i64> = sqlx::query_scalar(
        "UPDATE jobs SET priority = least(priority, $5),
                         run_at = CASE WHEN attempt = 0 THEN least(run_at, coalesce($6, now())) ELSE run_at END
         WHERE version_id = $1 AND kind = $2 AND target = $3 AND features = $4
           AND state IN ('queued', 'assigned', 'running') RETURNING id",
    )
    .bind(job.version.0)
    .bind(job.kind.as_str())
    .bind(&*job.target)
    .bind(job.features.to_string())
    .bind(job.priority.rank())
    .bind(job.run_at)
    .fetch_optional(conn)
    .await?;
    Ok(id.map(JobId))
}

/// How long the queue is, and how many jobs builders have.
pub async fn lengths(conn: &mut PgConnection) -> sqlx::Result<(u64, u64)> {
    let (queued, running): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state <> 'queued')
         FROM jobs WHERE state IN ('queued', 'assigned', 'running')",
    )
    .fetch_one(conn)
    .await?;
    Ok((queued.unsigned_abs(), running.unsigned_abs()))
}

/// The name under which an attempt's end is remembered.
pub fn result_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed { class, .. } => class.as_str(),
        Outcome::Cancelled => "cancelled",
    }
}

async fn announce(conn: &mut PgConnection, job: JobId) -> sqlx::Result<()> {
    if let Some(changed) = jobs::changed(conn, job).await? {
        outbox::job_changed(conn, changed).await?;
    }
    Ok(())
}
