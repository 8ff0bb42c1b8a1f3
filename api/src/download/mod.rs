//! Downloads of artifacts, and of what proves them: signature, checksum and manifest.
//!
//! `latest` is the crate's newest version, built or not (see [`crate::latest`]): a version that is not built yet
//! answers 404, never silently with an older one.

mod conditions;
mod headers;
mod range;
mod relay;

use crate::{
    App,
    config::Downloads,
    crates::find_version,
    extract::{Path, Query},
    latest::LATEST,
    problem::{Body as ProblemBody, Problem, Result},
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use cratemill_protocol::{CrateName, Features, Kind, Target, bus::ClientClass};
use cratemill_store::artifacts::{self, Artifact};
use range::Range;
use serde::Deserialize;
use std::{str::FromStr, time::Duration};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Long enough for a client to follow the redirect, and to follow one that it keeps for [`REDIRECT_CACHE`].
const PRESIGNED_FOR: Duration = Duration::from_mins(5);
const REDIRECT_CACHE: &str = "private, max-age=60";

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DownloadQuery {
    /// The feature variant: `default` or `no-default`, then feature names, separated by commas.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    features: Features,
}

/// The last segment: a kind, and what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    kind: Kind,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Artifact,
    /// SSHSIG in its armoured form, over the manifest.
    Signature,
    Checksum,
    Manifest,
}

impl FromStr for File {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, part) = match text.split_once('.') {
            None => (text, Part::Artifact),
            Some((kind, "sig")) => (kind, Part::Signature),
            Some((kind, "sha256")) => (kind, Part::Checksum),
            Some((kind, "manifest")) => (kind, Part::Manifest),
            Some(_) => return Err(()),
        };
        kind.parse().map(|kind| Self { kind, part }).map_err(|_| ())
    }
}

/// Download an artifact, or what proves it
///
/// With `.sig`, `.sha256` or `.manifest` after the kind: the signature over the manifest, the checksum, or the exact
/// manifest that was signed. HEAD works too. The node may answer with a redirect to the object store.
#[utoipa::path(get, operation_id = "download", path = "/api/v1/crates/{crate}/{version}/{target}/{kind}", tag = "crates", params(
    ("crate" = String, Path, description = "its name"),
    ("version" = String, Path, description = "a version, or `latest`"),
    ("target" = String, Path, description = "a target triple; `any` for metadata"),
    ("kind" = String, Path, description = "a kind, perhaps with .sig, .sha256 or .manifest"),
    DownloadQuery,
), responses(
    (status = 200, description = "the file", content_type = "application/octet-stream", body = Vec<u8>),
    (status = 206, description = "the part asked for", content_type = "application/octet-stream", body = Vec<u8>),
    (status = 302, description = "it is in the object store"),
    (status = 304, description = "the client has it"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "not there, or not built"),
    (status = 410, body = ProblemBody, content_type = "application/problem+json", description = "taken down"),
    (status = 416, body = ProblemBody, content_type = "application/problem+json", description = "range outside the file"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "try again"),
))]
async fn get(
    State(app): State<App>,
    method: Method,
    Path((name, version, target, file)): Path<(CrateName, String, Target, String)>,
    Query(query): Query<DownloadQuery>,
    request: HeaderMap,
) -> Result<Response> {
    let unknown =
        |()| Problem::not_found("expected a kind, perhaps with .sig, .sha256 or .manifest").at("kind");
    let file: File = file.parse().map_err(unknown)?;
    let artifact = find(&app, &name, &version, &target, file.kind, &query.features).await?;
    let pinned = version != LATEST;
    let mut head = headers::of(&artifact, pinned);
    match file.part {
        Part::Artifact => serve(&app, &method, &request, head, artifact).await,
        part => {
            let (text, content_type) = match part {
                Part::Signature => (artifact.signature, "application/x-ssh-signature"),
                Part::Manifest => (artifact.manifest, "application/json"),
                Part::Checksum | Part::Artifact => {
                    (format!("{}  {}\n", artifact.sha256, artifact.name), "text/plain; charset=utf-8")
                }
            };
            headers::describe_text(&mut head, &text, content_type);
            if conditions::not_modified(&request, &head) {
                return Ok((StatusCode::NOT_MODIFIED, head).into_response());
            }
            Ok((head, text).into_response())
        }
    }
}

