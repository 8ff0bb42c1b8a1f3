//! When to look again. Pure.

use std::time::Duration;

/// How long until a moment in Unix milliseconds, but no longer than `longest`: clocks are set, and hints get lost.
pub(crate) fn until(due_ms: Option<i64>, now_ms: i64, longest: Duration) -> Duration {
    let Some(due_ms) = due_ms else { return longest };
    let wait = u64::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(0);
    Duration::from_millis(wait).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_late_and_never_long() {
        let longest = Duration::from_secs(2);
        for (due, expected_ms) in [
            (None, 2_000),
            (Some(i64::MIN), 0),
            (Some(1_000), 0),
            (Some(1_001), 1),
            (Some(2_500), 1_500),
            (Some(i64::MAX), 2_000),
        ] {
            assert_eq!(until(due, 1_000, longest), Duration::from_millis(expected_ms), "{due:?}");
        }
    }
}
