//! The answer to a download: that the client has it, where it is, or its bytes.

use super::{conditions, counted, find::Artifact, headers, range::Range, relay};
use crate::{
    App,
    config::Downloads,
    downloads::Asker,
    problem::{Problem, Result},
};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use cratemill_service::http::PeerAddr;

/// Whoever follows it later than that asks again, and is counted again.
const REDIRECT_CACHE: HeaderValue = HeaderValue::from_static("private, max-age=60");

pub(super) async fn serve(
    app: &App,
    method: &Method,
    (request, peer): (&HeaderMap, PeerAddr),
    artifact: &Artifact,
    pinned: bool,
) -> Result<Response> {
    let size = artifact.size;
    if conditions::not_modified(request, &artifact.etag) {
        return Ok(headers::not_modified(headers::of(artifact, pinned), size));
    }
    if *method == Method::HEAD {
        // Also where others are redirected: a presigned URL is good for GET only.
        let mut head = headers::of(artifact, pinned);
        head.insert(header::CONTENT_LENGTH, size.into());
        return Ok((head, Body::empty()).into_response());
    }
    let range = conditions::range(request, &artifact.etag, size);
    if range == Range::Outside {
        let all = HeaderValue::from_str(&format!("bytes */{size}")).map_err(|_| Problem::internal())?;
        let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {size} bytes"));
        return Err(problem.with_header(header::CONTENT_RANGE, all));
    }
    let status = match (app.config.downloads, range) {
        (Downloads::Redirect, _) => StatusCode::FOUND,
        (Downloads::Stream, Range::Part { .. }) => StatusCode::PARTIAL_CONTENT,
        (Downloads::Stream, _) => StatusCode::OK,
    };
    let download = counted::is_download(method, status, range, size);
    let asker = download.then(|| Asker::of(request, peer, &app.signer));
    match app.config.downloads {
        Downloads::Redirect => redirect(app, artifact, asker).await,
        Downloads::Stream => stream(app, status, headers::of(artifact, pinned), artifact, range, asker).await,
    }
}

/// `asker` is whom to count, if anybody. The count is durable before the redirect is sent: nobody sees whether it is
/// followed.
async fn redirect(app: &App, artifact: &Artifact, asker: Option<Asker>) -> Result<Response> {
    let url = artifact.url(app).await?;
    if let Some(asker) = asker {
        app.counts.count(artifact.id, asker).await;
    }
    Ok(redirected(url, artifact))
}

pub(super) fn redirected(url: HeaderValue, artifact: &Artifact) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    let head = response.headers_mut();
    head.insert(header::LOCATION, url);
    head.insert(header::CACHE_CONTROL, REDIRECT_CACHE);
    headers::warn(head, artifact);
    response
}

async fn stream(
    app: &App,
    status: StatusCode,
    mut head: HeaderMap,
    artifact: &Artifact,
    range: Range,
    asker: Option<Asker>,
) -> Result<Response> {
    let size = artifact.size;
    let length = match range {
        Range::Part { first, last, .. } => {
            let part = HeaderValue::from_str(&format!("bytes {first}-{last}/{size}"));
            head.insert(header::CONTENT_RANGE, part.map_err(|_| Problem::internal())?);
            last - first + 1
        }
        Range::Whole | Range::Outside => size,
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
    let counted = asker.map(|asker| {
        let (counts, id) = (app.counts.clone(), artifact.id);
        async move { counts.count(id, asker).await }
    });
    // Of an empty body nobody asks for a last piece.
    let counted = match counted {
        Some(counted) if length == 0 => {
            counted.await;
            None
        }
        counted => counted,
    };
    Ok((status, head, relay::body(object.body, length, counted)).into_response())
}
