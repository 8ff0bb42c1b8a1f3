//! Builders that keep failing jobs for reasons that are not the crate's: rejected, lost, or refused at the end. Each costs
//! a job an attempt, so such a builder gets new ones only after a pause.

use cratemill_protocol::BuilderId;
use sqlx::PgConnection;

/// A builder may be restarted, or lose its network, without being held back.
const FREE: i32 = 2;
const FIRST_PAUSE_S: f64 = 10.0;
const LONGEST_PAUSE_S: f64 = 3_600.0;
/// What happened longer ago says nothing about now: twice the longest pause.
const FORGOTTEN_AFTER_S: f64 = 2.0 * LONGEST_PAUSE_S;

/// An attempt of the builder ended badly. What it had when a pause began counts once: many slots fail together when one
/// thing fails. Returns how long the pause is that began now, in seconds.
pub async fn note(conn: &mut PgConnection, builder: BuilderId) -> sqlx::Result<Option<f64>> {
    let pause: Option<f64> = sqlx::query_scalar(
        "INSERT INTO builder_faults AS f (builder_id, faults, last_at) VALUES ($1, 1, now())
         ON CONFLICT (builder_id) DO UPDATE SET
             last_at = now(),
             faults = CASE WHEN f.last_at < now() - make_interval(secs => $5) THEN 1 ELSE f.faults + 1 END,
             paused_until = CASE WHEN f.last_at >= now() - make_interval(secs => $5) AND f.faults >= $2
                 THEN now() + make_interval(secs => least($3 * power(2, least(f.faults - $2, 30)), $4)) END
         WHERE f.paused_until IS NULL OR f.paused_until <= now()
         RETURNING extract(epoch FROM paused_until - now())::float8",
    )
    .bind(builder.0)
    .bind(FREE)
    .bind(FIRST_PAUSE_S)
    .bind(LONGEST_PAUSE_S)
    .bind(FORGOTTEN_AFTER_S)
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
