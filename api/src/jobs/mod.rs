//! Jobs: lists and details for everybody, changes for operators.

mod operate;

use crate::{
    App, crates, cursor,
    extract::{Path, Query},
    problem::{Body as ProblemBody, Problem, Result},
    views::{self, Artifact, Job, JobDetail, Page},
};
use axum::{Json, extract::State};
use cratemill_protocol::{CrateName, JobId, JobState};
use cratemill_store::{PgConnection, artifacts, attempts, database, estimates, jobs};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, operate::create))
        .routes(routes!(show))
        .routes(routes!(operate::cancel))
        .routes(routes!(operate::retry))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    #[param(schema_with = views::job_state, required = false)]
    state: Option<JobState>,
    #[param(value_type = Option<String>)]
    #[serde(rename = "crate")]
    krate: Option<CrateName>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// 1 to 100, 50 if not given.
    limit: Option<u8>,
}

/// Jobs, the newest first
#[utoipa::path(get, operation_id = "list_jobs", path = "/api/v1/jobs", tag = "jobs", params(ListQuery), responses(
    (status = 200, body = Page<Job>, description = "a page"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json", description = "bad query"),
))]
async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Json<Page<Job>>> {
    let before = cursor::decode("jobs", query.cursor.as_deref())?;
    let limit = cursor::limit(query.limit)?;
    let filter = jobs::Filter { state: query.state, krate: query.krate, version: None };
    let mut conn = app.pool.acquire().await?;
    let rows = jobs::page(&mut conn, &filter, before, crates::one_more(limit)).await?;
    let (rows, next) = cursor::page(rows, limit, "jobs", |row| row.id);
    Ok(Json(Page { items: rows.into_iter().map(|row| Job::new(row, None, None)).collect(), next }))
}

/// A job, its place in the queue, its attempts and what it made
#[utoipa::path(get, operation_id = "get_job", path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = i64, Path)), responses(
    (status = 200, body = JobDetail, description = "the job"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
))]
async fn show(State(app): State<App>, Path(id): Path<JobId>) -> Result<Json<JobDetail>> {
    let mut conn = database::snapshot(&app.pool).await?;
    let job = find(&mut conn, id).await?;
    let attempts = attempts::of_job(&mut conn, id).await?;
    let mut made = artifacts::of_version(&mut conn, job.version_id).await?;
    made.retain(|artifact| artifact.job_id == id.0);
    let job = view(&mut conn, job).await?;
    Ok(Json(JobDetail {
        job,
        attempts: attempts.into_iter().map(Into::into).collect(),
        artifacts: made.into_iter().map(|row| Artifact::new(row, &app.config.public_url)).collect(),
    }))
}

pub(crate) async fn find(conn: &mut PgConnection, id: JobId) -> Result<jobs::Job> {
    jobs::find(conn, id).await?.ok_or_else(|| Problem::not_found(format!("there is no job {id}")).at("id"))
}

async fn view(conn: &mut PgConnection, job: jobs::Job) -> Result<Job> {
    let position = match job.state {
        JobState::Queued => jobs::queue_position(conn, job.id).await?,
        _ => None,
    };
    let estimate = estimates::of(conn, &job).await?;
    Ok(Job::new(job, position, estimate))
}
