//! Jobs that nobody wants any more.

use super::changes::{Subject, subject};
use crate::{
    database::{Channel, notify},
    outbox,
};
use cratemill_protocol::{Attempt, BuilderId, JobId, JobState, VersionId};
use sqlx::PgConnection;

/// Another transaction may move the job between two statements: then it is looked for again.
const LOOKS: usize = 3;

macro_rules! end_queued_sql {
    ($column:literal) => {
        concat!(
            "WITH found AS (SELECT job_id FROM queue WHERE ",
            $column,
            " = $1 ORDER BY job_id FOR UPDATE),
             gone AS (DELETE FROM queue q USING found f WHERE q.job_id = f.job_id RETURNING q.*),
             ended AS (
                 INSERT INTO finished_jobs (job_id, state, priority, run_at, attempt, tries, started_at)
                 SELECT job_id, 'cancelled', priority, run_at, attempt, tries, started_at FROM gone
             )
             SELECT ",
            subject!("gone"),
            " FROM gone ORDER BY job_id"
        )
    };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It was waiting: it is cancelled now.
    Done,
    /// It is being built: its builder is to be told.
    Asked { builder: BuilderId, attempt: Attempt },
    /// It had ended before.
    Final(JobState),
}

pub async fn cancel(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Option<Cancelled>> {
    for _ in 0..LOOKS {
        if !end_queued(conn, end_queued_sql!("job_id"), job.0).await?.is_empty() {
            return Ok(Some(Cancelled::Done));
        }
        let asked: Option<(i64, i32)> = sqlx::query_as(
            "UPDATE leases SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE job_id = $1
             RETURNING builder_id, attempt",
        )
        .bind(job.0)
        .fetch_optional(&mut *conn)
        .await?;
        if let Some((builder, attempt)) = asked {
            return Ok(Some(Cancelled::Asked { builder: BuilderId(builder), attempt: Attempt(attempt) }));
        }
        let ended: Option<String> = sqlx::query_scalar("SELECT state FROM finished_jobs WHERE job_id = $1")
            .bind(job.0)
            .fetch_optional(&mut *conn)
            .await?;
        if let Some(state) = ended {
            let state = state.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            return Ok(Some(Cancelled::Final(state)));
        }
    }
    Ok(None)
}

/// Withdraws what is queued for a version that was yanked or blocked.
pub async fn withdraw(conn: &mut PgConnection, version: VersionId) -> sqlx::Result<Vec<JobId>> {
    end_queued(conn, end_queued_sql!("version_id"), version.0).await
}

/// Cancels what waits and has this number in the statement's column.
async fn end_queued(conn: &mut PgConnection, sql: &'static str, is: i64) -> sqlx::Result<Vec<JobId>> {
    let gone: Vec<Subject> = sqlx::query_as(sql).bind(is).fetch_all(&mut *conn).await?;
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let ids = gone.iter().map(|job| job.job).collect();
    outbox::jobs_changed(conn, gone.into_iter().map(|job| job.becomes(JobState::Cancelled))).await?;
    notify(conn, Channel::Outbox).await?;
    Ok(ids)
}
