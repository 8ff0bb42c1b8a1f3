//! Conditional requests: If-None-Match, and If-Range before Range.

use axum::http::{HeaderMap, header};

/// Whether the client has what `head` describes.
pub(crate) fn not_modified(request: &HeaderMap, head: &HeaderMap) -> bool {
    let Some(tag) = head.get(header::ETAG).and_then(|tag| tag.to_str().ok()) else { return false };
    let lists = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    // Our tags hold no comma. Weak and strong are the same here.
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|theirs| theirs == "*" || theirs.strip_prefix("W/").unwrap_or(theirs) == tag)
}

/// The range that is asked for, if it still is of the same file.
pub(crate) fn range<'a>(request: &'a HeaderMap, head: &HeaderMap) -> Option<&'a str> {
    if request.get(header::IF_RANGE).is_some_and(|tag| Some(tag) != head.get(header::ETAG)) {
        return None;
    }
    request.get(header::RANGE)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_tag_that_the_client_has() {
        let head = headers(&[(header::ETAG, "\"abc\"")]);
        for (asked, expected) in [
            ("\"abc\"", true),
            ("W/\"abc\"", true),
            ("*", true),
            ("\"x\", \"abc\"", true),
            ("abc", false),
            ("\"x\"", false),
            ("", false),
        ] {
            let request = headers(&[(header::IF_NONE_MATCH, asked)]);
            assert_eq!(not_modified(&request, &head), expected, "{asked}");
        }
        assert!(!not_modified(&HeaderMap::new(), &head));
    }

    #[test]
    fn a_range_of_another_file_is_none() {
        let head = headers(&[(header::ETAG, "\"abc\"")]);
        let asked = (header::RANGE, "bytes=0-1");
        assert_eq!(range(&headers(std::slice::from_ref(&asked)), &head), Some("bytes=0-1"));
        assert_eq!(
            range(&headers(&[asked.clone(), (header::IF_RANGE, "\"abc\"")]), &head),
            Some("bytes=0-1")
        );
        for other in ["\"x\"", "W/\"abc\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(range(&headers(&[asked.clone(), (header::IF_RANGE, other)]), &head), None);
        }
    }
}
