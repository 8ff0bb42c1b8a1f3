//! Builders that keep failing jobs for reasons that are not the crate's: rejected, lost, or refused at the end. Each costs
//! a job an attempt, so such a builder gets new ones only after a pause.

use cratemill_protocol::{Attempt, BuilderId, JobId};
use sqlx::PgConnection;

/// A builder may be restarted, or lose its network, so often without being held back.
const FREE: i32 = 2;
const FIRST_PAUSE_S: f64 = 10.0;
const LONGEST_PAUSE_S: f64 = 3_600.0;
/// What happened longer ago says nothing about now: twice the longest pause.
const FORGOTTEN_AFTER_S: f64 = 2.0 * LONGEST_PAUSE_S;
/// A node marks itself every five seconds. One that has missed a mark may have died with what was on its way through it.
const NODE_SILENT_S: f64 = 10.0;

/// An attempt that the caller holds ends badly. Returns how long the pause of its builder is that began now, in seconds.
///
/// Incidents count, not attempts: what the builder had in hand when one was counted ends badly for the same reason, since
/// many attempts fail together when one thing fails. And what the builder did not take counts only if it can have got to it,
/// over the connection that it was assigned to: a node that dies, or hands back what it could not deliver, is no fault of
/// the builder.
pub async fn note(conn: &mut PgConnection, job: JobId, attempt: Attempt) -> sqlx::Result<Option<f64>> {
    let pause: Option<f64> = sqlx::query_scalar(
        "INSERT INTO builder_faults AS f (builder_id, faults, last_at)
         SELECT l.builder_id, 1, now() FROM leases l
         WHERE l.job_id = $1 AND l.attempt = $2
           AND (l.accepted_at IS NOT NULL OR EXISTS (
               SELECT FROM builder_sessions s
               WHERE s.builder_id = l.builder_id AND s.connected_at <= l.assigned_at
                 AND coalesce((SELECT n.seen_at FROM nodes n WHERE n.name = s.node AND n.epoch = s.epoch), s.seen_at)
                     > now() - make_interval(secs => $7)))
         ON CONFLICT (builder_id) DO UPDATE SET
             last_at = now(),
             faults = CASE WHEN f.last_at < now() - make_interval(secs => $6) THEN 1 ELSE f.faults + 1 END,
             paused_until = CASE WHEN f.last_at >= now() - make_interval(secs => $6) AND f.faults >= $3
                 THEN now() + make_interval(secs => least($4 * power(2, least(f.faults - $3, 30)), $5)) END
         WHERE (f.paused_until IS NULL OR f.paused_until <= now())
           AND f.last_at < (SELECT l.assigned_at FROM leases l WHERE l.job_id = $1 AND l.attempt = $2)
         RETURNING extract(epoch FROM paused_until - now())::float8",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(FREE)
    .bind(FIRST_PAUSE_S)
    .bind(LONGEST_PAUSE_S)
    .bind(FORGOTTEN_AFTER_S)
    .bind(NODE_SILENT_S)
    .fetch_optional(conn)
    .await?
    .flatten();
    Ok(pause)
}

/// Attempts of these builders ended as attempts do.
pub async fn forget(conn: &mut PgConnection, builders: &[BuilderId]) -> sqlx::Result<()> {
    let mut builders: Vec<i64> = builders.iter().map(|builder| builder.0).collect();
    builders.sort_unstable();
    builders.dedup();
    // In one order, so that two who end attempts of the same builders never wait for each other.
    sqlx::query(
        "DELETE FROM builder_faults WHERE builder_id IN (
             SELECT builder_id FROM builder_faults WHERE builder_id = ANY($1) ORDER BY builder_id FOR UPDATE)",
    )
    .bind(builders)
    .execute(conn)
    .await?;
    Ok(())
}
