//! What operators do with jobs: enqueue, cancel, retry.
//!
//! A yanked version is not built on request, whatever the priority: its authors withdrew it, and nobody could install
//! the result without knowing. What was built before stays downloadable. A blocked version is not built at all.

use super::{find, view};
use crate::{
    App,
    auth::Operator,
    crates::{find_version, unknown_crate},
    extract::{Json as JsonBody, Path},
    latest::LATEST,
    nodes,
    problem::{Body as ProblemBody, Problem, Result},
    registry::{self, Refresh},
    views::{self, Job},
};
use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use cratemill_protocol::{
    CrateName, Features, JobId, JobState, Kind, Priority, Target, builder::CANCEL_GRACE_S, bus::NodeMessage,
    subjects,
};
use cratemill_store::{
    PgConnection, database,
    queue::{self, Cancelled, Enqueued, NewJob},
    sessions, targets, versions,
};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

/// A job planned for later than this is a mistake in a date.
const MAX_DELAY: Duration = Duration::days(366);

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewJobBody {
    #[schema(value_type = String, example = "hexyl")]
    #[serde(rename = "crate")]
    krate: CrateName,
    /// A version, or `latest`.
    #[schema(example = "latest")]
    version: String,
    #[schema(schema_with = views::kind)]
    kind: Kind,
    /// A target triple; for `metadata` none or `any`.
    #[schema(value_type = Option<String>, example = "x86_64-unknown-linux-gnu")]
    target: Option<Target>,
    /// `default` or `no-default`, then feature names, separated by commas.
    #[serde(default)]
    #[schema(value_type = String)]
    features: Features,
    #[serde(default = "on_demand")]
    #[schema(schema_with = views::priority)]
    priority: Priority,
    /// Not before; now if not given.
    #[serde(default, with = "time::serde::rfc3339::option")]
    run_at: Option<OffsetDateTime>,
}

fn on_demand() -> Priority {
    Priority::OnDemand
}

/// Enqueue a job
///
/// A crate or version that is not known here is looked for in the registry first; for `latest` the registry is asked
/// each time, if it can be. A yanked or blocked version is a conflict.
#[utoipa::path(post, operation_id = "create_job", path = "/api/v1/jobs", tag = "jobs", request_body = NewJobBody, security(("operator" = [])),
    responses(
        (status = 201, body = Job, description = "the job", headers(("location" = String))),
        (status = 200, body = Job, description = "the same thing is queued or being built already"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "not an operator"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "not in the registry"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "yanked or blocked"),
        (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "a field is wrong"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "registry out of reach; or the database: the job may be queued all the same"),
    ))]
pub(super) async fn create(
    State(app): State<App>,
    _: Operator,
    JsonBody(body): JsonBody<NewJobBody>,
) -> Result<Response> {
    let target = check(&body, OffsetDateTime::now_utc())?;
    let mut conn = app.pool.acquire().await?;
    if !target.is_any() && !targets::is_enabled(&mut conn, &target).await? {
        return Err(Problem::invalid("target", format!("this service does not build for {target}")));
    }
    // A registry may take its time: it is not spent with a connection in hand.
    drop(conn);
    let version = resolve(&app, &body.krate, &body.version).await?;
    may_build(&version)?;
    let new = NewJob {
        version: version.id,
        kind: body.kind,
        target,
        features: body.features,
        priority: body.priority,
        run_at: body.run_at,
        parent: None,
    };
    enqueue(&app, &new).await
}

/// What can be said without asking anybody; the target of the job.
fn check(body: &NewJobBody, now: OffsetDateTime) -> Result<Target> {
    if body.version != LATEST && semver::Version::parse(&body.version).is_err() {
        return Err(Problem::invalid("version", "expected a version such as 1.2.3, or latest"));
    }
    if !body.kind.is_supported() {
        return Err(Problem::invalid("kind", format!("no builder makes {} yet", body.kind)));
    }
    if body.run_at.is_some_and(|at| at > now.saturating_add(MAX_DELAY)) {
        return Err(Problem::invalid("run_at", "a job can be planned for at most a year ahead"));
    }
    match (&body.target, body.kind.has_target()) {
        (None, false) => Ok(Target::any()),
        (Some(target), has) if target.is_any() != has => Ok(target.clone()),
        (Some(_), false) => Err(Problem::invalid("target", format!("{} has no target", body.kind))),
        (_, true) => Err(Problem::invalid("target", format!("{} wants a target triple", body.kind))),
    }
}

