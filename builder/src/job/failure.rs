//! Why an attempt did not succeed, in words that help the crate's author.

use crate::{
    events::Abandoned,
    sandbox::{self, Breach},
    workdir::MAX_CACHE_BYTES,
};
use cratemill_protocol::{FailureClass, Limits};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Somebody asked for the end, or nobody waits for the result any more.
    Cancelled,
    Failed {
        class: FailureClass,
        message: String,
    },
}

impl Failure {
    /// The crate's fault: final for this toolchain.
    pub(super) fn build(message: impl Into<String>) -> Self {
        Self::Failed { class: FailureClass::Build, message: message.into() }
    }

    pub(super) fn output_too_large(message: impl Into<String>) -> Self {
        Self::Failed { class: FailureClass::OutputTooLarge, message: message.into() }
    }

    /// Ours: somebody tries again.
    pub(super) fn infrastructure(message: impl Into<String>) -> Self {
        Self::Failed { class: FailureClass::Infrastructure, message: message.into() }
    }

    pub(super) fn breach(breach: Breach, limits: &Limits) -> Self {
        let (class, message) = match breach {
            Breach::Wall => (FailureClass::Timeout, format!("killed: took longer than {} s", limits.wall_s)),
            Breach::Memory => (
                FailureClass::OutOfMemory,
                format!("killed: used more than {} of memory", size(limits.memory_bytes)),
            ),
            Breach::Processes => (
                FailureClass::Build,
                format!("killed: started more than {} processes and threads", limits.processes),
            ),
            Breach::Output => (
                FailureClass::OutputTooLarge,
                format!("killed: wrote more than {} of files", size(limits.output_bytes)),
            ),
            Breach::Hidden => (
                FailureClass::OutputTooLarge,
                "killed: made folders that cannot be read or are too deep to be measured".into(),
            ),
            Breach::Cache => (
                FailureClass::Infrastructure,
                format!("killed: the builder's download cache grew to {}", size(MAX_CACHE_BYTES)),
            ),
            Breach::Disk => {
                (FailureClass::Infrastructure, "killed: the builder's disk is almost full".into())
            }
            Breach::Log => (
                FailureClass::OutputTooLarge,
                format!("killed: printed more than {} of log", size(limits.log_bytes)),
            ),
        };
        Self::Failed { class, message }
    }
}

impl From<Abandoned> for Failure {
    fn from(Abandoned: Abandoned) -> Self {
        Self::Cancelled
    }
}

impl From<sandbox::Error> for Failure {
    fn from(error: sandbox::Error) -> Self {
        Self::infrastructure(error.to_string())
    }
}

/// Errors of our own disk.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::infrastructure(format!("the builder's disk: {error}"))
    }
}

/// As people say it: 512 MiB.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [(512 << 20, "512 MiB"), (3 << 29, "1.5 GiB"), (12, "12 B"), (2048, "2 KiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
