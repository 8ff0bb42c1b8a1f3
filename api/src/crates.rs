//! Crates and their versions.

use crate::{
    App, cursor,
    extract::{Path, Query},
    latest::{LATEST, latest},
    problem::{Body as ProblemBody, Problem, Result},
    views::{Artifact, Job, Page, VersionSummary},
};
use axum::{Json, extract::State};
use cratemill_protocol::CrateName;
use cratemill_store::{PgConnection, artifacts, crates, database, downloads, jobs, versions};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Longer than any name of a crate.
const MAX_QUERY_CHARS: usize = 64;
/// The newest jobs of a version that are shown with it.
const VERSION_JOBS: i64 = 100;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(show_version))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Part of the name; case, `-` and `_` make no difference.
    #[serde(default)]
    q: String,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// 1 to 100, 50 if not given.
    limit: Option<u8>,
}

#[derive(Debug, Serialize, ToSchema)]
struct CrateSummary {
    name: String,
    /// When the registry was last asked about it.
    #[serde(with = "time::serde::rfc3339::option")]
    checked_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// Crates this service knows, by name
#[utoipa::path(get, operation_id = "list_crates", path = "/api/v1/crates", tag = "crates", params(ListQuery), responses(
    (status = 200, body = Page<CrateSummary>, description = "a page"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json", description = "bad query"),
))]
async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Json<Page<CrateSummary>>> {
    if query.q.chars().count() > MAX_QUERY_CHARS || query.q.chars().any(char::is_control) {
        let detail = format!("q has at most {MAX_QUERY_CHARS} printable characters");
        return Err(Problem::bad_request(detail).at("q"));
    }
    let after: Option<CrateName> = cursor::decode("crates", query.cursor.as_deref())?;
    let limit = cursor::limit(query.limit)?;
    let mut conn = app.pool.acquire().await?;
    let rows = crates::page(&mut conn, &query.q, after.as_deref(), one_more(limit)).await?;
    let (rows, next) = cursor::page(rows, limit, "crates", |row| row.name.canonical());
    let items = rows.into_iter().map(|row| CrateSummary {
        name: row.name.into(),
        checked_at: row.checked_at,
        created_at: row.created_at,
    });
    Ok(Json(Page { items: items.collect(), next }))
}

/// One item more than the page has tells whether there is another page.
pub(crate) fn one_more(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1)
}

#[derive(Debug, Serialize, ToSchema)]
struct Crate {
    name: String,
    /// The highest release that is neither yanked nor blocked; without one, the highest such pre-release.
    latest: Option<String>,
    /// Of all its versions, ever.
    downloads: i64,
    /// The highest first.
    versions: Vec<VersionSummary>,
}

/// A crate and its versions
#[utoipa::path(get, operation_id = "get_crate", path = "/api/v1/crates/{crate}", tag = "crates",
    params(("crate" = String, Path, description = "its name")), responses(
    (status = 200, body = Crate, description = "the crate"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
))]
async fn show(State(app): State<App>, Path(name): Path<CrateName>) -> Result<Json<Crate>> {
    let mut conn = database::snapshot(&app.pool).await?;
    let krate = find(&mut conn, &name).await?;
    let mut rows = versions::of_crate(&mut conn, krate.id).await?;
    rows.sort_by_cached_key(|row| std::cmp::Reverse(semver::Version::parse(&row.version).ok()));
    let latest = latest(&rows).map(|version| version.version.clone());
    let downloads = downloads::total(&mut conn, krate.id).await?;
    let versions = rows.into_iter().map(Into::into).collect();
    Ok(Json(Crate { name: krate.name.into(), latest, downloads, versions }))
}

#[derive(Debug, Serialize, ToSchema)]
struct VersionDetail {
    #[serde(rename = "crate")]
    krate: String,
    version: String,
    yanked: bool,
    blocked: bool,
    /// Of the registry's `.crate` file.
    sha256: String,
    /// Of all its artifacts, ever.
    downloads: i64,
    artifacts: Vec<Artifact>,
    /// The newest first, at most 100.
    jobs: Vec<Job>,
}

/// A version, what was built of it, and its jobs
#[utoipa::path(get, operation_id = "get_version", path = "/api/v1/crates/{crate}/{version}", tag = "crates", params(
    ("crate" = String, Path, description = "its name"),
    ("version" = String, Path, description = "a version, or `latest`"),
), responses(
    (status = 200, body = VersionDetail, description = "the version"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
))]
async fn show_version(
    State(app): State<App>,
    Path((name, version)): Path<(CrateName, String)>,
) -> Result<Json<VersionDetail>> {
    let mut conn = database::snapshot(&app.pool).await?;
    let version = find_version(&mut conn, &name, &version).await?;
    let made = artifacts::of_version(&mut conn, version.id).await?;
    let downloads = downloads::of_version(&mut conn, version.id).await?;
    let filter = jobs::Filter { version: Some(version.id), ..jobs::Filter::default() };
    let jobs = jobs::page(&mut conn, &filter, None, VERSION_JOBS).await?;
    Ok(Json(VersionDetail {
        krate: version.krate.into(),
        version: version.version,
        yanked: version.yanked,
        blocked: version.blocked,
        sha256: version.sha256.to_string(),
        downloads,
        artifacts: made.into_iter().map(|row| Artifact::new(row, &app.config.public_url)).collect(),
        jobs: jobs.into_iter().map(|job| Job::new(job, None, None)).collect(),
    }))
}

pub(crate) async fn find(conn: &mut PgConnection, name: &CrateName) -> Result<crates::Crate> {
    crates::find(conn, name).await?.ok_or_else(|| unknown_crate(name))
}

pub(crate) fn unknown_crate(name: &CrateName) -> Problem {
    Problem::not_found(format!("no crate named {name} is known here")).at("crate")
}

/// `version` is one, or `latest`.
pub(crate) async fn find_version(
    conn: &mut PgConnection,
    name: &CrateName,
    version: &str,
) -> Result<versions::Version> {
    if version == LATEST {
        let krate = find(conn, name).await?;
        let rows = versions::of_crate(conn, krate.id).await?;
        return latest(&rows).cloned().ok_or_else(|| {
            Problem::not_found(format!("{name} has no version that is neither yanked nor blocked"))
                .at("version")
        });
    }
    let unknown = || Problem::not_found(format!("no such version of {name} is known here")).at("version");
    // A registry has only such versions, and the database is spared what is none.
    semver::Version::parse(version).map_err(|_| unknown())?;
    match versions::find(conn, name, version).await? {
        Some(version) => Ok(version),
        None => find(conn, name).await.and(Err(unknown())),
    }
}
