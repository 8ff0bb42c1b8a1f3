//! The names of the scheduler's metrics, in one place.

use metrics::{counter, gauge, histogram};
use std::time::Duration;

const LEADS: &str = "cratemill_schedule_leads";
const FIRED: &str = "cratemill_schedule_events_total";
const DELAY: &str = "cratemill_schedule_delay_seconds";

pub(crate) fn leads(does: bool) {
    gauge!(LEADS).set(if does { 1.0 } else { 0.0 });
}

/// Events that the bus has, and the time since the last of them was due: since its timestamp, however long ago that was
/// when it was inserted.
pub(crate) fn fired(count: u64, delay: Duration) {
    counter!(FIRED).increment(count);
    histogram!(DELAY).record(delay);
}
