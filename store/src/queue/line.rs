//! What waits, and in which order it is handed out.

use crate::database::Channel;
use cratemill_protocol::{Attempt, CrateName, Features, JobId, Kind, Priority, Sha256Hex, Target};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// A queued job that could run now, and what a builder needs to run it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Candidate {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub id: JobId,
    /// The number of its newest attempt; the next is one more.
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    #[sqlx(rename = "krate", try_from = "String")]
    pub krate: CrateName,
    pub version: String,
    #[sqlx(try_from = "String")]
    pub sha256: Sha256Hex,
    #[sqlx(try_from = "String")]
    pub kind: Kind,
    #[sqlx(try_from = "String")]
    pub target: Target,
    #[sqlx(try_from = "String")]
    pub features: Features,
    #[sqlx(try_from = "i16")]
    pub priority: Priority,
}

/// The next jobs for any of `targets` and of those for no target, best first. Within a priority lines are served in turn.
/// Nothing is locked: [`super::assign`] leases what still waits.
pub async fn candidates(
    conn: &mut PgConnection,
    targets: &[String],
    limit: i64,
) -> sqlx::Result<Vec<Candidate>> {
    sqlx::query_as(
        "SELECT q.job_id, q.attempt, q.krate, q.version, q.sha256, q.kind, q.target, q.features, q.priority
         FROM (SELECT unnest($1::text[]) UNION SELECT 'any') AS lines (target)
         CROSS JOIN LATERAL (
             SELECT first.*, row_number() OVER (PARTITION BY priority ORDER BY turn, job_id) AS place
             FROM (SELECT * FROM queue WHERE queue.target = lines.target AND turn IS NOT NULL
                   ORDER BY priority, turn, job_id LIMIT $2) AS first
         ) AS q
         ORDER BY q.priority, q.place, q.job_id LIMIT $2",
    )
    .bind(targets)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Puts jobs that have become due into their lines, and tells the dispatchers if there are any: another one may hold the only
/// builders that can take them. Returns how many.
pub async fn promote(conn: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    let (moved, _told): (i64, Option<()>) = sqlx::query_as(
        "WITH due AS (
             SELECT job_id, crate_id, target, priority FROM queue
             WHERE turn IS NULL AND run_at <= now() ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), placed AS (
             SELECT job_id, next_turn(crate_id, target, priority)
                    + row_number() OVER (PARTITION BY crate_id, target, priority ORDER BY job_id) - 1 AS turn
             FROM due
         ), moved AS (
             UPDATE queue q SET turn = p.turn FROM placed p WHERE q.job_id = p.job_id RETURNING q.job_id
         )
         SELECT count(*), CASE WHEN count(*) > 0 THEN pg_notify($2, '') END FROM moved",
    )
    .bind(limit)
    .bind(Channel::Jobs.name())
    .fetch_one(conn)
    .await?;
    Ok(moved.unsigned_abs())
}

/// When the next job that is not due yet falls due.
pub async fn next_due(conn: &mut PgConnection) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar("SELECT run_at FROM queue WHERE turn IS NULL ORDER BY run_at LIMIT 1")
        .fetch_optional(conn)
        .await
}

/// How long the queue is, and how many jobs builders have.
pub async fn lengths(conn: &mut PgConnection) -> sqlx::Result<(u64, u64)> {
    let (queued, running): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM queue), (SELECT count(*) FROM leases)")
            .fetch_one(conn)
            .await?;
    Ok((queued.unsigned_abs(), running.unsigned_abs()))
}
