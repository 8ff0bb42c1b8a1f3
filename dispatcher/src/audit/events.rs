//! Whether the bus told of each job's end once, and told the truth.

use super::{Auditor, CLOCK_SKEW, report::Check, scan::scan};
use cratemill_protocol::{
    JobId, JobState,
    bus::{self, DomainEvent, EventMessage},
    subjects,
};
use cratemill_store::audit::jobs;
use std::collections::HashMap;
use time::OffsetDateTime;

/// Jobs that are asked for at once.
const PAGE: usize = 1_000;

/// The ends that the stream tells of. The stream is bounded, and so is this: 16 bytes a job that ended within a day.
#[derive(Default)]
struct Ends {
    states: HashMap<JobId, JobState>,
    faults: Vec<String>,
    /// When the oldest event was stored.
    since: Option<OffsetDateTime>,
}

impl Ends {
    fn take(&mut self, payload: &[u8], scope: Option<JobId>) {
        let changed = match bus::decode::<EventMessage>(payload) {
            Ok(EventMessage { event: DomainEvent::Job(changed), .. }) => changed,
            Ok(_) => return,
            Err(error) => return self.faults.push(format!("an event cannot be read: {error}")),
        };
        if !changed.state.is_final() || scope.is_some_and(|job| job != changed.job) {
            return;
        }
        if let Some(before) = self.states.insert(changed.job, changed.state) {
            self.faults
                .push(format!("job {}: the events say {before} and then {}", changed.job, changed.state));
        }
    }
}

pub(super) async fn check(auditor: &Auditor) -> anyhow::Result<Check> {
    let mut ends = Ends::default();
    let scope = auditor.scope.job;
    scan(&auditor.bus, subjects::EVENTS_STREAM, subjects::EVENTS_ALL, |stored| {
        ends.since.get_or_insert(stored.published);
        ends.take(stored.payload, scope);
    })
    .await?;
    let mut check = Check::new("final-events");
    check.looked_at = ends.states.len() as u64;
    ends.faults.iter().for_each(|fault| check.find(fault.clone()));
    compare(auditor, &ends, &mut check).await?;
    // A live system has events on their way, and the scope may leave out jobs.
    if let Some(since) = ends.since.filter(|_| auditor.at_rest && scope.is_none()) {
        find_missing(auditor, &ends.states, since + CLOCK_SKEW, &mut check).await?;
    }
    Ok(check)
}

/// An end is told after it is committed, and is final: the database says the same.
async fn compare(auditor: &Auditor, ends: &Ends, check: &mut Check) -> anyhow::Result<()> {
    let told: Vec<(JobId, JobState)> = ends.states.iter().map(|(job, state)| (*job, *state)).collect();
    for page in told.chunks(PAGE) {
        let ids: Vec<JobId> = page.iter().map(|(job, _)| *job).collect();
        let mut conn = auditor.pool.acquire().await?;
        let ended: HashMap<JobId, String> = jobs::ends(&mut conn, &ids).await?.into_iter().collect();
        for (job, told) in page {
            match ended.get(job) {
                Some(state) if state == told.as_str() => {}
                Some(state) => check.find(format!("job {job}: the events say {told}, the database {state}")),
                None => check.find(format!("job {job}: the events say {told}, the database no end")),
            }
        }
    }
    Ok(())
}

/// Jobs that ended since the oldest event, and that no event tells of.
async fn find_missing(
    auditor: &Auditor,
    told: &HashMap<JobId, JobState>,
    since: OffsetDateTime,
    check: &mut Check,
) -> anyhow::Result<()> {
    let mut after = JobId(0);
    loop {
        let mut conn = auditor.pool.acquire().await?;
        let page = jobs::ended_since(&mut conn, since, after, i64::try_from(PAGE)?).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = *last;
        for job in page.iter().filter(|job| !told.contains_key(job)) {
            check.find(format!("job {job} ended, and no event tells of it"));
        }
    }
}
