//! Conditional requests: If-None-Match, and If-Range before Range.

use super::range::{self, Range};
use axum::http::{HeaderMap, HeaderValue, header};

/// Whether the client has the file of this tag.
pub(super) fn not_modified(request: &HeaderMap, tag: &HeaderValue) -> bool {
    let Ok(tag) = tag.to_str() else { return false };
    let lists = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    // Our tags hold no comma. Weak and strong are the same here.
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|theirs| theirs == "*" || theirs.strip_prefix("W/").unwrap_or(theirs) == tag)
}

/// The range that is asked for, if it still is of the same file. Of several headers none is taken: which one a cache in
/// between would take, nobody knows.
pub(super) fn range(request: &HeaderMap, tag: &HeaderValue, size: u64) -> Range {
    if request.get_all(header::IF_RANGE).iter().any(|theirs| theirs != tag) {
        return Range::Whole;
    }
    let mut ranges = request.get_all(header::RANGE).iter();
    match (ranges.next().map(HeaderValue::to_str), ranges.next()) {
        (Some(Ok(text)), None) => range::parse(text, size),
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    const TAG: HeaderValue = HeaderValue::from_static("\"abc\"");

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_tag_that_the_client_has() {
        for (asked, expected) in [
            ("\"abc\"", true),
            ("W/\"abc\"", true),
            ("*", true),
            ("\"x\", \"abc\"", true),
            ("\"x\",W/\"abc\" ,", true),
            ("abc", false),
            ("w/\"abc\"", false),
            ("\"x\"", false),
            ("\"x\", \"ab\"", false),
            ("", false),
        ] {
            let request = headers(&[(header::IF_NONE_MATCH, asked)]);
            assert_eq!(not_modified(&request, &TAG), expected, "{asked}");
        }
        let two = headers(&[(header::IF_NONE_MATCH, "\"x\""), (header::IF_NONE_MATCH, "\"abc\"")]);
        assert!(not_modified(&two, &TAG));
        assert!(!not_modified(&HeaderMap::new(), &TAG));
    }

    #[test]
    fn a_range_of_another_file_is_none() {
        let part = Range::Part { first: 0, last: 1, suffix: false };
        let asked = (header::RANGE, "bytes=0-1");
        assert_eq!(range(&headers(std::slice::from_ref(&asked)), &TAG, 9), part);
        assert_eq!(range(&headers(&[asked.clone(), (header::IF_RANGE, "\"abc\"")]), &TAG, 9), part);
        for other in ["\"x\"", "W/\"abc\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            let request = headers(&[asked.clone(), (header::IF_RANGE, other)]);
            assert_eq!(range(&request, &TAG, 9), Range::Whole, "{other}");
        }
        assert_eq!(range(&headers(&[asked.clone(), asked]), &TAG, 9), Range::Whole);
        assert_eq!(range(&HeaderMap::new(), &TAG, 9), Range::Whole);
    }
}
