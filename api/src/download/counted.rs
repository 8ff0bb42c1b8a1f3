//! Which answers are downloads, and are counted.
//!
//! An install is one download, however often its client asks before: what it probes with (HEAD, a condition, the end of
//! the file) is none, nor is what broke off. A file that is fetched in parts, split or resumed, is counted with the part
//! that has its last byte. Who is redirected is out of sight: there it counts that the whole file was asked for.

use super::range::Range;
use axum::http::{Method, StatusCode};

/// Whether this answer, sent to its end, counts.
pub(super) fn is_download(method: &Method, status: StatusCode, range: Range, size: u64) -> bool {
    if *method != Method::GET {
        return false;
    }
    match status {
        StatusCode::FOUND => range.is_whole(size),
        StatusCode::OK => true,
        StatusCode::PARTIAL_CONTENT => range.is_whole(size) || range.finishes(size),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::download::range;

    #[test]
    fn the_rule() {
        let size = 100;
        for (asked, redirected, streamed) in [
            ("", true, true),
            // All of it, whichever way it is said.
            ("bytes=0-", true, true),
            ("bytes=0-99", true, true),
            ("bytes=0-1000", true, true),
            ("bytes=-100", true, true),
            ("bytes=-1000", true, true),
            // What is no range, or several, is answered with the whole file.
            ("bytes=0-1,3-4", true, true),
            ("lines=1-2", true, true),
            // The part that finishes it.
            ("bytes=1-", false, true),
            ("bytes=99-", false, true),
            ("bytes=50-99", false, true),
            // Other parts, and a look at its end.
            ("bytes=0-98", false, false),
            ("bytes=0-0", false, false),
            ("bytes=50-98", false, false),
            ("bytes=-1", false, false),
            ("bytes=-99", false, false),
        ] {
            let range = range::parse(asked, size);
            let part = matches!(range, Range::Part { .. });
            let status = if part { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
            for (status, expected) in [(StatusCode::FOUND, redirected), (status, streamed)] {
                assert_eq!(is_download(&Method::GET, status, range, size), expected, "{asked} {status}");
                assert!(!is_download(&Method::HEAD, status, range, size), "HEAD {asked}");
            }
            for none in [304, 400, 404, 410, 416, 500, 503] {
                let none = StatusCode::from_u16(none).unwrap();
                assert!(!is_download(&Method::GET, none, range, size), "{none} {asked}");
            }
        }
        assert!(is_download(&Method::GET, StatusCode::OK, range::parse("", 0), 0), "an empty file");
    }
}
