//! Rows that something should have moved on, and that it has not.
//!
//! A live system has such rows for moments, so each has to be older than what moves it on ever needs. At rest there are
//! none, but for what was on its way when the audit began.

use super::{Auditor, report::Check};
use cratemill_store::audit::{downloads, logs, queue, sessions, uploads};

/// What was away for a minute has caught up with all it missed by then.
const QUEUES_S: f64 = 600.0;
/// The rescue looks every second, and waits half a minute after an outage of the database.
const LEASES_S: f64 = 120.0;
/// An assignment takes milliseconds; a dispatcher that takes over, or a builder that comes back, takes seconds.
const WAITS_S: f64 = 300.0;
/// A builder has ten seconds to end a job by itself, and then up to a minute until its silence costs it the lease.
const CANCELS_S: f64 = 300.0;
/// The clean-up leaves uploads for an hour and looks every five minutes; an object store may be away for longer.
const LEFTOVERS_S: f64 = 2.0 * 3_600.0;

/// What must be over at rest; on a live system, what takes too long.
pub(super) async fn moving(auditor: &Auditor) -> anyhow::Result<Vec<Check>> {
    let queues_s = if auditor.at_rest { 0.0 } else { QUEUES_S };
    let mut conn = auditor.pool.acquire().await?;
    let mut checks = Vec::new();
    if auditor.at_rest {
        let open = queue::open(&mut conn).await?;
        checks.push(Check::of("open-jobs", &open, |what, age_s| {
            format!("{what} has not ended {age_s:.0} s after it was queued")
        }));
    }
    let unpublished = queue::unpublished(&mut conn, queues_s).await?;
    checks.push(Check::of("outbox", &unpublished, |what, age_s| format!("{what} waits since {age_s:.0} s")));
    let archive = logs::not_archived(&mut conn, queues_s).await?;
    checks.push(Check::of("unarchived-logs", &archive, |what, age_s| {
        format!("{what} ended {age_s:.0} s ago, and its log is not archived")
    }));
    let mut check = Check::new("sessions");
    let requests_s = if auditor.at_rest { 0.0 } else { WAITS_S };
    let overdrawn = sessions::overdrawn(&mut conn, requests_s).await?;
    check.count(&overdrawn, |what, age_s| format!("{what} waits for less than no job since {age_s:.0} s"));
    let silent = sessions::silent(&mut conn, WAITS_S).await?;
    check
        .count(&silent, |what, age_s| format!("{what} was not seen for {age_s:.0} s, and is not logged out"));
    let in_flight = sessions::in_flight_ended(&mut conn, requests_s).await?;
    check.count(&in_flight, |what, age_s| {
        format!("{what} is on its way since {age_s:.0} s, and has ended or never was")
    });
    checks.push(check);
    let gaps = downloads::gaps(&mut conn, queues_s).await?;
    checks.push(Check::of("download-batches", &gaps, |what, age_s| {
        format!("{what}: batches are missing or counted twice since {age_s:.0} s")
    }));
    Ok(checks)
}

pub(super) async fn still(auditor: &Auditor) -> anyhow::Result<Vec<Check>> {
    let mut conn = auditor.pool.acquire().await?;
    let expired = queue::expired(&mut conn, LEASES_S).await?;
    let doubled = queue::doubled(&mut conn).await?;
    let mut waiting = Check::new("waiting-jobs");
    let passed_over = sessions::passed_over(&mut conn, WAITS_S).await?;
    waiting.count(&passed_over, |what, age_s| {
        format!("{what} is due since {age_s:.0} s, and a builder waits for it")
    });
    let out_of_line = queue::out_of_line(&mut conn, WAITS_S).await?;
    waiting.count(&out_of_line, |what, age_s| format!("{what} is due since {age_s:.0} s, and in no line"));
    let not_cancelled = queue::not_cancelled(&mut conn, CANCELS_S).await?;
    let left = uploads::left(&mut conn, LEFTOVERS_S).await?;
    let impossible = downloads::impossible(&mut conn).await?;
    let different = downloads::different_sums(&mut conn).await?;
    Ok(vec![
        Check::of("leases", &expired, |what, age_s| {
            format!("{what}: its lease ran out {age_s:.0} s ago, and it is still its builder's")
        }),
        Check::of("doubled-jobs", &doubled, |what, age_s| {
            format!(
                "{what} has been with its builder for {age_s:.0} s, and the same thing is another job's too"
            )
        }),
        waiting,
        Check::of("cancels", &not_cancelled, |what, age_s| {
            format!("{what} was to be cancelled {age_s:.0} s ago")
        }),
        Check::of("leftovers", &left, |what, age_s| {
            format!("{what}: kept, though the attempt ended {age_s:.0} s ago and did not publish it")
        }),
        Check::of("downloads", &impossible, |what, _| format!("{what} cannot be")),
        Check::of("download-sums", &different, |what, _| {
            format!("{what}: counts of files, of the crate and of its parts differ")
        }),
    ])
}
