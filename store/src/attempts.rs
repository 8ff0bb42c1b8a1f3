//! Tries at jobs: how each ended, and where its log is.

use crate::queue::result_name;
use cratemill_protocol::{Attempt, JobId, JobState, Outcome};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Row {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub builder_id: i64,
    pub builder_name: String,
    pub assigned_at: OffsetDateTime,
    pub accepted_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    pub result: Option<String>,
    pub message: Option<String>,
    pub stage: Option<String>,
    pub timings: Option<serde_json::Value>,
}

pub async fn of_job(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as(
        "SELECT a.job_id, a.attempt, a.builder_id, b.name AS builder_name, a.assigned_at, a.accepted_at, a.ended_at,
                a.result, a.message, a.stage, a.timings
         FROM attempts a JOIN builders b ON b.id = a.builder_id WHERE a.job_id = $1 ORDER BY a.attempt",
    )
    .bind(job.0)
    .fetch_all(conn)
    .await
}

/// Notes how an attempt ended; the first word stands.
pub async fn end(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    outcome: &Outcome,
    last_seq: Option<u64>,
) -> sqlx::Result<()> {
    let (message, timings) = match outcome {
        Outcome::Succeeded { timings } => (None, serde_json::to_value(timings).ok()),
        Outcome::Failed { message, timings, .. } => {
            (Some(message.as_str()), serde_json::to_value(timings).ok())
        }
        Outcome::Cancelled => (None, None),
    };
    sqlx::query(
        "UPDATE attempts SET ended_at = now(), result = $3, message = $4, timings = $5, last_seq = $6
         WHERE job_id = $1 AND attempt = $2 AND ended_at IS NULL",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(result_name(outcome))
    .bind(message)
    .bind(timings)
    .bind(last_seq.and_then(|seq| i64::try_from(seq).ok()))
    .execute(conn)
    .await?;
    Ok(())
}

/// Where to read the log of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Log {
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub ended: bool,
    /// In the object store, gzip; none: still on the bus.
    pub log_object: Option<String>,
    pub log_bytes: Option<i64>,
    /// succeeded, cancelled or a failure class, once it ended.
    pub result: Option<String>,
}

/// The log of this attempt, or of the newest.
pub async fn log(conn: &mut PgConnection, job: JobId, attempt: Option<Attempt>) -> sqlx::Result<Option<Log>> {
    sqlx::query_as(
        "SELECT attempt, ended_at IS NOT NULL AS ended, log_object, log_bytes, result FROM attempts
         WHERE job_id = $1 AND ($2::int IS NULL OR attempt = $2) ORDER BY attempt DESC LIMIT 1",
    )
    .bind(job.0)
    .bind(attempt.map(|attempt| attempt.0))
    .fetch_optional(conn)
    .await
}

/// An ended attempt whose log is still on the bus.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ToArchive {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub last_seq: Option<i64>,
    /// What became of the job with this attempt: a final state, or `queued` where another one follows.
    #[sqlx(try_from = "String")]
    pub state: JobState,
    /// How long ago it ended, by the database's clock.
    pub ended_ago_s: f64,
}

/// Those that ended first.
pub async fn to_archive(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<ToArchive>> {
    sqlx::query_as(
        "SELECT a.job_id, a.attempt, a.last_seq, CASE WHEN j.attempt = a.attempt THEN j.state ELSE 'queued' END AS state,
                extract(epoch FROM now() - a.ended_at)::float8 AS ended_ago_s
         FROM attempts a JOIN jobs j ON j.id = a.job_id
         WHERE a.ended_at IS NOT NULL AND a.log_object IS NULL ORDER BY a.ended_at LIMIT $1",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The log is in the object store now; false if another object was named before, which stays.
pub async fn archived(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    object: &str,
    bytes: i64,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE attempts SET log_object = $3, log_bytes = $4
         WHERE job_id = $1 AND attempt = $2 AND log_object IS NULL",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(object)
    .bind(bytes)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Which of these have their log in the object store.
pub async fn archived_among(
    conn: &mut PgConnection,
    attempts: &[(JobId, Attempt)],
) -> sqlx::Result<Vec<(JobId, Attempt)>> {
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        attempts.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    let rows: Vec<(i64, i32)> = sqlx::query_as(
        "SELECT a.job_id, a.attempt FROM attempts a
         JOIN unnest($1::bigint[], $2::int[]) AS p (job, attempt) ON a.job_id = p.job AND a.attempt = p.attempt
         WHERE a.log_object IS NOT NULL",
    )
    .bind(jobs)
    .bind(numbers)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(job, attempt)| (JobId(job), Attempt(attempt))).collect())
}
