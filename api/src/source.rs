//! Sources of private registries: this node fetches them for a builder, which must not have the registry's token.
//!
//! The node that hands out a job knows where its source is; the builder may ask any node for it. So the link that it
//! gets carries the place, sealed for that job: no node remembers anything, and none fetches what a stranger names.

use crate::{
    App, Config, auth,
    config::RegistryToken,
    extract::{Path, Query},
    problem::{Body as ProblemBody, Problem, Result},
};
use anyhow::Context as _;
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use cratemill_protocol::JobId;
use cratemill_service::clock;
use futures_util::{StreamExt, TryStreamExt};
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;
use std::{io, time::Duration};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Keeps these seals apart from everything else that is signed with the same secret.
const PURPOSE: &[u8] = b"cratemill-source@v1\n";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A bound for the node; the job's own limit is for the builder, and its operator may raise it to this.
const MAX_SOURCE_BYTES: u64 = 1 << 30;
/// A registry that sends nothing for this long is away.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get))
}

/// Links to sources, and the way to them.
#[derive(Clone)]
pub struct Sources {
    seal: Hmac<Sha256>,
    /// None where the registry is not private.
    token: Option<RegistryToken>,
    client: reqwest::Client,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Sources {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // A .crate file is passed on as it is.
            .no_gzip()
            .build()
            .context("cannot set up the client for private sources")?;
        let seal = Hmac::new_from_slice(config.token_secret.as_bytes()).context("HMAC takes any key")?;
        Ok(Self { seal, token: config.registry_token.clone(), client })
    }

    /// Where a builder gets the source of `job` that is at `url`, with the job's token. `base` is the job's own URL.
    pub fn link(&self, base: &str, job: JobId, url: &str) -> String {
        let seal = BASE64.encode(self.mac(job, url).finalize().into_bytes());
        format!("{base}/source?url={}&seal={seal}", BASE64.encode(url))
    }

    /// The URL in a link that [`Self::link`] made for this job.
    fn open(&self, job: JobId, query: &LinkQuery) -> Option<String> {
        let url = String::from_utf8(BASE64.decode(&query.url).ok()?).ok()?;
        let seal = BASE64.decode(&query.seal).ok()?;
        self.mac(job, &url).verify_slice(&seal).ok().map(|()| url)
    }

    fn mac(&self, job: JobId, url: &str) -> Hmac<Sha256> {
        let mut mac = self.seal.clone();
        mac.update(PURPOSE);
        mac.update(&job.0.to_be_bytes());
        mac.update(url.as_bytes());
        mac
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LinkQuery {
    /// As it came with the job.
    url: String,
    /// As it came with the job.
    seal: String,
}

/// Fetch the source of a job, where the registry is private
#[utoipa::path(get, operation_id = "get_job_source", path = "/api/v1/jobs/{id}/source", tag = "builder side",
    params(("id" = i64, Path), LinkQuery), security(("job" = [])), responses(
        (status = 200, description = "the .crate file", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "no good job token"),
        (status = 403, body = ProblemBody, content_type = "application/problem+json", description = "another job's token or link"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "the registry is not private"),
        (status = 502, body = ProblemBody, content_type = "application/problem+json", description = "the registry refuses it"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "try again"),
    ))]
async fn get(
    State(app): State<App>,
    Path(job): Path<JobId>,
    Query(query): Query<LinkQuery>,
    request: HeaderMap,
) -> Result<Response> {
    auth::job_token(&request, &app.signer, job, clock::now_s())?;
    let Some(token) = &app.sources.token else {
        return Err(Problem::not_found("the registry is not private: its sources are fetched there"));
    };
    let url = app.sources.open(job, &query);
    let url = url.ok_or_else(|| Problem::new(StatusCode::FORBIDDEN, "the link was not made for this job"))?;
    let asked = app.sources.client.get(url).header(header::AUTHORIZATION, token.as_str()).send().await;
    let answer = asked.map_err(|error| away(job, &error))?;
    if !answer.status().is_success() {
        return Err(refused(job, answer.status()));
    }
    if answer.content_length().is_some_and(|length| length > MAX_SOURCE_BYTES) {
        return Err(Problem::new(
            StatusCode::BAD_GATEWAY,
            format!("the source is larger than {MAX_SOURCE_BYTES} bytes"),
        ));
    }
    let mut head = HeaderMap::new();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(length) = answer.content_length() {
        head.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok((head, bounded(answer)).into_response())
}

/// The body, which breaks off where it would be larger than a source may be.
fn bounded(answer: reqwest::Response) -> Body {
    let chunks = answer.bytes_stream().map_err(io::Error::other);
    let mut left = MAX_SOURCE_BYTES;
    let bounded = chunks.map(move |chunk| {
        let chunk = chunk?;
        left = left
            .checked_sub(chunk.len() as u64)
            .ok_or_else(|| io::Error::other("the source is too large"))?;
        Ok::<_, io::Error>(chunk)
    });
    Body::from_stream(bounded)
}

/// The URL stays out of the log and the answer: a registry may put secrets into it.
fn away(job: JobId, error: &reqwest::Error) -> Problem {
    let (timeout, connect) = (error.is_timeout(), error.is_connect());
    tracing::warn!(%job, timeout, connect, "the registry does not give a source");
    Problem::unavailable("the registry is away, try again")
}

fn refused(job: JobId, status: StatusCode) -> Problem {
    tracing::warn!(%job, %status, "the registry refuses a source");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Problem::unavailable("the registry has a problem, try again")
    } else {
        Problem::new(StatusCode::BAD_GATEWAY, format!("the registry answers {}", status.as_u16()))
    }
}
