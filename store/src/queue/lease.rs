//! From the queue to a builder: who gets which job, and for how long.

use super::announce;
use cratemill_protocol::{Attempt, BuilderId, CrateName, Features, JobId, Kind, Sha256Hex, Stage, Target};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// A queued job that could run now, and what a builder needs to run it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Candidate {
    #[sqlx(try_from = "i64")]
    pub id: JobId,
    /// The number of its newest attempt; the next is one more.
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    #[sqlx(rename = "name", try_from = "String")]
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
}

/// How far down the queue a round looks for crates that have not had their turn: what it reads stays in the memory of a
/// query, whatever the length of the queue.
const TURNS_WINDOW: i64 = 1_024;

/// The next jobs for any of `targets`, best first; their rows stay locked, and rows that others lock are passed over.
/// Within a priority crates take turns, so that one with many jobs does not keep the others waiting.
pub async fn candidates(
    conn: &mut PgConnection,
    targets: &[String],
    limit: i64,
) -> sqlx::Result<Vec<Candidate>> {
    sqlx::query_as(
        "SELECT j.id, j.attempt, c.name, v.version, v.sha256, j.kind, j.target, j.features
         FROM unnest(ARRAY(
             SELECT id FROM (
                 SELECT id, priority, run_at,
                        row_number() OVER (PARTITION BY priority, crate_id ORDER BY run_at, id) AS turn
                 FROM (SELECT id, priority, run_at, (SELECT crate_id FROM versions WHERE id = jobs.version_id)
                       FROM jobs
                       WHERE state = 'queued' AND run_at <= now() AND (target = 'any' OR target = ANY($1))
                       ORDER BY priority, run_at, id LIMIT $3) AS first
             ) AS numbered ORDER BY priority, turn, run_at, id
         )) WITH ORDINALITY AS turns (id, place)
         JOIN jobs j ON j.id = turns.id
         JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id
         WHERE j.state = 'queued' AND j.run_at <= now()
         ORDER BY turns.place LIMIT $2 FOR UPDATE OF j SKIP LOCKED",
    )
    .bind(targets)
    .bind(limit)
    .bind(TURNS_WINDOW)
    .fetch_all(conn)
    .await
}

/// Leases candidates to builders until they accept, for `accept_s`, and takes a slot of theirs for each. The caller has
/// locked the rows of both.
pub async fn assign(
    conn: &mut PgConnection,
    pairs: &[(JobId, BuilderId)],
    accept_s: i32,
) -> sqlx::Result<()> {
    let (jobs, builders): (Vec<i64>, Vec<i64>) =
        pairs.iter().map(|(job, builder)| (job.0, builder.0)).unzip();
    sqlx::query(
        "WITH assigned AS (
             UPDATE jobs j SET state = 'assigned', attempt = attempt + 1, builder_id = p.builder, stage = NULL,
                               lease_until = now() + make_interval(secs => $3)
             FROM unnest($1::bigint[], $2::bigint[]) AS p (job, builder)
             WHERE j.id = p.job AND j.state = 'queued' RETURNING j.id, j.attempt, j.builder_id
         ), noted AS (
             INSERT INTO attempts (job_id, attempt, builder_id) SELECT id, attempt, builder_id FROM assigned
         )
         UPDATE builder_sessions s SET slots = s.slots - taken.count, in_flight = s.in_flight || taken.attempts
         FROM (SELECT builder_id, count(*)::integer AS count, array_agg(id || '.' || attempt) AS attempts
               FROM assigned GROUP BY builder_id) AS taken
         WHERE s.builder_id = taken.builder_id",
    )
    .bind(&jobs)
    .bind(builders)
    .bind(accept_s)
    .execute(&mut *conn)
    .await?;
    for job in jobs {
        announce(conn, JobId(job)).await?;
    }
    Ok(())
}

/// When the next queued job falls due, if none is due now.
pub async fn next_due(conn: &mut PgConnection) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar("SELECT min(run_at) FROM jobs WHERE state = 'queued' AND run_at > now()")
        .fetch_one(conn)
        .await
}

/// The builder took the job; false if it is no longer its own. Saying so twice changes nothing.
pub async fn accept(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    builder: BuilderId,
    lease_s: i32,
) -> sqlx::Result<bool> {
    let was: Option<String> = sqlx::query_scalar(
        "WITH held AS (SELECT id, state FROM jobs WHERE id = $1 AND attempt = $2 AND builder_id = $3
                       AND state IN ('assigned', 'running')
                       AND EXISTS (SELECT FROM builders WHERE id = $3 AND enabled) FOR UPDATE),
              taken AS (UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now()),
                                        lease_until = now() + make_interval(secs => $4)
                        FROM held WHERE jobs.id = held.id),
              noted AS (UPDATE attempts SET accepted_at = coalesce(accepted_at, now())
                        FROM held WHERE job_id = held.id AND attempt = $2)
         SELECT state FROM held",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(builder.0)
    .bind(lease_s)
    .fetch_optional(&mut *conn)
    .await?;
    if was.as_deref() == Some("assigned") {
        announce(conn, job).await?;
    }
    Ok(was.is_some())
}

/// An attempt that is still its builder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Renewed {
    #[sqlx(try_from = "i64", rename = "id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    /// Somebody wants it cancelled: a message that said so may be lost.
    pub cancel_requested: bool,
}

/// Which of these attempts are still the builder's; their leases are longer now. A disabled builder has none.
pub async fn renew(
    conn: &mut PgConnection,
    builder: BuilderId,
    attempts: &[(JobId, Attempt)],
    lease_s: i32,
) -> sqlx::Result<Vec<Renewed>> {
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        attempts.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    sqlx::query_as(
        "UPDATE jobs j SET lease_until = now() + make_interval(secs => $4)
         FROM unnest($2::bigint[], $3::int[]) AS p (job, attempt)
         WHERE j.id = p.job AND j.attempt = p.attempt AND j.builder_id = $1 AND j.state IN ('assigned', 'running')
         AND EXISTS (SELECT FROM builders WHERE id = $1 AND enabled)
         RETURNING j.id, j.attempt, j.cancel_requested_at IS NOT NULL AS cancel_requested",
    )
    .bind(builder.0)
    .bind(jobs)
    .bind(numbers)
    .bind(lease_s)
    .fetch_all(conn)
    .await
}

/// What a running attempt is at; false if it is no longer the builder's. Late and repeated stages change nothing.
pub async fn set_stage(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    builder: BuilderId,
    stage: Stage,
) -> sqlx::Result<bool> {
    let was: Option<Option<String>> = sqlx::query_scalar(
        "WITH held AS (SELECT id, stage FROM jobs WHERE id = $1 AND attempt = $2 AND builder_id = $3
                       AND state = 'running' FOR UPDATE),
              moved AS (UPDATE jobs SET stage = $4 FROM held WHERE jobs.id = held.id),
              noted AS (UPDATE attempts SET stage = $4 FROM held WHERE job_id = held.id AND attempt = $2)
         SELECT stage FROM held",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(builder.0)
    .bind(stage.as_str())
    .fetch_optional(&mut *conn)
    .await?;
    let Some(was) = was else { return Ok(false) };
    if was.as_deref() != Some(stage.as_str()) {
        announce(conn, job).await?;
    }
    Ok(true)
}
