//! Uploads that should not be there.

use super::{Found, Scope};
use sqlx::PgConnection;

/// Uploads that were recorded more than so many seconds after their attempt had ended.
pub async fn late(conn: &mut PgConnection, scope: Scope, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'attempt ' || u.job_id || '.' || u.attempt || ', ' || u.name AS what,
                coalesce(extract(epoch FROM u.stored_at - a.ended_at), 0)::float8 AS age_s,
                a.job_id IS NULL
                OR a.ended_at IS NOT NULL AND u.stored_at > a.ended_at + make_interval(secs => $1) AS bad
         FROM uploads u LEFT JOIN ",
        attempt!("u.job_id", "u.attempt"),
        "WHERE ($2::bigint IS NULL OR u.job_id = $2) AND ($3::timestamptz IS NULL OR u.stored_at >= $3)"
    ))
    .bind(after_s)
    .bind(scope.job.map(|job| job.0))
    .bind(scope.since)
    .fetch_one(conn)
    .await
}

/// Uploads that became no artifact, of attempts that ended so many seconds ago: the clean-up has left them.
pub async fn left(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'attempt ' || u.job_id || '.' || u.attempt || ', ' || u.name AS what,
                extract(epoch FROM now() - a.ended_at)::float8 AS age_s,
                a.ended_at <= now() - make_interval(secs => $1) AS bad
         FROM uploads u JOIN ",
        attempt!("u.job_id", "u.attempt"),
        "WHERE a.ended_at IS NOT NULL AND NOT EXISTS (
             SELECT FROM artifacts r WHERE r.job_id = u.job_id AND r.attempt = u.attempt AND r.name = u.name)"
    ))
    .bind(after_s)
    .fetch_one(conn)
    .await
}
