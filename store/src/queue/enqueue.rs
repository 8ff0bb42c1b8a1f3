//! Into the queue: each thing once, and again at the higher of two priorities.

use super::changes::{Subject, subject};
use crate::{
    database::{Channel, notify},
    outbox,
};
use cratemill_protocol::{Features, JobId, JobState, Kind, Priority, Target, VersionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// Jobs per statement: its arrays stay small beside the rows they become.
const BATCH: usize = 1_000;
/// Another transaction may move a job between two statements: then it is looked for again.
const LOOKS: usize = 3;

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
    for _ in 0..LOOKS {
        if let Some(id) = add(conn, std::slice::from_ref(job)).await?.first() {
            return Ok(Enqueued::New(*id));
        }
        if let Some(id) = raise(conn, job).await? {
            notify(conn, Channel::Jobs).await?;
            return Ok(Enqueued::Active(id));
        }
    }
    Err(sqlx::Error::RowNotFound)
}

/// Queues what is not queued or being built already; returns the new jobs. Those of one crate come in the order of their
/// versions.
pub async fn enqueue_all(conn: &mut PgConnection, jobs: &[NewJob]) -> sqlx::Result<Vec<JobId>> {
    // In the order of their keys, so that two who queue the same things never wait for each other.
    let mut jobs = jobs.to_vec();
    jobs.sort_by_cached_key(|job| {
        (job.version, job.kind.as_str(), job.target.clone(), job.features.to_string(), job.priority.rank())
    });
    jobs.dedup_by(|next, first| {
        (first.version, first.kind, &first.target, &first.features)
            == (next.version, next.kind, &next.target, &next.features)
    });
    let mut added = Vec::with_capacity(jobs.len());
    // In a statement all have one parent; most calls have no other.
    for siblings in jobs.chunk_by(|one, next| one.parent == next.parent) {
        for batch in siblings.chunks(BATCH) {
            added.extend(add(conn, batch).await?);
        }
    }
    Ok(added)
}

/// Each thing once, and all of one parent.
async fn add(conn: &mut PgConnection, jobs: &[NewJob]) -> sqlx::Result<Vec<JobId>> {
    let mut added = insert(conn, jobs).await?;
    if added.is_empty() {
        return Ok(Vec::new());
    }
    // The index keeps what waits apart; what a builder has is looked for after that, when nobody can move a job of the
    // same thing back past our row.
    let ids: Vec<i64> = added.iter().map(|added| added.job.0).collect();
    let leased = take_back_leased(conn, &ids).await?;
    added.retain(|added| !leased.contains(&added.job));
    let ids = added.iter().map(|added| added.job).collect();
    if !added.is_empty() {
        outbox::jobs_queued(conn, added.into_iter().map(|added| added.becomes(JobState::Queued)).collect())
            .await?;
    }
    Ok(ids)
}

