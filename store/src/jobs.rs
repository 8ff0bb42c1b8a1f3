//! Jobs as people read them. Changes are in [`crate::queue`].

use cratemill_protocol::{
    Attempt, BuilderId, CrateName, FailureClass, Features, JobId, JobState, Kind, Priority, Stage, Target,
    VersionId, bus::JobChanged,
};
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

const SELECT: &str = "
    SELECT j.id, j.version_id, c.name, v.version, j.kind, j.target, j.features, j.priority, j.state, j.stage,
           j.attempt, j.tries, j.run_at, j.builder_id, b.name AS builder_name, j.failure_class, j.failure_message,
           j.parent_id, j.created_at, j.started_at, j.finished_at
    FROM jobs j JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id
    LEFT JOIN builders b ON b.id = j.builder_id
    WHERE ($1::bigint IS NULL OR j.id = $1) AND ($2::bigint IS NULL OR j.id < $2)
      AND ($3::text IS NULL OR j.state = $3) AND ($4::text IS NULL OR c.canonical = $4)
      AND ($5::bigint IS NULL OR j.version_id = $5)
    ORDER BY j.id DESC LIMIT $6";

pub async fn find(conn: &mut PgConnection, id: JobId) -> sqlx::Result<Option<Job>> {
    select(conn, Some(id), None, &Filter::default(), 1).await.map(|mut jobs| jobs.pop())
}

/// A page of jobs, the newest first, those before the id `before`.
pub async fn page(
    conn: &mut PgConnection,
    filter: &Filter,
    before: Option<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<Job>> {
    select(conn, None, before, filter, limit).await
}

async fn select(
    conn: &mut PgConnection,
    id: Option<JobId>,
    before: Option<JobId>,
    filter: &Filter,
    limit: i64,
) -> sqlx::Result<Vec<Job>> {
    sqlx::query_as(SELECT)
        .bind(id.map(|id| id.0))
        .bind(before.map(|id| id.0))
        .bind(filter.state.map(JobState::as_str))
        .bind(filter.krate.as_ref().map(CrateName::canonical))
        .bind(filter.version.map(|id| id.0))
        .bind(limit)
        .fetch_all(conn)
        .await
}

/// How many queued jobs are ahead of this one by priority and time, plus one; none if it is not queued. Crates take turns,
/// so one of a crate with many jobs may be later, and another sooner.
pub async fn queue_position(conn: &mut PgConnection, id: JobId) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM jobs o WHERE o.state = 'queued'
                 AND (o.priority, o.run_at, o.id) <= (j.priority, j.run_at, j.id))
         FROM jobs j WHERE j.id = $1 AND j.state = 'queued'",
    )
    .bind(id.0)
    .fetch_optional(conn)
    .await
}

/// The job as an event says it.
pub(crate) async fn changed(conn: &mut PgConnection, id: JobId) -> sqlx::Result<Option<JobChanged>> {
    let Some(job) = find(conn, id).await? else { return Ok(None) };
    let done = job.state.is_final();
    Ok(Some(JobChanged {
        job: job.id,
        krate: job.krate,
        version: job.version,
        kind: job.kind,
        target: job.target,
        features: job.features,
        priority: job.priority,
        state: job.state,
        attempt: job.attempt,
        stage: job.stage.and_then(|stage| stage.parse::<Stage>().ok()).filter(|_| !done),
        builder: job.builder_id.map(BuilderId),
        failure: job.failure_class.and_then(|class| class.parse::<FailureClass>().ok()),
        message: job.failure_message,
    }))
}
