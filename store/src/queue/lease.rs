//! From the queue to a builder: who gets which job, and for how long.

use super::{
    changes::{Subject, subject, with_builder},
    line::Candidate,
};
use crate::outbox;
use cratemill_protocol::{Attempt, BuilderId, JobId, JobState, Stage, bus::JobChanged};
use sqlx::PgConnection;
use std::collections::HashSet;

/// Leases candidates to builders until they accept, for `accept_s`, and takes a slot of theirs for each. Returns those
/// that were still waiting: others were cancelled, or given to a builder by somebody else. The caller has locked the
/// builders' sessions.
pub async fn assign(
    conn: &mut PgConnection,
    pairs: &[(&Candidate, BuilderId)],
    accept_s: i32,
) -> sqlx::Result<HashSet<JobId>> {
    // In one order, so that two dispatchers whose candidates come in different orders never wait for each other.
    let mut pairs = pairs.to_vec();
    pairs.sort_unstable_by_key(|(job, _)| job.id);
    let (subjects, payloads) =
        outbox::encode_jobs(pairs.iter().map(|(job, builder)| assigned(job, *builder)));
    // One statement for all that follows: a lone job waits for each way to the database and back.
    let leased: Vec<i64> = sqlx::query_scalar(
        "WITH gone AS (
             DELETE FROM queue q USING unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::bytea[])
                                       AS p (job, attempt, builder, subject, payload)
             WHERE q.job_id = p.job AND q.attempt = p.attempt AND q.turn IS NOT NULL
             RETURNING q.*, p.builder, p.subject, p.payload
         ), leased AS (
             INSERT INTO leases (job_id, attempt, builder_id, version_id, crate_id, krate, version, sha256, kind,
                                 target, features, priority, run_at, tries, started_at, lease_until)
             SELECT job_id, attempt + 1, builder, version_id, crate_id, krate, version, sha256, kind, target, features,
                    priority, run_at, tries, started_at, now() + make_interval(secs => $6)
             FROM gone
         ), taken AS (
             UPDATE builder_sessions s SET slots = s.slots - t.count, in_flight = s.in_flight || t.names
             FROM (SELECT builder, count(*)::integer AS count, array_agg(format('%s.%s', job_id, attempt + 1)) AS names
                   FROM gone GROUP BY builder) AS t
             WHERE s.builder_id = t.builder
         ), said AS (
             INSERT INTO outbox (subjects, payloads)
             SELECT array_agg(subject), array_agg(payload) FROM gone HAVING count(*) > 0
         )
         SELECT job_id FROM gone",
    )
    .bind(pairs.iter().map(|(job, _)| job.id.0).collect::<Vec<_>>())
    .bind(pairs.iter().map(|(job, _)| job.attempt.0).collect::<Vec<_>>())
    .bind(pairs.iter().map(|(_, builder)| builder.0).collect::<Vec<_>>())
    .bind(subjects)
    .bind(payloads)
    .bind(accept_s)
    .fetch_all(&mut *conn)
    .await?;
    Ok(leased.into_iter().map(JobId).collect())
}

fn assigned(job: &Candidate, builder: BuilderId) -> JobChanged {
    let subject = Subject {
        job: job.id,
        attempt: Attempt(job.attempt.0 + 1),
        krate: job.krate.clone(),
        version: job.version.clone(),
        kind: job.kind,
        target: job.target.clone(),
        features: job.features.clone(),
        priority: job.priority,
    };
    with_builder(subject.becomes(JobState::Assigned), builder, None)
}

/// A builder took a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Accept {
    pub job: JobId,
    pub attempt: Attempt,
    pub builder: BuilderId,
}

/// The builder took the job; false if it is no longer its own. Saying so twice changes nothing.
pub async fn accept(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    builder: BuilderId,
    lease_s: i32,
) -> sqlx::Result<bool> {
    let held = accept_all(conn, &[Accept { job, attempt, builder }], lease_s).await?;
    Ok(!held.is_empty())
}