/// Turns are dealt as by `next_turn`, whose parts are looked for once per line and once per crate here.
async fn insert(conn: &mut PgConnection, jobs: &[NewJob]) -> sqlx::Result<Vec<Subject>> {
    // What a version is, is looked up one by one: a plan that reads all of them is never the better one.
    sqlx::query_as(concat!(
        "WITH added AS (
             INSERT INTO queue (job_id, version_id, crate_id, krate, version, sha256, kind, target, features, priority,
                                run_at, turn)
             SELECT nextval('jobs_id_seq'), version_id, crate_id, krate, version, sha256, kind, target, features, priority,
                    due_at,
                    CASE WHEN due_at <= now()
                         THEN greatest(0, max(head) OVER line, max(own) OVER crate) + of_crate - 1 END
             FROM (
                 SELECT *,
                        CASE WHEN of_line = 1 THEN (
                            SELECT turn FROM queue q WHERE (q.target, q.priority) = (placed.target, placed.priority)
                            AND turn IS NOT NULL ORDER BY turn LIMIT 1) END AS head,
                        CASE WHEN of_crate = 1 THEN (
                            SELECT turn + 1 FROM queue q
                            WHERE (q.crate_id, q.target, q.priority) = (placed.crate_id, placed.target, placed.priority)
                            AND turn IS NOT NULL ORDER BY turn DESC LIMIT 1) END AS own
                 FROM (
                     SELECT a.*, v.*, coalesce(a.asked_at, now()) AS due_at,
                            row_number() OVER (PARTITION BY a.target, a.priority ORDER BY v.crate_id, a.nth) AS of_line,
                            row_number() OVER (PARTITION BY a.target, a.priority, v.crate_id ORDER BY a.nth) AS of_crate
                     FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[])
                          WITH ORDINALITY AS a (version_id, kind, target, features, priority, asked_at, nth)
                     CROSS JOIN LATERAL (
                         SELECT v.crate_id, c.name AS krate, v.version, v.sha256
                         FROM versions v JOIN crates c ON c.id = v.crate_id WHERE v.id = a.version_id LIMIT 1
                     ) AS v
                 ) AS placed
             ) AS dealt
             WINDOW line AS (PARTITION BY target, priority), crate AS (PARTITION BY target, priority, crate_id)
             ORDER BY nth
             ON CONFLICT (version_id, kind, target, features) DO NOTHING RETURNING *
         ), noted AS (
             INSERT INTO jobs (id, version_id, kind, target, features, parent_id) OVERRIDING SYSTEM VALUE
             SELECT job_id, version_id, kind, target, features, $7 FROM added
         )
         SELECT ",
        subject!("added"),
        " FROM added ORDER BY job_id"
    ))
    .bind(jobs.iter().map(|job| job.version.0).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| &*job.target).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.features.to_string()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.priority.rank()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.run_at).collect::<Vec<_>>())
    .bind(jobs.first().and_then(|job| job.parent).map(|id| id.0))
    .fetch_all(conn)
    .await
}

/// Removes those of the new jobs that a builder has already.
async fn take_back_leased(conn: &mut PgConnection, added: &[i64]) -> sqlx::Result<Vec<JobId>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "WITH gone AS (
             DELETE FROM queue q USING leases l
             WHERE q.job_id = ANY($1) AND l.version_id = q.version_id
               AND (l.kind, l.target, l.features) = (q.kind, q.target, q.features)
             RETURNING q.job_id
         )
         DELETE FROM jobs USING gone WHERE jobs.id = gone.job_id RETURNING jobs.id",
    )
    .bind(added)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(JobId).collect())
}

/// A job that is asked for again runs at the higher of both priorities and, before its first attempt, at the earlier of
/// both times.
async fn raise(conn: &mut PgConnection, job: &NewJob) -> sqlx::Result<Option<JobId>> {
    let id: Option<i64> = sqlx::query_scalar(
        "WITH asked AS (
             SELECT job_id, least(q.priority, $5) AS priority,
                    CASE WHEN q.attempt = 0 THEN least(q.run_at, coalesce($6, now())) ELSE q.run_at END AS run_at
             FROM queue q WHERE version_id = $1 AND kind = $2 AND target = $3 AND features = $4 FOR UPDATE
         ), raised AS (
             UPDATE queue q
             SET priority = a.priority, run_at = a.run_at,
                 turn = CASE WHEN a.run_at > now() THEN NULL
                             WHEN q.turn IS NULL OR a.priority <> q.priority
                                 THEN next_turn(q.crate_id, q.target, a.priority)
                             ELSE q.turn END
             FROM asked a WHERE q.job_id = a.job_id RETURNING q.job_id
         ), kept AS (
             UPDATE leases SET priority = least(priority, $5)
             WHERE version_id = $1 AND kind = $2 AND target = $3 AND features = $4 RETURNING job_id
         )
         SELECT job_id FROM raised UNION ALL SELECT job_id FROM kept",
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
