//! Jobs and events that something should have moved on.

use super::Found;
use sqlx::PgConnection;

/// Events that no relay has published within so many seconds.
pub async fn unpublished(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    let sql = overdue!("'outbox entry ' || id", "created_at", "outbox");
    sqlx::query_as(sql).bind(after_s).fetch_one(conn).await
}

/// Leases that ran out so many seconds ago.
pub async fn expired(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    let sql = overdue!("'job ' || job_id", "lease_until", "leases");
    sqlx::query_as(sql).bind(after_s).fetch_one(conn).await
}

/// Jobs that have been due for so many seconds and stand in no line: no builder would ever get them.
pub async fn out_of_line(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    let sql = overdue!("'job ' || job_id", "run_at", "queue WHERE turn IS NULL AND run_at <= now()");
    sqlx::query_as(sql).bind(after_s).fetch_one(conn).await
}

/// Jobs that builders have while another job for the same thing waits or is with a builder too.
pub async fn doubled(conn: &mut PgConnection) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'job ' || l.job_id AS what, extract(epoch FROM now() - l.assigned_at)::float8 AS age_s,
                EXISTS (SELECT FROM queue q WHERE q.job_id <> l.job_id AND q.version_id = l.version_id
                        AND (q.kind, q.target, q.features) = (l.kind, l.target, l.features))
                OR EXISTS (SELECT FROM leases o WHERE o.job_id <> l.job_id AND o.version_id = l.version_id
                           AND (o.kind, o.target, o.features) = (l.kind, l.target, l.features)) AS bad
         FROM leases l"
    ))
    .fetch_one(conn)
    .await
}

/// Cancels that were asked for so many seconds ago, of jobs that go on.
pub async fn not_cancelled(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    let sql =
        overdue!("'job ' || job_id", "cancel_requested_at", "leases WHERE cancel_requested_at IS NOT NULL");
    sqlx::query_as(sql).bind(after_s).fetch_one(conn).await
}

/// Jobs that have not ended.
pub async fn open(conn: &mut PgConnection) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'job ' || o.job_id || ' (' || o.state || ')' AS what,
                coalesce(extract(epoch FROM now() - j.created_at), 0)::float8 AS age_s, true AS bad
         FROM (SELECT job_id, 'queued' AS state FROM queue
               UNION ALL
               SELECT job_id, CASE WHEN accepted_at IS NULL THEN 'assigned' ELSE 'running' END FROM leases) o
         LEFT JOIN jobs j ON j.id = o.job_id"
    ))
    .fetch_one(conn)
    .await
}
