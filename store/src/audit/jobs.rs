//! Jobs with where they stand and their attempts, each as one moment shows it.

use cratemill_protocol::JobId;
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Job {
    #[sqlx(try_from = "i64")]
    pub id: JobId,
    /// It is known what was asked for.
    pub asked: bool,
    /// In which of `queue`, `leases` and `finished_jobs` it stands.
    pub places: Vec<String>,
    /// What waits or is with a builder is what was asked for.
    pub as_asked: bool,
    /// Empty where it stands nowhere.
    pub state: String,
    /// The number of its newest attempt.
    pub attempt: i32,
    pub failure_class: Option<String>,
    /// Something that its newest attempt made is listed, if only as what a newer build replaced: no row ever goes.
    pub published: bool,
    /// Of its attempts, in order: the number, whether it ended, and its result.
    pub numbers: Vec<i32>,
    pub ended: Vec<bool>,
    pub results: Vec<Option<String>>,
}

pub async fn of(conn: &mut PgConnection, jobs: &[JobId]) -> sqlx::Result<Vec<Job>> {
    sqlx::query_as(concat!(
        "SELECT p.id, j.id IS NOT NULL AS asked,
                ARRAY(SELECT 'queue' FROM queue WHERE job_id = p.id
                      UNION ALL SELECT 'leases' FROM leases WHERE job_id = p.id
                      UNION ALL SELECT 'finished_jobs' FROM finished_jobs WHERE job_id = p.id) AS places,
                coalesce((j.version_id, j.kind, j.target, j.features) = ALL (
                    SELECT version_id, kind, target, features FROM queue WHERE job_id = p.id
                    UNION ALL SELECT version_id, kind, target, features FROM leases WHERE job_id = p.id), false) AS as_asked,
                coalesce(j.state, '') AS state, coalesce(j.attempt, 0) AS attempt, j.failure_class,
                EXISTS (SELECT FROM artifacts r WHERE r.job_id = p.id AND r.attempt = j.attempt) AS published,
                coalesce(t.numbers, '{}') AS numbers, coalesce(t.ended, '{}') AS ended,
                coalesce(t.results, '{}') AS results
         FROM unnest($1::bigint[]) AS p (id) LEFT JOIN all_jobs j ON j.id = p.id CROSS JOIN LATERAL (
             SELECT array_agg(a.attempt ORDER BY a.attempt) AS numbers,
                    array_agg(a.ended_at IS NOT NULL ORDER BY a.attempt) AS ended,
                    array_agg(a.result ORDER BY a.attempt) AS results
             FROM ",
        attempts!(),
        " a WHERE a.job_id = p.id
         ) t ORDER BY p.id"
    ))
    .bind(super::numbers(jobs))
    .fetch_all(conn)
    .await
}

/// The states of those that have ended.
pub async fn ends(conn: &mut PgConnection, jobs: &[JobId]) -> sqlx::Result<Vec<(JobId, String)>> {
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT job_id, state FROM finished_jobs WHERE job_id = ANY($1)")
            .bind(super::numbers(jobs))
            .fetch_all(conn)
            .await?;
    Ok(rows.into_iter().map(|(id, state)| (JobId(id), state)).collect())
}

/// The next jobs after `after`, by id, that ended at `since` or later.
pub async fn ended_since(
    conn: &mut PgConnection,
    since: OffsetDateTime,
    after: JobId,
    limit: i64,
) -> sqlx::Result<Vec<JobId>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT job_id FROM finished_jobs WHERE job_id > $1 AND finished_at >= $2 ORDER BY job_id LIMIT $3",
    )
    .bind(after.0)
    .bind(since)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(JobId).collect())
}
