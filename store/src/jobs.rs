//! Jobs as people read them. Changes are in [`crate::queue`].

use cratemill_protocol::{Attempt, CrateName, Features, JobId, JobState, Kind, Priority, Target, VersionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Job {
    #[sqlx(try_from = "i64")]
    pub id: JobId,
    #[sqlx(try_from = "i64", rename = "version_id")]
    pub version_id: VersionId,
    #[sqlx(rename = "name", try_from = "String")]
    pub krate: CrateName,
    pub version: String,
    #[sqlx(try_from = "String")]
    pub kind: Kind,
    #[sqlx(try_from = "String")]
    pub target: Target,
    #[sqlx(try_from = "String")]
    pub features: Features,
    #[sqlx(try_from = "i16")]
    pub priority: Priority,
    #[sqlx(try_from = "String")]
    pub state: JobState,
    pub stage: Option<String>,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub tries: i32,
    pub run_at: OffsetDateTime,
    pub builder_id: Option<i64>,
    pub builder_name: Option<String>,
    pub failure_class: Option<String>,
    pub failure_message: Option<String>,
    pub parent_id: Option<i64>,
    pub created_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub finished_at: Option<OffsetDateTime>,
}

/// What a list of jobs is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub state: Option<JobState>,
    pub krate: Option<CrateName>,
    pub version: Option<VersionId>,
}

/// `$driver` narrows the jobs to a table that has few of them, or is in their order.
macro_rules! select_jobs {
    ($driver:expr) => {
        concat!(
            "SELECT j.id, j.version_id, c.name, v.version, j.kind, j.target, j.features, j.priority, j.state, j.stage,
                    j.attempt, j.tries, j.run_at, j.builder_id, b.name AS builder_name, j.failure_class, j.failure_message,
                    j.parent_id, j.created_at, j.started_at, j.finished_at
             FROM all_jobs j JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id
             LEFT JOIN builders b ON b.id = j.builder_id ",
            $driver
        )
    };
}

/// As [`select_jobs`], for a page of those that the driver has.
macro_rules! select_page {
    ($driver:literal) => {
        select_jobs!(concat!(
            $driver,
            " WHERE ($1::bigint IS NULL OR j.id < $1) AND ($2::text IS NULL OR c.canonical = $2)
                AND ($3::bigint IS NULL OR j.version_id = $3)
              ORDER BY j.id DESC LIMIT $4"
        ))
    };
}

pub async fn find(conn: &mut PgConnection, id: JobId) -> sqlx::Result<Option<Job>> {
    sqlx::query_as(select_jobs!("WHERE j.id = $1")).bind(id.0).fetch_optional(conn).await
}

/// A page of jobs, the newest first, those before the id `before`.
pub async fn page(
    conn: &mut PgConnection,
    filter: &Filter,
    before: Option<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<Job>> {
    let sql = match filter.state {
        None => select_page!(""),
        Some(JobState::Queued) => select_page!("JOIN queue d ON d.job_id = j.id"),
        Some(JobState::Assigned) => {
            select_page!("JOIN leases d ON d.job_id = j.id AND d.accepted_at IS NULL")
        }
        Some(JobState::Running) => {
            select_page!("JOIN leases d ON d.job_id = j.id AND d.accepted_at IS NOT NULL")
        }
        Some(JobState::Succeeded) => {
            select_page!("JOIN finished_jobs d ON d.job_id = j.id AND d.state = 'succeeded'")
        }
        Some(JobState::Failed) => {
            select_page!("JOIN finished_jobs d ON d.job_id = j.id AND d.state = 'failed'")
        }
        Some(JobState::Cancelled) => {
            select_page!("JOIN finished_jobs d ON d.job_id = j.id AND d.state = 'cancelled'")
        }
    };
    sqlx::query_as(sql)
        .bind(before.map(|id| id.0))
        .bind(filter.krate.as_ref().map(CrateName::canonical))
        .bind(filter.version.map(|id| id.0))
        .bind(limit)
        .fetch_all(conn)
        .await
}

/// So far a place in the queue is counted; beyond it the exact number helps nobody and costs more and more to find.
pub const LAST_POSITION: i64 = 10_000;

/// The place of a queued job in the line of its target, from 1; none if it is not queued. One that is not due yet comes
/// after all that are.
pub async fn queue_position(conn: &mut PgConnection, id: JobId) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "SELECT CASE WHEN q.turn IS NULL THEN 1 ELSE 0 END + (
                    SELECT count(*) FROM (
                        SELECT FROM queue o WHERE o.target = q.target AND o.turn IS NOT NULL
                        AND (q.turn IS NULL OR (o.priority, o.turn, o.job_id) <= (q.priority, q.turn, q.job_id)) LIMIT $2
                    ) AS before)
         FROM queue q WHERE q.job_id = $1",
    )
    .bind(id.0)
    .bind(LAST_POSITION)
    .fetch_optional(conn)
    .await
}
