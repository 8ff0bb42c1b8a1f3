//! The head of a download's answer.

use axum::http::{HeaderMap, HeaderValue, header};
use cratemill_protocol::Sha256Hex;
use cratemill_store::artifacts::Artifact;

/// A version's artifact does not change, unless an operator rebuilds it: caches may keep it.
const PINNED_CACHE: &str = "public, max-age=31536000, immutable";
const LATEST_CACHE: &str = "public, max-age=60";
/// 299: a persistent warning, for people.
const YANKED: &str = "299 - \"this version is yanked\"";

/// No Content-Encoding, ever: an archive must arrive as it was signed.
pub(crate) fn of(artifact: &Artifact, pinned: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ETAG, quoted(&artifact.sha256));
    let cache = if pinned { PINNED_CACHE } else { LATEST_CACHE };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&artifact.name)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // An artifact's name holds no quote and no control character.
    if let Ok(name) = HeaderValue::from_str(&format!("attachment; filename=\"{}\"", artifact.name)) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    if artifact.yanked {
        headers.insert(header::WARNING, HeaderValue::from_static(YANKED));
    }
    headers
}

/// For a text beside the artifact: it is shown, not saved, and is itself what the tag stands for.
pub(crate) fn describe_text(headers: &mut HeaderMap, text: &str, content_type: &'static str) {
    headers.remove(header::CONTENT_DISPOSITION);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::ETAG, quoted(&Sha256Hex::of(text.as_bytes())));
}

fn quoted(digest: &Sha256Hex) -> HeaderValue {
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
