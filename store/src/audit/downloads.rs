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
         FROM download_counts d LEFT JOIN artifacts r ON r.id = d.artifact_id"
    ))
    .fetch_one(conn)
    .await
}

/// Crates and days of which the counts and their sums are not the same: six ways to the same number.
pub async fn different_sums(conn: &mut PgConnection) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'crate ' || crate_id || ' on ' || day AS what, 0::float8 AS age_s,
                count(DISTINCT count) > 1 OR count(*) <> 6 AS bad
         FROM (SELECT v.crate_id, d.day, sum(d.count)::bigint AS count FROM download_counts d
               JOIN artifacts r ON r.id = d.artifact_id JOIN versions v ON v.id = r.version_id GROUP BY 1, 2
               UNION ALL SELECT crate_id, day, count FROM download_days
               UNION ALL SELECT crate_id, day, sum(count)::bigint FROM download_sums GROUP BY crate_id, axis, day) s
         GROUP BY crate_id, day"
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
