//! Uploads of a builder's files: on any node, streamed into the object store, verified, and recorded for the attempt.
//!
//! A file that is recorded is whole and has the digest it was announced with. It is not visible: that takes the
//! attempt's signed manifest. Each upload has an object of its own, so that one that fails late cannot take away what
//! another has stored.

mod pace;
mod pipe;
mod underway;

pub use underway::Underway;

use crate::{
    App, auth,
    extract::Path,
    problem::{Body as ProblemBody, Problem, Result},
};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
};
use cratemill_protocol::{ArtifactName, Attempt, JobId, Sha256Hex, manifest::MAX_ARTIFACTS};
use cratemill_service::clock;
use cratemill_store::uploads::{self, Upload};
use pipe::Broken;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

const SHA256: &str = "x-sha256";

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(put))
}

#[derive(Debug, Serialize, ToSchema)]
struct Stored {
    name: String,
    size: i64,
    sha256: String,
}

/// Store a file of a running job
#[utoipa::path(put, operation_id = "upload_artifact", path = "/api/v1/jobs/{id}/artifacts/{name}", tag = "builder side", params(
    ("id" = i64, Path), ("name" = String, Path, description = "its file name"),
    ("x-sha256" = String, Header, description = "its SHA-256, 64 hexadecimal digits"),
    ("content-length" = u64, Header, description = "its size"),
), request_body(content = Vec<u8>, content_type = "application/octet-stream"), security(("job" = [])), responses(
    (status = 201, body = Stored, description = "it is stored"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json", description = "bad name, header or length"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "no good job token"),
    (status = 403, body = ProblemBody, content_type = "application/problem+json", description = "another job's token"),
    (status = 408, body = ProblemBody, content_type = "application/problem+json", description = "the body stopped coming, or comes too slowly"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "the attempt lost the job"),
    (status = 411, body = ProblemBody, content_type = "application/problem+json", description = "no content-length"),
    (status = 413, body = ProblemBody, content_type = "application/problem+json", description = "too large"),
    (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "another digest"),
    (status = 429, body = ProblemBody, content_type = "application/problem+json", description = "too many uploads of the attempt at once"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "try again"),
))]
async fn put(
    State(app): State<App>,
    Path((job, name)): Path<(JobId, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Stored>)> {
    let claims = auth::job_token(&headers, &app.signer, job, clock::now_s())?;
    let upload = announced(&app, name, &headers, job, claims.attempt)?;
    if !uploads::allowed(&mut *app.pool.acquire().await?, job, claims.attempt).await? {
        return Err(lost(job, claims.attempt));
    }
    let Some(underway) = app.uploads.begin(job, claims.attempt) else {
        let detail = "the attempt has too many uploads under way: end one first";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail));
    };
    // Beside the connection: what a client that goes away has begun is still cleaned up.
    let task = app.tasks.clone().spawn(async move {
        let _underway = underway;
        store(app, job, claims.attempt, upload, body).await
    });
    task.await.map_err(|error| {
        tracing::error!(%error, %job, "an upload panicked");
        Problem::internal()
    })?
}

/// What the headers say about the file.
fn announced(app: &App, name: String, headers: &HeaderMap, job: JobId, attempt: Attempt) -> Result<Upload> {
    let name =
        ArtifactName::parse(name).map_err(|error| Problem::bad_request(error.to_string()).at("name"))?;
    let sha256 = headers.get(SHA256).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let sha256: Sha256Hex = sha256.ok_or_else(|| {
        Problem::bad_request("the header x-sha256 is the file's SHA-256, 64 hexadecimal digits").at(SHA256)
    })?;
    let size = headers.get(header::CONTENT_LENGTH).ok_or_else(|| {
        Problem::new(StatusCode::LENGTH_REQUIRED, "the header content-length is missing").at("content-length")
    })?;
    let size: i64 = size
        .to_str()
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::bad_request("content-length is no length").at("content-length"))?;
    let most = app.config.max_artifact_bytes;
    if size.unsigned_abs() > most {
        let detail = format!("a file may have {most} bytes, this one has {size}");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let object = format!("artifacts/{job}/{attempt}/{}/{name}", Uuid::now_v7());
    Ok(Upload { name, size, sha256, object })
}

fn lost(job: JobId, attempt: Attempt) -> Problem {
    Problem::conflict(format!("attempt {attempt} does not have job {job}, or no longer"))
}

async fn store(
    app: App,
    job: JobId,
    attempt: Attempt,
    upload: Upload,
    body: Body,
) -> Result<(StatusCode, Json<Stored>)> {
    let known = uploads::of_attempt(&mut *app.pool.acquire().await?, job, attempt).await?;
    let again = known
        .iter()
        .any(|known| known.name == upload.name && known.sha256 == upload.sha256 && known.size == upload.size);
    let replaced = known.iter().find(|known| known.name == upload.name);
    if replaced.is_none() && known.len() >= MAX_ARTIFACTS {
        let detail = format!("an attempt may put {MAX_ARTIFACTS} files, as many as a manifest may name");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    if again {
        // The answer to the first was lost. The client must get rid of the body before it reads ours.
        pipe::verify(body, upload.size.unsigned_abs(), upload.sha256, None).await.map_err(refuse)?;
    } else {
        if let Err(problem) = transfer(&app, &upload, body).await {
            discard(&app, &upload).await;
            return Err(problem);
        }
        // An error here leaves open whether it is recorded: then the object must stay.
        if !uploads::record(&mut *app.pool.acquire().await?, job, attempt, &upload).await? {
            discard(&app, &upload).await;
            return Err(lost(job, attempt));
        }
        if let Some(replaced) = replaced {
            discard(&app, replaced).await;
        }
    }
    let Upload { name, size, sha256, .. } = upload;
    tracing::info!(%job, %attempt, %name, size, again, "an upload is stored");
    Ok((StatusCode::CREATED, Json(Stored { name: name.into(), size, sha256: sha256.to_string() })))
}

/// The body goes through; its last bytes only once the digest is known to be right.
async fn transfer(app: &App, upload: &Upload, body: Body) -> Result<()> {
    let length = upload.size.unsigned_abs();
    let (sink, source) = pipe::pipe(length);
    let (verified, stored) = futures_util::future::join(
        pipe::verify(body, length, upload.sha256, Some(sink)),
        app.objects.put_stream(&upload.object, length, source),
    )
    .await;
    match verified {
        Err(Broken::Sink) | Ok(()) => stored.map_err(Problem::from),
        Err(broken) => Err(refuse(broken)),
    }
}

async fn discard(app: &App, upload: &Upload) {
    if let Err(error) = app.objects.delete(&upload.object).await {
        tracing::warn!(object = upload.object, %error, "an object that nothing refers to may be left");
    }
}

fn refuse(broken: Broken) -> Problem {
    match broken {
        Broken::Silent => Problem::new(StatusCode::REQUEST_TIMEOUT, "the body stopped coming"),
        Broken::Slow => Problem::new(StatusCode::REQUEST_TIMEOUT, "the body comes too slowly"),
        Broken::Length => Problem::bad_request("the body is not as long as content-length says"),
        Broken::Digest(is) => Problem::invalid(SHA256, format!("the body's SHA-256 is {is}")),
        Broken::Sink => Problem::unavailable("the object store is away, try again"),
    }
}
