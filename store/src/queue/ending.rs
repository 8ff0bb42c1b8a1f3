//! How an attempt ends, and what becomes of its job.

use super::changes::{Subject, subject, with_builder, with_failure};
use crate::outbox;
use cratemill_protocol::{
    Attempt, BuilderId, FailureClass, Features, JobId, JobState, Kind, Outcome, Priority, Target, VersionId,
};
use sqlx::PgConnection;
use std::collections::HashSet;

/// A job whose row the transaction holds, so that its attempt cannot change under the caller.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Held {
    #[sqlx(try_from = "i64", rename = "job_id")]
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
            "SELECT job_id, attempt, builder_id, version_id, kind, target, features, priority, tries,
                    accepted_at IS NOT NULL AS accepted, cancel_requested_at IS NOT NULL AS cancel_requested
             FROM leases ",
            $rest
        )
    };
}

/// Locks the job if this attempt still has it.
pub async fn hold(conn: &mut PgConnection, job: JobId, attempt: Attempt) -> sqlx::Result<Option<Held>> {
    sqlx::query_as(select_held!("WHERE job_id = $1 AND attempt = $2 FOR UPDATE"))
        .bind(job.0)
        .bind(attempt.0)
        .fetch_optional(conn)
        .await
}

/// Attempts whose lease ran out: their builder is gone. Reads all leases, which are as many as builders have slots.
pub async fn expired(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Held>> {
    sqlx::query_as(select_held!(
        "WHERE lease_until < now() ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED"
    ))
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Attempts that were accepted more than `after_s` ago, whatever their builder says of them.
pub async fn overdue(conn: &mut PgConnection, after_s: i64, limit: i64) -> sqlx::Result<Vec<Held>> {
    sqlx::query_as(select_held!(
        "WHERE accepted_at < now() - make_interval(secs => $1::bigint)
         ORDER BY accepted_at LIMIT $2 FOR UPDATE SKIP LOCKED"
    ))
    .bind(after_s)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// How an attempt itself ended, whatever that means for its job.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    pub outcome: &'a Outcome,
    /// The number of the builder's last event, where it said so.
    pub last_seq: Option<u64>,
}

impl Ended<'_> {
    fn message(&self) -> Option<&str> {
        match self.outcome {
            Outcome::Failed { message, .. } => Some(message),
            Outcome::Succeeded { .. } | Outcome::Cancelled => None,
        }
    }

    fn timings(&self) -> Option<serde_json::Value> {
        match self.outcome {
            Outcome::Succeeded { timings } | Outcome::Failed { timings, .. } => {
                serde_json::to_value(timings).ok()
            }
            Outcome::Cancelled => None,
        }
    }

    fn last_seq(&self) -> Option<i64> {
        self.last_seq.and_then(|seq| i64::try_from(seq).ok())
    }
}

/// The name under which an attempt's end is remembered.
pub fn result_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed { class, .. } => class.as_str(),
        Outcome::Cancelled => "cancelled",
    }
}

/// How a job ends for good.
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

    fn class(&self) -> Option<FailureClass> {
        match self {
            Self::Failed { class, .. } => Some(*class),
            Self::Succeeded | Self::Cancelled => None,
        }
    }
}

/// An attempt that ends, and its job with it.
#[derive(Debug, Clone)]
pub struct Ending<'a> {
    pub job: JobId,
    pub attempt: Attempt,
    pub builder: BuilderId,
    pub end: End<'a>,
    pub ended: Ended<'a>,
}

impl Ending<'_> {
    fn message(&self) -> Option<&str> {
        match self.end {
            End::Failed { message, .. } => Some(message),
            End::Succeeded | End::Cancelled => self.ended.message(),
        }
    }
}

pub async fn finish(
    conn: &mut PgConnection,
    held: &Held,
    end: End<'_>,
    ended: Ended<'_>,
) -> sqlx::Result<()> {
    let ending = Ending { job: held.id, attempt: held.attempt, builder: held.builder, end, ended };
    end_all(conn, &[ending], true).await.map(drop)
}

