//! The names of the counter's metrics, in one place.

use metrics::{counter, histogram};

const BATCHES: &str = "cratemill_download_batches_total";
const COUNTED: &str = "cratemill_downloads_counted_total";
const APPLY_SECONDS: &str = "cratemill_download_apply_seconds";

/// `result` is applied or poison.
pub fn batches(result: &'static str, count: usize) {
    counter!(BATCHES, "result" => result).increment(count as u64);
}

pub fn counted(downloads: u64) {
    counter!(COUNTED).increment(downloads);
}

pub fn applied_in(seconds: f64) {
    histogram!(APPLY_SECONDS).record(seconds);
}
