//! What a person reads: on standard error, one line a step.

use std::io::Write;

/// A reader that has gone is no reason to stop.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
