//! The job queue: every change of a job's state, each fenced by the attempt number and announced in the outbox.
//!
//! ```text
//! enqueue      -> queued
//! assign          queued -> assigned       attempt + 1, lease until the builder accepts
//! accept          assigned -> running      lease until the next heartbeat
//! renew           running -> running
//! finish          assigned | running -> succeeded | failed | cancelled
//! retry_later     assigned | running -> queued      run_at later, and a try more if it ran
//! cancel          queued -> cancelled; assigned | running: asks for it
//! ```

use crate::{
    database::{Channel, notify},
    jobs, outbox,
};
use cratemill_protocol::{
    Attempt, BuilderId, FailureClass, Features, JobId, JobState, Kind, Outcome, Priority, Sha256Hex, Stage,
    Target, VersionId,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone)]
pub struct NewJob {
    pub version: VersionId,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    pub priority: Priority,
    /// Not before; now if none.
    pub run_at: Option<OffsetDateTime>,
    pub parent: Option<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    New(JobId),
    /// The same thing is queued or being built already; its priority is raised if the new one is higher.
    Active(JobId),
}

impl Enqueued {
    pub fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Active(id) => id,
        }
    }
}

pub async fn enqueue(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Enqueued> {
    // Another transaction may end the active job between the two statements: then try again.
    for _ in 0..3 {
        if let Some(id) = insert(conn, job).await? {
            announce(conn, id).await?;
            notify(conn, Channel::Jobs).await?;
            return Ok(Enqueued::New(id));
        }
        if let Some(id) = raise(conn, job).await? {
            notify(conn, Channel::Jobs).await?;
            return Ok(Enqueued::Active(id));
        }
    }
    Err(sqlx::Error::RowNotFound)
}

async fn insert(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<JobId>> {
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO jobs (version_id, kind, target, features, priority, run_at, parent_id)
         VALUES ($1, $2, $3, $4, $5, coalesce($6, now()), $7)
         ON CONFLICT (version_id, kind, target, features) WHERE state IN ('queued', 'assigned', 'running')
         DO NOTHING RETURNING id",
    )
    .bind(job.version.0)
    .bind(job.kind.as_str())
    .bind(&*job.target)
    .bind(job.features.to_string())
    .bind(job.priority.rank())
    .bind(job.run_at)
    .bind(job.parent.map(|id| id.0))
    .fetch_optional(conn)
    .await?;
    Ok(id.map(JobId))
}

/// A job that is asked for again runs at the higher of both priorities and, before its first attempt, at the earlier of
/// both times.
async fn raise(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<JobId>> {
    let id: Option<i64> = sqlx::query_scalar(
        "UPDATE jobs SET priority = least(priority, $5),
                         run_at = CASE WHEN attempt = 0 THEN least(run_at, coalesce($6, now())) ELSE run_at END
         WHERE version_id = $1 AND kind = $2 AND target = $3 AND features = $4
           AND state IN ('queued', 'assigned', 'running') RETURNING id",
    )
    .bind(job.version.0)
    .bind(job.kind.as_str())
    .bind(&*job.target)
    .bind(job.features.to_string())
    .bind(job.priority.rank())
    .bind(job.run_at)
    .fetch_optional(conn)
    .await?;
    Ok(id.map(JobId))
}

/// A queued job that could run now, and what a builder needs to run it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Candidate {
    #[sqlx(try_from = "i64")]
    pub id: JobId,
    /// The number of its newest attempt; the next is one more.
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    #[sqlx(rename = "name", try_from = "String")]
    pub krate: cratemill_protocol::CrateName,
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

/// Leases candidates, whose rows the caller has locked, to builders: until they accept, for `accept_s`.
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
         )
         INSERT INTO attempts (job_id, attempt, builder_id) SELECT id, attempt, builder_id FROM assigned",
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

/// A job whose row the transaction holds, so that its attempt cannot change under the caller.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Held {
    #[sqlx(try_from = "i64")]
    pub id: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    #[sqlx(try_from = "i64", rename = "builder_id")]
    pub builder: BuilderId,
    #[sqlx(try_from = "i64", rename = "version_id")]
    pub version: VersionId,
    #[sqlx(try_from = "String")]
    pub kind: Kind,
    #[sqlx(try_from = "String")]
    pub target: Target,
    #[sqlx(try_from = "String")]
    pub features: Features,
    #[sqlx(try_from = "i16")]
    pub priority: Priority,
    pub tries: i32,
    /// Its builder took it.
    pub accepted: bool,
    pub cancel_requested: bool,
}

macro_rules! select_held {
    ($rest:literal) => {
        concat!(
            "SELECT j.id, j.attempt, j.builder_id, j.version_id, j.kind, j.target, j.features, j.priority, j.tries,
                    j.state = 'running' AS accepted, j.cancel_requested_at IS NOT NULL AS cancel_requested
             FROM jobs j ",
            $rest
        )
    };
}

/// Locks the job if this attempt still has it.
pub async fn hold(conn: &mut PgConnection, job: JobId, attempt: Attempt) -> sqlx::Result<Option<Held>> {
    sqlx::query_as(select_held!(
        "WHERE j.state IN ('assigned', 'running') AND j.id = $1 AND j.attempt = $2 FOR UPDATE"
    ))
    .bind(job.0)
    .bind(attempt.0)
    .fetch_optional(conn)
    .await
}