/// Ends attempts that their builders still have, and returns which those were. Unless `even_if_cancelled`, a job that
/// somebody wants cancelled is left for whoever decides what becomes of it.
pub async fn end_all(
    conn: &mut PgConnection,
    endings: &[Ending<'_>],
    even_if_cancelled: bool,
) -> sqlx::Result<HashSet<(JobId, Attempt)>> {
    // In one order, so that nobody who ends or accepts several waits for another.
    let mut endings: Vec<_> = endings.iter().collect();
    endings.sort_unstable_by_key(|of| (of.job, of.attempt));
    let subjects: Vec<Subject> = sqlx::query_as(concat!(
        "WITH endings AS (
             SELECT * FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
                                  $8::jsonb[], $9::bigint[])
                  AS e (job, number, builder, state, failure_class, message, result, timings, last_seq)
         ), gone AS (
             DELETE FROM leases l USING endings e
             WHERE l.job_id = e.job AND l.attempt = e.number AND l.builder_id = e.builder
               AND ($10 OR l.cancel_requested_at IS NULL)
             RETURNING l.*, e.state, e.failure_class, e.message, e.result, e.timings, e.last_seq
         ), ended AS (
             INSERT INTO finished_jobs (job_id, state, priority, run_at, attempt, tries, builder_id, assigned_at, accepted_at,
                                        started_at, result, failure_class, message, stage, timings, last_seq)
             SELECT job_id, state, priority, run_at, attempt, tries, builder_id, assigned_at, accepted_at,
                    started_at, result, failure_class, message, stage, timings, last_seq
             FROM gone
         )
         SELECT ",
        subject!("gone"),
        " FROM gone"
    ))
    .bind(endings.iter().map(|of| of.job.0).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.attempt.0).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.builder.0).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.end.state().as_str()).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.end.class().map(FailureClass::as_str)).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.message()).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| result_name(of.ended.outcome)).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.ended.timings()).collect::<Vec<_>>())
    .bind(endings.iter().map(|of| of.ended.last_seq()).collect::<Vec<_>>())
    .bind(even_if_cancelled)
    .fetch_all(&mut *conn)
    .await?;
    let mut gone: std::collections::HashMap<_, _> =
        subjects.into_iter().map(|subject| ((subject.job, subject.attempt), subject)).collect();
    let ended = gone.keys().copied().collect();
    let changes = endings.iter().filter_map(|of| {
        let subject = gone.remove(&(of.job, of.attempt))?;
        let changed = with_builder(subject.becomes(of.end.state()), of.builder, None);
        let class = of.end.class();
        Some(with_failure(changed, class, class.and(of.message()).map(str::to_owned)))
    });
    outbox::jobs_changed(conn, changes).await?;
    Ok(ended)
}

/// Puts a held job back into the queue, for `delay_s` from now. Only what a builder took counts as a try.
pub async fn retry_later(
    conn: &mut PgConnection,
    held: &Held,
    (class, message): (FailureClass, &str),
    delay_s: f64,
    ended: Ended<'_>,
) -> sqlx::Result<()> {
    let subject: Subject = sqlx::query_as(concat!(
        "WITH gone AS (DELETE FROM leases WHERE job_id = $1 AND attempt = $2 RETURNING *),
         kept AS (
             INSERT INTO attempts (job_id, attempt, builder_id, assigned_at, accepted_at, ended_at, result, message, stage,
                                   timings, last_seq)
             SELECT job_id, attempt, builder_id, assigned_at, accepted_at, now(), $6, $7, stage, $8, $9 FROM gone
         ), queued AS (
             INSERT INTO queue (job_id, version_id, crate_id, krate, version, sha256, kind, target, features, priority, run_at,
                                turn, attempt, tries, started_at, failure_class, failure_message)
             SELECT job_id, version_id, crate_id, krate, version, sha256, kind, target, features, priority,
                    now() + make_interval(secs => $3),
                    CASE WHEN $3 <= 0 THEN next_turn(crate_id, target, priority) END,
                    attempt, tries + (accepted_at IS NOT NULL)::integer, started_at, $4, $5
             FROM gone
         )
         SELECT ",
        subject!("gone"),
        " FROM gone"
    ))
    .bind(held.id.0)
    .bind(held.attempt.0)
    .bind(delay_s)
    .bind(class.as_str())
    .bind(message)
    .bind(result_name(ended.outcome))
    .bind(ended.message())
    .bind(ended.timings())
    .bind(ended.last_seq())
    .fetch_one(&mut *conn)
    .await?;
    let changed = with_failure(subject.becomes(JobState::Queued), Some(class), Some(message.to_owned()));
    outbox::jobs_queued(conn, vec![changed]).await
}
