//! Downloads of artifacts, and of what proves them: signature, checksum and manifest.
//!
//! `latest` is the crate's newest version, built or not (see [`crate::latest`]): a version that is not built yet
//! answers 404, never silently with an older one.

mod answer;
mod conditions;
mod counted;
mod find;
mod headers;
mod range;
mod relay;
pub(crate) mod shortcut;

pub(crate) use find::Artifact;

use crate::{
    App,
    extract::{Path, Query},
    problem::{Body as ProblemBody, Problem, Result},
};
use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, Method, Uri},
    response::{IntoResponse, Response},
};
use cratemill_protocol::{CrateName, Features, Kind, Target};
use cratemill_service::http::PeerAddr;
use cratemill_store::artifacts;
use find::Wanted;
use serde::Deserialize;
use std::str::FromStr;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

/// The hottest route there is: see [`crate::observe`].
pub(crate) const ROUTE: &str = "/api/v1/crates/{crate}/{version}/{target}/{kind}";

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
/// manifest that was signed. HEAD works too. The node may answer with a redirect to the object store. Answers may be kept
/// as `Cache-Control` says: one for a version for good, one for `latest` for a minute, and what is not there for seconds.
#[utoipa::path(get, operation_id = "download", path = "/api/v1/crates/{crate}/{version}/{target}/{kind}", tag = "crates", params(
    ("crate" = String, Path, description = "its name"),
    ("version" = String, Path, description = "a version, or `latest`"),
    ("target" = String, Path, description = "a target triple; `any` for metadata"),
    ("kind" = String, Path, description = "a kind, perhaps with .sig, .sha256 or .manifest"),
    DownloadQuery,
), responses(
    (status = 200, description = "the file; with a `Warning` if its version is yanked", content_type = "application/octet-stream", body = Vec<u8>),
    (status = 206, description = "the part asked for", content_type = "application/octet-stream", body = Vec<u8>),
    (status = 302, description = "it is in the object store"),
    (status = 304, description = "the client has it"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "not there, or not built; may be kept for ten seconds"),
    (status = 410, body = ProblemBody, content_type = "application/problem+json", description = "taken down; may be kept for a minute"),
    (status = 416, body = ProblemBody, content_type = "application/problem+json", description = "range outside the file"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "try again"),
))]
async fn get(
    State(app): State<App>,
    method: Method,
    path: Result<Path<(CrateName, String, Target, String)>>,
    Query(query): Query<DownloadQuery>,
    Extension(peer): Extension<PeerAddr>,
    uri: Uri,
    request: HeaderMap,
) -> Result<Response> {
    let answered = match path {
        Ok(Path((name, version, target, file))) => {
            let (version, features) = (&*version, &query.features);
            answer(&app, (&method, &uri), (&name, version, &target, &file), features, (&request, peer)).await
        }
        Err(refused) => Err(refused),
    };
    answered.map_err(headers::cached)
}

async fn answer(
    app: &App,
    (method, uri): (&Method, &Uri),
    (name, version, target, file): (&CrateName, &str, &Target, &str),
    features: &Features,
    (request, peer): (&HeaderMap, PeerAddr),
) -> Result<Response> {
    let unknown =
        |()| Problem::not_found("expected a kind, perhaps with .sig, .sha256 or .manifest").at("kind");
    let File { kind, part } = file.parse().map_err(unknown)?;
    let wanted = Wanted { name, version, target, kind, features };
    if part == Part::Artifact {
        let key = wanted.key();
        let artifact = wanted.find(app, &key).await?;
        shortcut::remember(app, uri.path(), uri.query(), &key);
        return answer::serve(app, method, (request, peer), &artifact, wanted.is_pinned()).await;
    }
    let artifact = Box::pin(wanted.load(app)).await?;
    let (text, content_type) = Box::pin(beside(app, &artifact, part)).await?;
    let mut head = headers::of(&artifact, wanted.is_pinned());
    let tag = headers::describe_text(&mut head, &text, content_type);
    if conditions::not_modified(request, &tag) {
        return Ok(headers::not_modified(head, text.len() as u64));
    }
    Ok((head, text).into_response())
}

/// A text beside the artifact, and its type.
async fn beside(app: &App, artifact: &Artifact, part: Part) -> Result<(String, &'static str)> {
    if part == Part::Checksum {
        let text = format!("{}  {}\n", artifact.sha256, artifact.name);
        return Ok((text, "text/plain; charset=utf-8"));
    }
    let proof = artifacts::proof(&mut *app.pool.acquire().await?, artifact.id).await?;
    Ok(match part {
        Part::Signature => (proof.signature, "application/x-ssh-signature"),
        _ => (proof.manifest, "application/json"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_is_the_one_that_is_described() {
        assert!(crate::routes::api().1.paths.paths.contains_key(ROUTE));
    }

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
