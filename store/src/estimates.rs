//! When a job is likely to start and how long it is likely to take, from what was built before. Every read is bounded,
//! however many jobs there are: an estimate may be rough, but never slow.

use crate::jobs::{Job, queue_position};
use cratemill_protocol::JobState;
use sqlx::PgConnection;

/// Versions of the same crate that are looked at; older ones say little about the newest.
const VERSIONS: i64 = 10;
/// Jobs of any crate that are looked at for want of better.
const RECENT_JOBS: i64 = 500;
/// Running jobs and waiting builders that are counted: with more, what is queued starts at once anyway.
const MOST_COUNTED: i64 = 1_000;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// From now; none where nobody builds for the target, or nothing is known.
    pub starts_in_s: Option<f64>,
    /// From its start to its end.
    pub takes_s: Option<f64>,
}

/// Of a job that has not ended.
pub async fn of(conn: &mut PgConnection, job: &Job) -> sqlx::Result<Option<Estimate>> {
    if job.state.is_final() {
        return Ok(None);
    }
    let usual_s = usual_s(conn, job).await?;
    let takes_s = of_crate_s(conn, job).await?.or(usual_s);
    let starts_in_s = match job.state {
        JobState::Queued => starts_in_s(conn, job, usual_s).await?,
        _ => None,
    };
    let estimate = Estimate { starts_in_s, takes_s };
    Ok((estimate != Estimate::default()).then_some(estimate))
}

/// The median of the crate's newest versions. What was tried more than once took longer for reasons that are not its own.
async fn of_crate_s(conn: &mut PgConnection, job: &Job) -> sqlx::Result<Option<f64>> {
    sqlx::query_scalar(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM b.finished_at - b.started_at)::float8)
         FROM (SELECT id FROM versions WHERE crate_id = (SELECT crate_id FROM versions WHERE id = $1)
               ORDER BY id DESC LIMIT $4) AS newest
         CROSS JOIN LATERAL (SELECT f.started_at, f.finished_at FROM jobs j JOIN finished_jobs f ON f.job_id = j.id
                             WHERE j.version_id = newest.id AND j.kind = $2 AND j.target = $3
                               AND f.state = 'succeeded' AND f.attempt = 1 AND f.started_at IS NOT NULL
                             ORDER BY j.id DESC LIMIT 3) AS b",
    )
    .bind(job.version_id.0)
    .bind(job.kind.as_str())
    .bind(&*job.target)
    .bind(VERSIONS)
    .fetch_one(conn)
    .await
}

/// The median of what was built lately of the kind and for the target.
async fn usual_s(conn: &mut PgConnection, job: &Job) -> sqlx::Result<Option<f64>> {
    sqlx::query_scalar(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8)
         FROM (SELECT job_id, state, started_at, finished_at FROM finished_jobs ORDER BY job_id DESC LIMIT $3) AS recent
         JOIN jobs j ON j.id = recent.job_id
         WHERE j.kind = $1 AND j.target = $2 AND state = 'succeeded' AND started_at IS NOT NULL",
    )
    .bind(job.kind.as_str())
    .bind(&*job.target)
    .bind(RECENT_JOBS)
    .fetch_one(conn)
    .await
}

/// As if those ahead were taken in turn by all builders of the target, and took as long as is usual. Jobs for no target are
/// served in turn with those for one.
async fn starts_in_s(conn: &mut PgConnection, job: &Job, usual_s: Option<f64>) -> sqlx::Result<Option<f64>> {
    let Some(place) = queue_position(conn, job.id).await? else { return Ok(None) };
    let (due_in_s, others, running, free): (f64, i64, i64, i64) = sqlx::query_as(
        "SELECT greatest(extract(epoch FROM $1 - now()), 0)::float8,
                (SELECT count(*) FROM (SELECT FROM queue WHERE $2 <> 'any' AND target = 'any' AND turn IS NOT NULL
                                       LIMIT $4) AS others),
                (SELECT count(*) FROM (SELECT FROM leases WHERE target = $2 LIMIT $3) AS running),
                (SELECT coalesce(sum(slots), 0) FROM (
                     SELECT slots FROM builder_sessions
                     WHERE slots > 0 AND ($2 = 'any' OR $2 = ANY(targets)) LIMIT $3) AS waiting)",
    )
    .bind(job.run_at)
    .bind(&*job.target)
    .bind(MOST_COUNTED)
    .bind(place)
    .fetch_one(conn)
    .await?;
    Ok(wait_s(place + others, running, free, usual_s).map(|wait_s| wait_s.max(due_in_s)))
}

#[expect(clippy::cast_precision_loss, reason = "an estimate of seconds")]
fn wait_s(position: i64, running: i64, free: i64, usual_s: Option<f64>) -> Option<f64> {
    let ahead = position - free;
    match (ahead, running + free) {
        (..=0, _) => Some(0.0),
        (_, 0) => None,
        (ahead, builders) => Some(ahead as f64 / builders as f64 * usual_s?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_shared_by_all_builders() {
        assert_eq!(wait_s(3, 0, 3, None), Some(0.0), "a slot for everybody");
        assert_eq!(wait_s(9, 2, 1, Some(30.0)), Some(80.0));
        assert_eq!(wait_s(1, 0, 0, Some(30.0)), None, "nobody builds for the target");
        assert_eq!(wait_s(9, 2, 1, None), None);
    }
}
