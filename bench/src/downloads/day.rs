//! Days as counts have them: UTC, from 1970 on.

use anyhow::{Context, Result};
use time::{Date, Duration, macros::date};

const FIRST: Date = date!(1970 - 01 - 01);

pub(super) fn today() -> Result<i32> {
    let now = std::time::UNIX_EPOCH.elapsed().context("the clock stands before 1970")?;
    Ok(i32::try_from(now.as_secs() / (24 * 60 * 60))?)
}

/// As the database takes it.
pub(super) fn date(day: i32) -> Result<Date> {
    FIRST.checked_add(Duration::days(day.into())).context("no calendar has this day")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_from_1970() {
        assert_eq!(date(0).unwrap(), FIRST);
        assert_eq!(date(20_454).unwrap(), date!(2026 - 01 - 01));
        assert!(date(i32::MAX).is_err());
    }
}
