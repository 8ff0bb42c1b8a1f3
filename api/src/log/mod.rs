//! `GET /api/v1/jobs/{id}/log`: the same bytes before and after the log moved from the bus to the object store.
//!
//! Before, what the bus has at that moment is read, message by message; if the log is archived and purged meanwhile,
//! the archive goes on where the bus left off.

mod archive;
mod live;
mod text;

use crate::{
    App,
    extract::{Path, Query},
    jobs,
    problem::{Body as ProblemBody, Problem, Result},
};
use archive::Archive;
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use cratemill_protocol::{Attempt, JobId};
use cratemill_store::attempts::{self, Log};
use live::Live;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// The newest if not given.
    #[param(value_type = Option<i32>)]
    attempt: Option<Attempt>,
}

/// The log of a job
///
/// Of a job that runs: what there is now. To follow it, use the live plane's topic `job.<id>.log`.
#[utoipa::path(get, operation_id = "get_job_log", path = "/api/v1/jobs/{id}/log", tag = "jobs", params(("id" = i64, Path), LogQuery), responses(
    (status = 200, body = String, content_type = "text/plain; charset=utf-8", description = "the log"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "no such job or attempt"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "try again"),
))]
async fn get(
    State(app): State<App>,
    Path(job): Path<JobId>,
    Query(query): Query<LogQuery>,
    request: HeaderMap,
) -> Result<Response> {
    let mut head = HeaderMap::new();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    head.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let Some(log) = find(&app, job, query.attempt).await? else {
        return Ok((head, Body::empty()).into_response());
    };
    if let Some(object) = log.log_object {
        return archived(&app, &object, head, &request).await;
    }
    if let Some(live) = Live::open(&app.bus, job, log.attempt).await? {
        return Ok((head, text::body(app, live)).into_response());
    }
    // Nothing on the bus: nothing is logged yet, or it was archived a moment ago.
    match find(&app, job, Some(log.attempt)).await?.and_then(|log| log.log_object) {
        Some(object) => archived(&app, &object, head, &request).await,
        None => Ok((head, Body::empty()).into_response()),
    }
}

async fn find(app: &App, job: JobId, attempt: Option<Attempt>) -> Result<Option<Log>> {
    let mut conn = app.pool.acquire().await?;
    let log = attempts::log(&mut conn, job, attempt).await?;
    if log.is_none() {
        jobs::find(&mut conn, job).await?;
        if let Some(attempt) = attempt {
            return Err(Problem::not_found(format!("job {job} has no attempt {attempt}")).at("attempt"));
        }
    }
    Ok(log)
}

/// As it is stored to a client that takes gzip, unpacked on its way to others.
async fn archived(app: &App, object: &str, mut head: HeaderMap, request: &HeaderMap) -> Result<Response> {
    let object = app.objects.get(object, None).await?;
    if archive::takes_gzip(request) {
        head.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        head.insert(header::CONTENT_LENGTH, object.length.into());
        return Ok((head, archive::packed(object.body)).into_response());
    }
    Ok((head, archive::unpacked(Archive::new(object.body, 0))).into_response())
}
