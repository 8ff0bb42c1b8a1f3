//! The head of a download's answer.

use super::find::Artifact;
use crate::problem::Problem;
use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cratemill_protocol::Sha256Hex;

/// A version's artifact does not change, unless an operator rebuilds it: caches may keep it.
const PINNED_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
const LATEST_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=60");
/// Who waits for a build does not wait much longer, and a crowd that asks for what there is not costs one question.
const MISSING_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=10");
const BLOCKED_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=60");
/// 299: a persistent warning, for people.
const YANKED: HeaderValue = HeaderValue::from_static("299 - \"this version is yanked\"");

/// No Content-Encoding, ever: an archive must arrive as it was signed. So an answer varies with nothing.
pub(super) fn of(artifact: &Artifact, pinned: bool) -> HeaderMap {
    // As many as there are at most, so that the map is made once.
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(header::ETAG, artifact.etag.clone());
    headers.insert(header::CACHE_CONTROL, if pinned { PINNED_CACHE } else { LATEST_CACHE });
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&artifact.name)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(disposition) = &artifact.disposition {
        headers.insert(header::CONTENT_DISPOSITION, disposition.clone());
    }
    warn(&mut headers, artifact);
    headers
}

/// Says it where it is: in a redirect too.
pub(super) fn warn(headers: &mut HeaderMap, artifact: &Artifact) {
    if artifact.yanked {
        headers.insert(header::WARNING, YANKED);
    }
}

/// An artifact's name holds no quote and no control character.
pub(super) fn disposition(name: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("attachment; filename=\"{name}\"")).ok()
}

/// Refusals that hold for a while may be kept that long, by anybody: what is not built now, and what was taken down.
pub(super) fn cached(refusal: Problem) -> Problem {
    match refusal.status() {
        StatusCode::NOT_FOUND => refusal.with_header(header::CACHE_CONTROL, MISSING_CACHE),
        StatusCode::GONE => refusal.with_header(header::CACHE_CONTROL, BLOCKED_CACHE),
        _ => refusal,
    }
}

/// The length is that of the answer which the client has: without one the router would say 0 to a HEAD.
pub(super) fn not_modified(mut head: HeaderMap, length: u64) -> Response {
    head.insert(header::CONTENT_LENGTH, length.into());
    (StatusCode::NOT_MODIFIED, head).into_response()
}

/// For a text beside the artifact: it is shown, not saved, and is itself what its tag stands for.
pub(super) fn describe_text(headers: &mut HeaderMap, text: &str, content_type: &'static str) -> HeaderValue {
    headers.remove(header::CONTENT_DISPOSITION);
    headers.remove(header::ACCEPT_RANGES);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let tag = quoted(&Sha256Hex::of(text.as_bytes()));
    headers.insert(header::ETAG, tag.clone());
    tag
}

pub(super) fn quoted(digest: &Sha256Hex) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{digest}\"")).expect("a digest is hexadecimal")
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "gz" | "tgz")) => "application/gzip",
        Some((_, "json")) => "application/json",
        Some((_, "deb")) => "application/vnd.debian.binary-package",
        _ => "application/octet-stream",
    }
}
