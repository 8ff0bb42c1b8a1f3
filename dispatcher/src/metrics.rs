//! The names of the dispatcher's metrics, in one place.

use metrics::{counter, gauge};

const ASSIGNED: &str = "cratemill_jobs_assigned_total";
const OUTCOMES: &str = "cratemill_outcomes_total";
const EXPIRED: &str = "cratemill_leases_expired_total";
const OUTBOX_LAG: &str = "cratemill_outbox_entries";
const QUEUED: &str = "cratemill_queue_jobs";
const REGISTRY: &str = "cratemill_registry_requests_total";
const ARCHIVED: &str = "cratemill_logs_archived_total";

pub fn assigned(count: usize) {
    counter!(ASSIGNED).increment(count as u64);
}

/// `result` is succeeded, cancelled, a failure class, stale or poison.
pub fn outcome(result: &'static str) {
    counter!(OUTCOMES, "result" => result).increment(1);
}

pub fn expired(count: usize) {
    counter!(EXPIRED).increment(count as u64);
}

/// Entries of the outbox that were waiting when it was last read; at most one read's worth.
pub fn outbox_lag(entries: usize) {
    gauge!(OUTBOX_LAG).set(u32::try_from(entries).unwrap_or(u32::MAX));
}

pub fn queue(queued: u64, running: u64) {
    gauge!(QUEUED, "state" => "queued").set(u32::try_from(queued).unwrap_or(u32::MAX));
    gauge!(QUEUED, "state" => "running").set(u32::try_from(running).unwrap_or(u32::MAX));
}

/// `result` is fresh, unchanged, not_found, busy or unavailable.
pub fn registry_request(result: &'static str) {
    counter!(REGISTRY, "result" => result).increment(1);
}

pub fn logs_archived(count: u64) {
    counter!(ARCHIVED).increment(count);
}
