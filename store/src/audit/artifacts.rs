//! Artifacts, by the attempt that made them, beside what the rest of the database says about that attempt.

use super::{Found, Scope};
use cratemill_protocol::{Attempt, JobId};
use sqlx::PgConnection;

/// One file. As text, since damage is what an audit looks for.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct File {
    pub id: i64,
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub position: i16,
    pub name: String,
    pub size: i64,
    pub sha256: String,
    pub object: String,
    pub manifest: String,
    pub signature: String,
    pub key_id: i64,
    pub public_key: String,
    /// The key is that of the builder that had the attempt.
    pub own_key: Option<bool>,
    pub krate: String,
    pub version: String,
    pub source_sha256: String,
    pub kind: String,
    pub target: String,
    pub features: String,
    /// It is of the job's version, kind, target and features; none: there is no such job.
    pub of_job: Option<bool>,
    /// How the attempt ended; none: it did not, or there is none.
    pub result: Option<String>,
}

/// The next attempts after `after` that made something.
pub async fn builds(
    conn: &mut PgConnection,
    scope: Scope,
    after: (JobId, Attempt),
    limit: i64,
) -> sqlx::Result<Vec<(JobId, Attempt)>> {
    let rows: Vec<(i64, i32)> = sqlx::query_as(
        "SELECT DISTINCT job_id, attempt FROM artifacts
         WHERE (job_id, attempt) > ($1, $2) AND ($3::bigint IS NULL OR job_id = $3)
           AND ($4::timestamptz IS NULL OR created_at >= $4)
         ORDER BY job_id, attempt LIMIT $5",
    )
    .bind(after.0.0)
    .bind(after.1.0)
    .bind(scope.job.map(|job| job.0))
    .bind(scope.since)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(job, attempt)| (JobId(job), Attempt(attempt))).collect())
}

/// All that these attempts made, attempt by attempt, in the manifest's order.
pub async fn of(conn: &mut PgConnection, builds: &[(JobId, Attempt)]) -> sqlx::Result<Vec<File>> {
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        builds.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    sqlx::query_as(concat!(
        "SELECT r.id, r.job_id, r.attempt, r.position, r.name, r.size, r.sha256, r.object, r.manifest, r.signature,
                k.id AS key_id, k.public_key, k.builder_id = a.builder_id AS own_key,
                c.name AS krate, v.version, v.sha256 AS source_sha256, r.kind, r.target, r.features,
                (r.version_id, r.kind, r.target, r.features) = (j.version_id, j.kind, j.target, j.features) AS of_job,
                a.result
         FROM unnest($1::bigint[], $2::int[]) AS p (job, attempt)
         JOIN artifacts r ON r.job_id = p.job AND r.attempt = p.attempt
         JOIN builder_keys k ON k.id = r.builder_key_id
         JOIN versions v ON v.id = r.version_id JOIN crates c ON c.id = v.crate_id
         LEFT JOIN jobs j ON j.id = r.job_id
         LEFT JOIN ",
        attempt!("r.job_id", "r.attempt"),
        "ORDER BY r.job_id, r.attempt, r.position"
    ))
    .bind(jobs)
    .bind(numbers)
    .fetch_all(conn)
    .await
}

/// Of what was ever built, that which is not served by exactly one build: the newest, each of its files once.
pub async fn not_current(conn: &mut PgConnection) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT c.name || ' ' || v.version || ' ' || s.kind || ' ' || s.target || ' ' || s.features AS what,
                0::float8 AS age_s, s.bad
         FROM (SELECT version_id, kind, target, features,
                      count(DISTINCT (job_id, attempt)) FILTER (WHERE replaced_at IS NULL) <> 1
                      OR count(DISTINCT position) FILTER (WHERE replaced_at IS NULL)
                         <> count(*) FILTER (WHERE replaced_at IS NULL)
                      OR max(id) FILTER (WHERE replaced_at IS NULL) <> max(id) AS bad
               FROM artifacts GROUP BY version_id, kind, target, features) s
         JOIN versions v ON v.id = s.version_id JOIN crates c ON c.id = v.crate_id"
    ))
    .fetch_one(conn)
    .await
}
