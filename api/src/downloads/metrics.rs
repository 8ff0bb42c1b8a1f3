//! The names of what is measured of counting, in one place.

use metrics::{counter, gauge, histogram};
use std::time::Duration;

const COUNTED: &str = "cratemill_downloads_counted_total";
const HELD: &str = "cratemill_downloads_held";
const HELD_BYTES: &str = "cratemill_downloads_held_bytes";
const DROPPED: &str = "cratemill_downloads_dropped_total";
const COMMIT_SECONDS: &str = "cratemill_download_commit_seconds";

/// The bus has them.
pub(super) fn counted(downloads: u64) {
    counter!(COUNTED).increment(downloads);
}

/// They wait for the bus.
pub(super) fn held(downloads: u64, bytes: u64) {
    gauge!(HELD).set(float(downloads));
    gauge!(HELD_BYTES).set(float(bytes));
}

/// They were answered, and are counted nowhere: what the bounds of the journal cost.
pub(super) fn dropped(downloads: u64) {
    counter!(DROPPED).increment(downloads);
}

/// From when a batch was closed until nobody had to wait for it any more.
pub(super) fn committed(time: Duration) {
    histogram!(COMMIT_SECONDS).record(time.as_secs_f64());
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float, and exact up to 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}
