//! Whether every job stands in one place, and ended once or goes on with one attempt: its state, its newest attempt and
//! all before it agree, and a success has something to show.

use super::{Auditor, report::Check};
use cratemill_protocol::{FailureClass, JobId, JobState};
use cratemill_store::audit::{self, jobs::Job};
use std::fmt;

/// Jobs that are in memory at once, with at most fifty attempts each.
const PAGE: i64 = 500;

const SUCCEEDED: &str = "succeeded";

pub(super) async fn check(auditor: &Auditor) -> anyhow::Result<Check> {
    let mut check = Check::new("jobs");
    let mut after = JobId(0);
    loop {
        let mut conn = auditor.pool.acquire().await?;
        let page = audit::job_ids(&mut conn, auditor.scope, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(check) };
        after = *last;
        for job in audit::jobs::of(&mut conn, &page).await? {
            check.looked_at += 1;
            for fault in faults(&job) {
                check.find(format!("job {}: {fault}", job.id));
            }
        }
    }
}

fn faults(job: &Job) -> Vec<String> {
    if let Some(fault) = misplaced(job) {
        return vec![fault];
    }
    let Ok(state) = job.state.parse::<JobState>() else {
        return vec![format!("there is no state {}", job.state)];
    };
    let mut faults = Vec::new();
    if !job.as_asked {
        faults.push(format!("{state} as something else than what was asked for"));
    }
    if !job.numbers.iter().copied().eq(1..=job.attempt) {
        faults.push(format!("its newest attempt is {}, and there are {:?}", job.attempt, job.numbers));
    }
    for ((number, ended), result) in job.numbers.iter().zip(&job.ended).zip(&job.results) {
        match result.as_deref() {
            None if *ended => faults.push(format!("attempt {number} ended without a result")),
            Some(result) if !ended => faults.push(format!("attempt {number} has not ended, with {result}")),
            None if *number != job.attempt => {
                faults.push(format!("attempt {number} has not ended, and another one followed"));
            }
            Some(SUCCEEDED) if *number != job.attempt => {
                faults.push(format!("attempt {number} succeeded, and another one followed"));
            }
            _ => {}
        }
    }
    let newest = Newest::of(job);
    if !newest.leads_to(state, job.failure_class.as_deref()) {
        let class = job.failure_class.as_deref().unwrap_or("no failure");
        faults.push(format!("{state} ({class}) after {newest}"));
    }
    if state == JobState::Succeeded && !job.published {
        faults.push("succeeded, and nothing that it made is listed".to_owned());
    }
    faults
}

/// Of a job that does not stand in exactly one place nothing else can be said.
fn misplaced(job: &Job) -> Option<String> {
    match (job.asked, &job.places[..]) {
        (true, [_]) => None,
        (true, []) => Some("lost: neither queued, nor with a builder, nor ended".to_owned()),
        (true, places) => Some(format!("doubled: it stands in {}", places.join(" and in "))),
        (false, []) => Some("has attempts, and nobody asked for it".to_owned()),
        (false, places) => Some(format!("stands in {}, and nobody asked for it", places.join(" and in "))),
    }
}

/// How far a job's newest attempt is.
#[derive(Clone, Copy)]
enum Newest<'a> {
    None,
    Open,
    /// With this result.
    Ended(&'a str),
}

impl<'a> Newest<'a> {
    fn of(job: &'a Job) -> Self {
        match job.results.last() {
            None => Self::None,
            Some(None) => Self::Open,
            Some(Some(result)) => Self::Ended(result),
        }
    }

    fn leads_to(self, state: JobState, class: Option<&str>) -> bool {
        match state {
            JobState::Queued | JobState::Cancelled => match self {
                Self::None => true,
                Self::Open => false,
                Self::Ended(result) => result != SUCCEEDED,
            },
            JobState::Assigned | JobState::Running => matches!(self, Self::Open),
            JobState::Succeeded => matches!(self, Self::Ended(SUCCEEDED)),
            JobState::Failed => match self {
                // A builder that gives a job up unasked is our trouble.
                Self::Ended("cancelled") => class == Some(FailureClass::Infrastructure.as_str()),
                Self::Ended(result) => class == Some(result),
                Self::None | Self::Open => false,
            },
        }
    }
}

