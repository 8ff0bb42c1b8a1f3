//! Counts and marks of download batches, as far as they can be wrong on their own.

use super::Found;
use sqlx::PgConnection;

/// Counts that cannot be: less than one, of no artifact, or of a day before its artifact was there or after tomorrow.
/// A day's difference is allowed: days are UTC's, and nodes have clocks of their own.
pub async fn impossible(conn: &mut PgConnection) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'artifact ' || d.artifact_id || ' on ' || d.day || ' by ' || d.client || ': ' || d.count AS what,
                0::float8 AS age_s,
                d.count < 1 OR r.id IS NULL OR d.day < (r.created_at AT TIME ZONE 'UTC')::date - 1
                OR d.day > (now() AT TIME ZONE 'UTC')::date + 1 AS bad
         FROM downloads_daily d LEFT JOIN artifacts r ON r.id = d.artifact_id"
    ))
    .fetch_one(conn)
    .await
}

/// Publishers' runs whose marks cannot be, or that have waited for a batch for so many seconds: a publisher sends one
/// batch after the other, so a batch that others have passed was lost with its counts.
pub async fn gaps(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'node ' || node || ', run ' || epoch AS what, extract(epoch FROM now() - seen_at)::float8 AS age_s,
                batch < 0 OR batch >= ANY(ahead)
                OR cardinality(ahead) > 0 AND seen_at <= now() - make_interval(secs => $1) AS bad
         FROM download_batches"
    ))
    .bind(after_s)
    .fetch_one(conn)
    .await
}