/// Builders took jobs; returns those that are still their own. Saying so twice changes nothing.
pub async fn accept_all(
    conn: &mut PgConnection,
    accepts: &[Accept],
    lease_s: i32,
) -> sqlx::Result<HashSet<Accept>> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        subject: Subject,
        builder_id: i64,
        first: bool,
    }
    // `accepted_at` is the transaction's own time where this statement has set it.
    let rows: Vec<Row> = sqlx::query_as(concat!(
        "UPDATE leases l SET accepted_at = coalesce(l.accepted_at, now()), started_at = coalesce(l.started_at, now()),
                             lease_until = now() + make_interval(secs => $4)
         FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS p (job, attempt, builder)
         WHERE l.job_id = p.job AND l.attempt = p.attempt AND l.builder_id = p.builder
           AND EXISTS (SELECT FROM builders WHERE id = p.builder AND enabled)
         RETURNING ",
        subject!("l"),
        ", l.builder_id, l.accepted_at = now() AS first"
    ))
    .bind(accepts.iter().map(|of| of.job.0).collect::<Vec<_>>())
    .bind(accepts.iter().map(|of| of.attempt.0).collect::<Vec<_>>())
    .bind(accepts.iter().map(|of| of.builder.0).collect::<Vec<_>>())
    .bind(lease_s)
    .fetch_all(&mut *conn)
    .await?;
    let held = rows
        .iter()
        .map(|row| Accept {
            job: row.subject.job,
            attempt: row.subject.attempt,
            builder: BuilderId(row.builder_id),
        })
        .collect();
    let changes = rows
        .into_iter()
        .filter(|row| row.first)
        .map(|row| with_builder(row.subject.becomes(JobState::Running), BuilderId(row.builder_id), None));
    outbox::jobs_changed(conn, changes).await?;
    Ok(held)
}

/// An attempt that is still its builder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Renewed {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    /// Somebody wants it cancelled: a message that said so may be lost.
    pub cancel_requested: bool,
}

/// Which of these attempts are still the builder's; their leases are longer now. A disabled builder has none. Locks leases
/// in the order of their jobs, as acceptances do.
pub async fn renew(
    conn: &mut PgConnection,
    builder: BuilderId,
    attempts: &[(JobId, Attempt)],
    lease_s: i32,
) -> sqlx::Result<Vec<Renewed>> {
    let (jobs, numbers): (Vec<i64>, Vec<i32>) =
        attempts.iter().map(|(job, attempt)| (job.0, attempt.0)).unzip();
    sqlx::query_as(
        "WITH held AS (
             SELECT l.job_id FROM leases l
             JOIN unnest($2::bigint[], $3::int[]) AS p (job, attempt) ON l.job_id = p.job AND l.attempt = p.attempt
             WHERE l.builder_id = $1 AND EXISTS (SELECT FROM builders WHERE id = $1 AND enabled)
             ORDER BY l.job_id FOR UPDATE OF l
         )
         UPDATE leases l SET lease_until = now() + make_interval(secs => $4)
         FROM held WHERE l.job_id = held.job_id
         RETURNING l.job_id, l.attempt, l.cancel_requested_at IS NOT NULL AS cancel_requested",
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
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        subject: Subject,
        was: Option<String>,
    }
    let row: Option<Row> = sqlx::query_as(concat!(
        "WITH held AS (SELECT job_id, stage FROM leases WHERE job_id = $1 AND attempt = $2 AND builder_id = $3
                       AND accepted_at IS NOT NULL FOR UPDATE)
         UPDATE leases l SET stage = $4 FROM held WHERE l.job_id = held.job_id RETURNING ",
        subject!("l"),
        ", held.stage AS was"
    ))
    .bind(job.0)
    .bind(attempt.0)
    .bind(builder.0)
    .bind(stage.as_str())
    .fetch_optional(&mut *conn)
    .await?;
    let Some(Row { subject, was }) = row else { return Ok(false) };
    if was.as_deref() != Some(stage.as_str()) {
        let changed = with_builder(subject.becomes(JobState::Running), builder, Some(stage));
        outbox::jobs_changed(conn, [changed]).await?;
    }
    Ok(true)
}