impl fmt::Display for Newest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no attempt",
            Self::Open => "an attempt that has not ended",
            Self::Ended(result) => result,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: &str, class: Option<&str>, results: &[Option<&str>]) -> Job {
        let count = i32::try_from(results.len()).unwrap();
        Job {
            id: JobId(1),
            asked: true,
            places: vec!["queue".into()],
            as_asked: true,
            state: state.into(),
            attempt: count,
            failure_class: class.map(str::to_owned),
            published: state == SUCCEEDED,
            numbers: (1..=count).collect(),
            ended: results.iter().map(Option::is_some).collect(),
            results: results.iter().map(|result| result.map(str::to_owned)).collect(),
        }
    }

    #[test]
    fn what_the_queue_does_is_good() {
        for (state, class, results) in [
            ("queued", None, vec![]),
            ("queued", Some("lost"), vec![Some("lost")]),
            ("assigned", None, vec![None]),
            ("running", Some("lost"), vec![Some("lost"), None]),
            ("succeeded", None, vec![Some("succeeded")]),
            ("succeeded", None, vec![Some("lost"), Some("infrastructure"), Some("succeeded")]),
            ("failed", Some("build"), vec![Some("build")]),
            ("failed", Some("infrastructure"), vec![Some("lost"), Some("cancelled")]),
            ("cancelled", None, vec![]),
            ("cancelled", Some("lost"), vec![Some("lost")]),
            ("cancelled", None, vec![Some("build")]),
        ] {
            let job = job(state, class, &results);
            assert_eq!(faults(&job), Vec::<String>::new(), "{job:?}");
        }
    }

    #[test]
    fn everything_else_is_named() {
        for (state, class, results, words) in [
            ("queued", None, vec![None], "queued"),
            ("queued", None, vec![Some("succeeded")], "queued"),
            ("running", None, vec![Some("lost")], "running"),
            ("assigned", None, vec![], "no attempt"),
            ("running", None, vec![None, None], "attempt 1 has not ended, and another one followed"),
            ("succeeded", None, vec![Some("lost")], "after lost"),
            ("succeeded", None, vec![Some("succeeded"), Some("succeeded")], "attempt 1 succeeded"),
            ("failed", Some("build"), vec![Some("lost")], "failed (build) after lost"),
            ("failed", Some("build"), vec![Some("succeeded")], "after succeeded"),
            ("cancelled", None, vec![Some("succeeded")], "after succeeded"),
            ("cancelled", None, vec![None], "has not ended"),
            ("lurking", None, vec![], "there is no state lurking"),
        ] {
            let job = job(state, class, &results);
            let faults = faults(&job);
            assert!(faults.len() == 1 && faults[0].contains(words), "{job:?}: {faults:?}");
        }
        let with_numbers = |attempt, numbers: &[i32]| {
            let results = vec![Some("lost"); numbers.len() - 1];
            let whole = job("succeeded", None, &[results, vec![Some("succeeded")]].concat());
            Job { attempt, numbers: numbers.to_vec(), ..whole }
        };
        for (attempt, numbers, words) in [
            (3, vec![1, 3], "its newest attempt is 3, and there are [1, 3]"),
            (2, vec![1, 2, 2], "its newest attempt is 2, and there are [1, 2, 2]"),
            (1, vec![1, 4], "its newest attempt is 1, and there are [1, 4]"),
        ] {
            let faults = faults(&with_numbers(attempt, &numbers));
            assert!(faults.iter().any(|fault| fault == words), "{faults:?}");
        }
        let mut silent = job("queued", None, &[Some("lost")]);
        (silent.ended, silent.results) = (vec![true], vec![None]);
        assert_eq!(faults(&silent).len(), 2, "and it is not known why it is queued again");
        let other = Job { as_asked: false, ..job("queued", None, &[]) };
        assert_eq!(faults(&other), ["queued as something else than what was asked for"]);
        let empty = Job { published: false, ..job("succeeded", None, &[Some("succeeded")]) };
        assert_eq!(faults(&empty), ["succeeded, and nothing that it made is listed"]);
    }

    #[test]
    fn a_job_stands_in_one_place() {
        for (asked, places, fault) in [
            (true, &[][..], "lost: neither queued, nor with a builder, nor ended"),
            (true, &["queue", "finished_jobs"], "doubled: it stands in queue and in finished_jobs"),
            (false, &["leases"], "stands in leases, and nobody asked for it"),
            (false, &[], "has attempts, and nobody asked for it"),
        ] {
            let places = places.iter().map(|place| (*place).into()).collect();
            let job = Job { asked, places, ..job("", None, &[]) };
            assert_eq!(faults(&job), [fault]);
        }
    }
}