/// The version as the database knows it, after asking the registry where the database does not know enough.
async fn resolve(app: &App, name: &CrateName, version: &str) -> Result<versions::Version> {
    let known = find_version(&mut *app.pool.acquire().await?, name, version).await;
    match &known {
        Ok(_) if version != LATEST => return known,
        Err(problem) if !problem.is_not_found() => return known,
        _ => {}
    }
    match registry::refresh(&app.bus, name).await {
        Refresh::Done => find_version(&mut *app.pool.acquire().await?, name, version).await,
        Refresh::NotFound => Err(unknown_crate(name)),
        Refresh::Unavailable(why) => known.map_err(|_| Problem::unavailable(why)),
    }
}

fn may_build(version: &versions::Version) -> Result<()> {
    let versions::Version { krate, version: number, .. } = version;
    if version.blocked {
        return Err(Problem::conflict(format!("{krate} {number} is blocked by the operator")).at("version"));
    }
    if version.yanked {
        return Err(Problem::conflict(format!("{krate} {number} is yanked")).at("version"));
    }
    Ok(())
}

async fn enqueue(app: &App, new: &NewJob) -> Result<Response> {
    let mut tx = app.queue.begin().await?;
    let enqueued = queue::enqueue(&mut tx, new).await?;
    tx.commit().await?;
    // Looked up afterwards: a builder need not wait for that. If it fails the job is queued all the same, as it may be with
    // any answer that gets lost: who asks again is told of it while it is active.
    let job = shown(&mut *database::snapshot(&app.pool).await?, enqueued.id()).await?;
    let location = format!("/api/v1/jobs/{}", enqueued.id());
    let status = match enqueued {
        Enqueued::New(_) => StatusCode::CREATED,
        Enqueued::Active(_) => StatusCode::OK,
    };
    Ok((status, [(header::LOCATION, location)], Json(job)).into_response())
}

async fn shown(conn: &mut PgConnection, id: JobId) -> Result<Job> {
    let job = find(conn, id).await?;
    view(conn, job).await
}

/// Cancel a job
///
/// One that is being built is cancelled when its builder says so, or loses its lease. Cancelling twice is no error.
#[utoipa::path(post, operation_id = "cancel_job", path = "/api/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = i64, Path)),
    security(("operator" = [])), responses(
        (status = 200, body = Job, description = "cancelled"),
        (status = 202, body = Job, description = "its builder is asked to stop"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "not an operator"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "it ended before"),
    ))]
pub(super) async fn cancel(
    State(app): State<App>,
    _: Operator,
    Path(id): Path<JobId>,
) -> Result<(StatusCode, Json<Job>)> {
    let mut tx = app.pool.begin().await?;
    let cancelled = queue::cancel(&mut tx, id).await?;
    let job = shown(&mut tx, id).await?;
    let asked = match cancelled {
        Some(Cancelled::Asked { builder, attempt }) => {
            let node = sessions::node_of(&mut tx, builder).await?;
            Some((node, NodeMessage::Cancel { builder, job: id, attempt, grace_s: CANCEL_GRACE_S }))
        }
        Some(Cancelled::Final(state)) if state != JobState::Cancelled => {
            return Err(Problem::conflict(format!("the job is {state}")));
        }
        _ => None,
    };
    tx.commit().await?;
    let Some((node, message)) = asked else { return Ok((StatusCode::OK, Json(job))) };
    if let Some(node) = node {
        nodes::tell(&app.bus, subjects::node(&node), &message).await;
    }
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// Run a job that ended once more, as a new job with this one as its parent
#[utoipa::path(post, operation_id = "retry_job", path = "/api/v1/jobs/{id}/retry", tag = "jobs", params(("id" = i64, Path)),
    security(("operator" = [])), responses(
        (status = 201, body = Job, description = "the job", headers(("location" = String))),
        (status = 200, body = Job, description = "the same thing is queued or being built already"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "not an operator"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "it has not ended, or its version is yanked or blocked"),
    ))]
pub(super) async fn retry(State(app): State<App>, _: Operator, Path(id): Path<JobId>) -> Result<Response> {
    let mut conn = app.pool.acquire().await?;
    let job = find(&mut conn, id).await?;
    if !job.state.is_final() {
        return Err(Problem::conflict(format!(
            "the job is {}: only one that ended can be run again",
            job.state
        )));
    }
    may_build(&find_version(&mut conn, &job.krate, &job.version).await?)?;
    drop(conn);
    let new = NewJob {
        version: job.version_id,
        kind: job.kind,
        target: job.target,
        features: job.features,
        priority: Priority::OnDemand,
        run_at: None,
        parent: Some(job.id),
    };
    enqueue(&app, &new).await
}