/// Attempts whose lease ran out: their builder is gone.
pub async fn expired(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Held>> {
    sqlx::query_as(select_held!(
        "WHERE j.state IN ('assigned', 'running') AND j.lease_until < now()
         ORDER BY j.lease_until LIMIT $1 FOR UPDATE SKIP LOCKED"
    ))
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Attempts that were accepted more than `after_s` ago, whatever their builder says of them.
pub async fn overdue(conn: &mut PgConnection, after_s: i64, limit: i64) -> sqlx::Result<Vec<Held>> {
    sqlx::query_as(select_held!(
        "JOIN attempts a ON a.job_id = j.id AND a.attempt = j.attempt
         WHERE j.state IN ('assigned', 'running') AND a.accepted_at < now() - make_interval(secs => $1::bigint)
         ORDER BY a.accepted_at LIMIT $2 FOR UPDATE OF j SKIP LOCKED"
    ))
    .bind(after_s)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// How a held job ends for good.
#[derive(Debug, Clone)]
pub enum End<'a> {
    Succeeded,
    Failed { class: FailureClass, message: &'a str },
    Cancelled,
}

impl End<'_> {
    pub fn state(&self) -> JobState {
        match self {
            Self::Succeeded => JobState::Succeeded,
            Self::Failed { .. } => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

pub async fn finish(conn: &mut PgConnection, held: &Held, end: &End<'_>) -> sqlx::Result<()> {
    let failure = match end {
        End::Failed { class, message } => Some((class.as_str(), *message)),
        End::Succeeded | End::Cancelled => None,
    };
    sqlx::query(
        "UPDATE jobs SET state = $2, finished_at = now(), lease_until = NULL, failure_class = $3, failure_message = $4
         WHERE id = $1",
    )
    .bind(held.id.0)
    .bind(end.state().as_str())
    .bind(failure.map(|(class, _)| class))
    .bind(failure.map(|(_, message)| message))
    .execute(&mut *conn)
    .await?;
    announce(conn, held.id).await
}

/// Puts a held job back into the queue, for `delay_s` from now. Only what a builder took counts as a try.
pub async fn retry_later(
    conn: &mut PgConnection,
    held: &Held,
    class: FailureClass,
    message: &str,
    delay_s: f64,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET state = 'queued', tries = tries + $5, run_at = now() + make_interval(secs => $2),
                         lease_until = NULL, builder_id = NULL, stage = NULL, failure_class = $3, failure_message = $4
         WHERE id = $1",
    )
    .bind(held.id.0)
    .bind(delay_s)
    .bind(class.as_str())
    .bind(message)
    .bind(i32::from(held.accepted))
    .execute(&mut *conn)
    .await?;
    announce(conn, held.id).await?;
    notify(conn, Channel::Jobs).await
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It was waiting: it is cancelled now.
    Done,
    /// It is being built: its builder is to be told.
    Asked { builder: BuilderId, attempt: Attempt },
    /// It had ended before.
    Final(JobState),
}

pub async fn cancel(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Option<Cancelled>> {
    let row: Option<(String, Option<i64>, i32)> =
        sqlx::query_as("SELECT state, builder_id, attempt FROM jobs WHERE id = $1 FOR UPDATE")
            .bind(job.0)
            .fetch_optional(&mut *conn)
            .await?;
    let Some((state, builder, attempt)) = row else { return Ok(None) };
    let state: JobState = state.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    match (state, builder) {
        (JobState::Queued, _) => {
            sqlx::query("UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = $1")
                .bind(job.0)
                .execute(&mut *conn)
                .await?;
            announce(conn, job).await?;
            Ok(Some(Cancelled::Done))
        }
        (JobState::Assigned | JobState::Running, Some(builder)) => {
            sqlx::query(
                "UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = $1",
            )
            .bind(job.0)
            .execute(conn)
            .await?;
            Ok(Some(Cancelled::Asked { builder: BuilderId(builder), attempt: Attempt(attempt) }))
        }
        (state, _) => Ok(Some(Cancelled::Final(state))),
    }
}

/// Withdraws what is queued for a version that was yanked or blocked.
pub async fn withdraw(conn: &mut PgConnection, version: VersionId) -> sqlx::Result<Vec<JobId>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE version_id = $1 AND state = 'queued' RETURNING id",
    )
    .bind(version.0)
    .fetch_all(&mut *conn)
    .await?;
    for id in &ids {
        announce(conn, JobId(*id)).await?;
    }
    Ok(ids.into_iter().map(JobId).collect())
}

/// How long the queue is, and how many jobs builders have.
pub async fn lengths(conn: &mut PgConnection) -> sqlx::Result<(u64, u64)> {
    let (queued, running): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state <> 'queued')
         FROM jobs WHERE state IN ('queued', 'assigned', 'running')",
    )
    .fetch_one(conn)
    .await?;
    Ok((queued.unsigned_abs(), running.unsigned_abs()))
}

/// The name under which an attempt's end is remembered.
pub fn result_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed { class, .. } => class.as_str(),
        Outcome::Cancelled => "cancelled",
    }
}

async fn announce(conn: &mut PgConnection, job: JobId) -> sqlx::Result<()> {
    if let Some(changed) = jobs::changed(conn, job).await? {
        outbox::job_changed(conn, changed).await?;
    }
    Ok(())
}
