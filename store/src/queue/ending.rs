//! How an attempt ends, and what becomes of its job.

use super::announce;
use crate::database::{Channel, notify};
use cratemill_protocol::{
    Attempt, BuilderId, FailureClass, Features, JobId, JobState, Kind, Priority, Target, VersionId,
};
use sqlx::PgConnection;

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