async fn find(
    app: &App,
    name: &CrateName,
    version: &str,
    target: &Target,
    kind: Kind,
    features: &Features,
) -> Result<Artifact> {
    let mut conn = app.pool.acquire().await?;
    let version = find_version(&mut conn, name, version).await?;
    if version.blocked {
        let detail = format!("{} {} was taken down", version.krate, version.version);
        return Err(Problem::new(StatusCode::GONE, detail));
    }
    artifacts::find(&mut conn, version.id, target, kind, features).await?.ok_or_else(|| {
        let (krate, version) = (version.krate, version.version);
        Problem::not_found(format!(
            "there is no {kind} of {krate} {version} for {target}, features {features}"
        ))
    })
}

async fn serve(
    app: &App,
    method: &Method,
    request: &HeaderMap,
    mut head: HeaderMap,
    artifact: Artifact,
) -> Result<Response> {
    let size = artifact.size.unsigned_abs();
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if conditions::not_modified(request, &head) {
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    if *method == Method::HEAD {
        // Also where others are redirected: a presigned URL is good for GET only.
        head.insert(header::CONTENT_LENGTH, size.into());
        return Ok((head, Body::empty()).into_response());
    }
    let range = match conditions::range(request, &head) {
        Some(text) => range::parse(text, size),
        None => Range::Whole,
    };
    if range == Range::Outside {
        let all = HeaderValue::from_str(&format!("bytes */{size}")).map_err(|_| Problem::internal())?;
        let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {size} bytes"));
        return Err(problem.with_header(header::CONTENT_RANGE, all));
    }
    let agent = request.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let client = ClientClass::of_user_agent(agent);
    match app.config.downloads {
        Downloads::Redirect => redirect(app, &artifact, range, client).await,
        Downloads::Stream => stream(app, head, &artifact, range, client).await,
    }
}

/// The count is durable before the redirect is sent: nobody sees whether it is followed.
async fn redirect(app: &App, artifact: &Artifact, range: Range, client: ClientClass) -> Result<Response> {
    let url = app.objects.presign_get(&artifact.object, &artifact.name, PRESIGNED_FOR).await?;
    if range.is_whole(artifact.size.unsigned_abs()) {
        app.counts.count(artifact.id, client).await;
    }
    let head = [(header::LOCATION, url), (header::CACHE_CONTROL, REDIRECT_CACHE.to_owned())];
    Ok((StatusCode::FOUND, head).into_response())
}

async fn stream(
    app: &App,
    mut head: HeaderMap,
    artifact: &Artifact,
    range: Range,
    client: ClientClass,
) -> Result<Response> {
    let size = artifact.size.unsigned_abs();
    let (status, length) = match range {
        Range::Part { first, last } => {
            let part = HeaderValue::from_str(&format!("bytes {first}-{last}/{size}"));
            head.insert(header::CONTENT_RANGE, part.map_err(|_| Problem::internal())?);
            (StatusCode::PARTIAL_CONTENT, last - first + 1)
        }
        Range::Whole | Range::Outside => (StatusCode::OK, size),
    };
    let object = app.objects.get(&artifact.object, range.header().as_deref()).await?;
    if object.length != length {
        tracing::error!(
            object = artifact.object,
            is = object.length,
            expected = length,
            "an object has another size"
        );
        return Err(Problem::internal());
    }
    head.insert(header::CONTENT_LENGTH, length.into());
    let counted = range.is_whole(size).then(|| {
        let (counts, id) = (app.counts.clone(), artifact.id);
        async move { counts.count(id, client).await }
    });
    Ok((status, head, relay::body(object.body, length, counted)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_segment_says_what_is_wanted() {
        let file = |text: &str| text.parse::<File>().map(|file| (file.kind, file.part));
        assert_eq!(file("tarball"), Ok((Kind::Tarball, Part::Artifact)));
        assert_eq!(file("tarball.sig"), Ok((Kind::Tarball, Part::Signature)));
        assert_eq!(file("metadata.sha256"), Ok((Kind::Metadata, Part::Checksum)));
        assert_eq!(file("debian.manifest"), Ok((Kind::Debian, Part::Manifest)));
        for bad in
            ["", ".sig", "tarball.", "tarball.sig.sig", "Tarball", "tarball.tar.gz", "..", "tarball%2e"]
        {
            assert_eq!(file(bad), Err(()), "{bad}");
        }
    }
}
