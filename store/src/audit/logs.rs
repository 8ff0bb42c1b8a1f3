//! Where the logs of attempts are, and how much of them.

use super::Found;
use cratemill_protocol::{Attempt, JobId};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Log {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub ended_at: Option<OffsetDateTime>,
    pub log_object: Option<String>,
    pub log_bytes: Option<i64>,
    pub log_missing: Option<i64>,
}

/// Of all attempts of these jobs.
pub async fn of(conn: &mut PgConnection, jobs: &[JobId]) -> sqlx::Result<Vec<Log>> {
    sqlx::query_as(concat!(
        "SELECT job_id, attempt, ended_at, log_object, log_bytes, log_missing
         FROM ",
        attempts!(),
        " WHERE job_id = ANY($1) ORDER BY job_id, attempt"
    ))
    .bind(super::numbers(jobs))
    .fetch_all(conn)
    .await
}

/// Of those of these attempts that exist.
pub async fn of_attempts(conn: &mut PgConnection, attempts: &[(JobId, Attempt)]) -> sqlx::Result<Vec<Log>> {
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        attempts.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    sqlx::query_as(concat!(
        "SELECT a.job_id, a.attempt, a.ended_at, a.log_object, a.log_bytes, a.log_missing
         FROM unnest($1::bigint[], $2::int[]) AS p (job, attempt)
         JOIN ",
        attempt!("p.job", "p.attempt")
    ))
    .bind(jobs)
    .bind(numbers)
    .fetch_all(conn)
    .await
}

/// Attempts that ended so many seconds ago and whose logs are not in the object store.
pub async fn not_archived(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    let sql = overdue!(
        "'attempt ' || job_id || '.' || attempt",
        "ended_at",
        attempts!(),
        " WHERE ended_at IS NOT NULL AND log_object IS NULL"
    );
    sqlx::query_as(sql).bind(after_s).fetch_one(conn).await
}
