//! The Range header, for one range of bytes. Several at once are served as the whole file, as the standard allows.

/// What of a file is wanted; both ends of a part are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    Whole,
    Part {
        first: u64,
        last: u64,
        /// It was asked for as the last so many bytes.
        suffix: bool,
    },
    /// Beyond the file's end.
    Outside,
}

impl Range {
    pub(crate) fn is_whole(self, size: u64) -> bool {
        match self {
            Self::Whole => true,
            Self::Part { first, last, .. } => first == 0 && last + 1 == size,
            Self::Outside => false,
        }
    }

    /// Whether it is the rest of a file whose client has what comes before. One that asks for the end, wherever that
    /// begins, looks what is there.
    pub(crate) fn finishes(self, size: u64) -> bool {
        matches!(self, Self::Part { last, suffix: false, .. } if last + 1 == size)
    }

    /// As the object store wants it.
    pub(crate) fn header(self) -> Option<String> {
        match self {
            Self::Part { first, last, .. } => Some(format!("bytes={first}-{last}")),
            Self::Whole | Self::Outside => None,
        }
    }
}

/// Text that is no range is ignored, as the standard says.
pub(crate) fn parse(text: &str, size: u64) -> Range {
    part(text, size).unwrap_or(Range::Whole)
}

fn part(text: &str, size: u64) -> Option<Range> {
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let suffix = first.is_empty();
    let (first, last) = match (first, last) {
        // The last so many bytes.
        ("", count) => match number(count)? {
            0 => return Some(Range::Outside),
            count => (size.saturating_sub(count), u64::MAX),
        },
        (first, "") => (number(first)?, u64::MAX),
        (first, last) => (number(first)?, number(last)?),
    };
    if last < first {
        return None;
    }
    if first >= size {
        return Some(Range::Outside);
    }
    Some(Range::Part { first, last: last.min(size - 1), suffix })
}

/// Digits only; more than a file can have is as good as the largest number.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_a_hundred_bytes() {
        let part = |first, last| Range::Part { first, last, suffix: false };
        let suffix = |first| Range::Part { first, last: 99, suffix: true };
        for (text, expected) in [
            ("bytes=0-", part(0, 99)),
            ("bytes=0-0", part(0, 0)),
            ("bytes=10-19", part(10, 19)),
            ("Bytes=90-200", part(90, 99)),
            ("bytes=-1", suffix(99)),
            ("bytes=-1000", suffix(0)),
            ("bytes=99-", part(99, 99)),
            ("bytes=100-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=99999999999999999999-", Range::Outside),
            ("bytes=0-99999999999999999999", part(0, 99)),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("items=0-1", Range::Whole),
            ("bytes", Range::Whole),
            ("", Range::Whole),
        ] {
            assert_eq!(parse(text, 100), expected, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), Range::Outside);
        assert_eq!(parse("bytes=-1", 0), Range::Outside);
        assert!(part(0, 99).is_whole(100) && !part(0, 98).is_whole(100) && !part(1, 99).is_whole(100));
    }

    proptest! {
        #[test]
        fn a_part_is_within_the_file(text in "bytes=[0-9]{0,21}-[0-9]{0,21}", size in 0_u64..10_000) {
            if let Range::Part { first, last, .. } = parse(&text, size) {
                prop_assert!(first <= last && last < size);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            parse(&text, 100);
        }
    }
}
