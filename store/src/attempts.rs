//! Tries at jobs: how each ended, and where its log is.

use cratemill_protocol::{Attempt, JobId, JobState};
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
         FROM all_attempts a JOIN builders b ON b.id = a.builder_id WHERE a.job_id = $1 ORDER BY a.attempt",
    )
    .bind(job.0)
    .fetch_all(conn)
    .await
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
        "SELECT attempt, ended_at IS NOT NULL AS ended, log_object, log_bytes, result FROM all_attempts
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
        "SELECT job_id, attempt, last_seq, state, extract(epoch FROM now() - ended_at)::float8 AS ended_ago_s
         FROM (
             (SELECT job_id, attempt, last_seq, state, finished_at AS ended_at FROM finished_jobs
              WHERE log_object IS NULL AND builder_id IS NOT NULL ORDER BY finished_at LIMIT $1)
             UNION ALL
             (SELECT job_id, attempt, last_seq, 'queued', ended_at FROM attempts
              WHERE ended_at IS NOT NULL AND log_object IS NULL ORDER BY ended_at LIMIT $1)
         ) AS waiting ORDER BY ended_at LIMIT $1",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The log is in the object store now, without so many of its events; false if another object was named before, which
/// stays.
pub async fn archived(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    object: &str,
    bytes: i64,
    missing: i64,
) -> sqlx::Result<bool> {
    let named: i64 = sqlx::query_scalar(
        "WITH past AS (
             UPDATE attempts SET log_object = $3, log_bytes = $4, log_missing = $5
             WHERE job_id = $1 AND attempt = $2 AND log_object IS NULL RETURNING 1
         ), last AS (
             UPDATE finished_jobs SET log_object = $3, log_bytes = $4, log_missing = $5
             WHERE job_id = $1 AND attempt = $2 AND builder_id IS NOT NULL AND log_object IS NULL RETURNING 1
         )
         SELECT (SELECT count(*) FROM past) + (SELECT count(*) FROM last)",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(object)
    .bind(bytes)
    .bind(missing)
    .fetch_one(conn)
    .await?;
    Ok(named == 1)
}

/// Which of these have their log in the object store.
pub async fn archived_among(
    conn: &mut PgConnection,
    attempts: &[(JobId, Attempt)],
) -> sqlx::Result<Vec<(JobId, Attempt)>> {
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        attempts.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    let rows: Vec<(i64, i32)> = sqlx::query_as(
        // Each by itself, by the indexes of the tables: joined as it is, the view would be read whole.
        "SELECT p.job, p.attempt FROM unnest($1::bigint[], $2::int[]) AS p (job, attempt)
         CROSS JOIN LATERAL (
             SELECT log_object FROM all_attempts WHERE job_id = p.job AND attempt = p.attempt LIMIT 1) a
         WHERE a.log_object IS NOT NULL",
    )
    .bind(jobs)
    .bind(numbers)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(job, attempt)| (JobId(job), Attempt(attempt))).collect())
}

/// The logs of these are empty: one object stands for all of them. Returns how many had none before.
pub async fn archived_empty(
    conn: &mut PgConnection,
    attempts: &[(JobId, Attempt)],
    object: &str,
) -> sqlx::Result<u64> {
    let mut attempts = attempts.to_vec();
    // In one order, so that two who archive the same never wait for each other.
    attempts.sort_unstable();
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        attempts.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    let named: i64 = sqlx::query_scalar(
        "WITH empty AS (SELECT * FROM unnest($1::bigint[], $2::int[]) AS e (job, number)),
         past AS (
             UPDATE attempts a SET log_object = $3, log_bytes = 0, log_missing = 0 FROM empty e
             WHERE a.job_id = e.job AND a.attempt = e.number AND a.log_object IS NULL RETURNING 1
         ), last AS (
             UPDATE finished_jobs f SET log_object = $3, log_bytes = 0, log_missing = 0 FROM empty e
             WHERE f.job_id = e.job AND f.attempt = e.number AND f.builder_id IS NOT NULL AND f.log_object IS NULL
             RETURNING 1
         )
         SELECT (SELECT count(*) FROM past) + (SELECT count(*) FROM last)",
    )
    .bind(jobs)
    .bind(numbers)
    .bind(object)
    .fetch_one(conn)
    .await?;
    Ok(named.unsigned_abs())
}
