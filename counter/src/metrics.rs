//! The names of the counter's metrics, in one place.

use crate::sane::Mended;
use cratemill_store::downloads::Applied;
use metrics::{counter, histogram};

const BATCHES: &str = "cratemill_download_batches_total";
const COUNTED: &str = "cratemill_downloads_counted_total";
const HOMELESS: &str = "cratemill_downloads_homeless_total";
const REDATED: &str = "cratemill_downloads_redated_total";
const CUT: &str = "cratemill_downloads_cut_total";
const APPLY_SECONDS: &str = "cratemill_download_apply_seconds";

/// `result` is applied or poison.
pub(crate) fn batches(result: &'static str, count: usize) {
    counter!(BATCHES, "result" => result).increment(count as u64);
}

pub(crate) fn counted(applied: Applied) {
    counter!(COUNTED).increment(applied.counted);
    counter!(HOMELESS).increment(applied.homeless);
}

pub(crate) fn mended(mended: &Mended) {
    counter!(REDATED).increment(mended.redated);
    counter!(CUT).increment(mended.cut);
}

pub(crate) fn applied_in(seconds: f64) {
    histogram!(APPLY_SECONDS).record(seconds);
}
