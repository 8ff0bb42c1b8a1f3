//! What an audit found, for a person or for a program.

use cratemill_store::audit::Found;
use serde::Serialize;
use std::fmt;

/// Findings that a check names; all are counted. The database names as many.
const MAX_SHOWN: usize = 20;

/// One kind of question to everything it concerns.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub looked_at: u64,
    pub found: u64,
    /// The first of what was found.
    pub shown: Vec<String>,
}

impl Check {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, looked_at: 0, found: 0, shown: Vec::new() }
    }

    /// Of rows that the database has counted; `phrase` says what is wrong with one, from its name and its age.
    pub(super) fn of(name: &'static str, found: &Found, phrase: impl Fn(&str, f64) -> String) -> Self {
        let mut check = Self::new(name);
        check.count(found, phrase);
        check
    }

    /// May be said for several reasons to look at the same things, which are counted once.
    pub(super) fn count(&mut self, found: &Found, phrase: impl Fn(&str, f64) -> String) {
        self.looked_at = self.looked_at.max(found.looked_at.unsigned_abs());
        self.found += found.found.unsigned_abs();
        let room = MAX_SHOWN.saturating_sub(self.shown.len());
        self.shown.extend(found.rows().take(room).map(|(what, age_s)| phrase(what, age_s)));
    }

    pub(super) fn find(&mut self, finding: String) {
        self.found += 1;
        if self.shown.len() < MAX_SHOWN {
            self.shown.push(finding);
        }
    }

    pub fn is_clean(&self) -> bool {
        self.found == 0
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub found: u64,
    pub checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(checks: Vec<Check>) -> Self {
        Self { found: checks.iter().map(|check| check.found).sum(), checks }
    }

    /// The checks that found something.
    pub fn findings(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.is_clean())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, looked_at, found, .. } in &self.checks {
            writeln!(f, "{name:<18} {looked_at:>9} looked at {found:>7} found")?;
        }
        for check in self.findings() {
            writeln!(f)?;
            for finding in &check.shown {
                writeln!(f, "{}: {finding}", check.name)?;
            }
            let more = check.found.saturating_sub(check.shown.len() as u64);
            if more > 0 {
                writeln!(f, "{}: and {more} more", check.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_some_are_shown() {
        let mut check = Check::new("jobs");
        check.looked_at = 30;
        (0..25).for_each(|n| check.find(format!("job {n}")));
        let report = Report::new(vec![check, Check::new("logs")]);
        let text = report.to_string();
        assert_eq!(report.found, 25);
        assert!(text.starts_with("jobs                      30 looked at      25 found\nlogs "), "{text}");
        assert!(text.ends_with("jobs: job 19\njobs: and 5 more\n"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["found"], &json["checks"][0]["looked_at"]), (&25.into(), &30.into()));
    }
}
