//! The sandbox that everything of a crate runs in: bubblewrap, limits, and the certainty that nothing outlives it.
//!
//! Inside there are the system's compilers, the toolchain and the folders of one phase at constant paths; no key, no
//! token, no socket and no other process of the host; a network only for fetching, where no code of a crate runs.

mod cgroup;
mod launch;
mod output;
mod process;
mod supervise;

pub use cgroup::Cgroups;
pub(crate) use launch::inside;
pub use supervise::{Line, Stdout};

use crate::{log::Log, stop::Stop, toolchain::Toolchain};
use anyhow::{Context, bail};
use cratemill_protocol::Limits;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Debug, Clone)]
pub struct Sandbox {
    pub toolchain: Arc<Toolchain>,
    pub cgroups: Cgroups,
    /// Begins the names of our cgroups: what is left of a killed agent is found by it.
    pub prefix: String,
    /// What no job may take of the disk: some of what jobs write is seen only by what is left.
    pub reserve_bytes: u64,
}

/// One command in one sandbox.
#[derive(Debug)]
pub struct Phase<'a> {
    /// Unique among what runs at the same time.
    pub name: String,
    pub network: bool,
    pub binds: Vec<Bind>,
    pub environment: Vec<(&'static str, String)>,
    pub command: Vec<OsString>,
    /// A folder for our own notes about the sandbox, out of its sight.
    pub scratch: &'a Path,
    /// Folders of the host whose content counts as the job's output.
    pub written: Vec<PathBuf>,
    /// A folder that is not the job's own, but may not become larger than this.
    pub cache: Option<(PathBuf, u64)>,
}

#[derive(Debug)]
pub struct Bind {
    pub host: PathBuf,
    pub inside: &'static str,
    pub writable: bool,
}

/// When to stop a phase, whatever it does.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub limits: Limits,
    pub deadline: Instant,
    pub stop: Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    Wall,
    Memory,
    Processes,
    Output,
    /// Output that cannot be measured.
    Hidden,
    Cache,
    Disk,
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited { code: i64 },
    Killed(Breach),
    Cancelled,
}

/// How a phase went.
#[derive(Debug)]
pub struct Report {
    pub ended: Ended,
    pub took: Duration,
    /// The last lines of standard error.
    pub stderr_tail: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the sandbox could not be set up; bubblewrap's message is at the end of the log")]
    Setup,
    #[error("the sandbox could not be started: {0}")]
    Io(#[from] std::io::Error),
}

/// Bytes below a folder, counted no further than `enough`.
pub(crate) fn measure_bytes(folder: &Path, enough: u64) -> u64 {
    output::measure(&[folder.to_owned()], enough).bytes
}

impl Sandbox {
    /// Runs a command until it ends or is ended; when this returns, none of its processes is left.
    pub async fn run(
        &self,
        phase: &Phase<'_>,
        bounds: &Bounds,
        stdout: &mut Stdout,
        log: &Log,
    ) -> Result<Report, Error> {
        let name = format!("{}{}", self.prefix, phase.name);
        let group = self.cgroups.create(&name, &bounds.limits)?;
        let result = supervise::run(self, phase, bounds, group.as_ref(), stdout, log).await;
        if let Some(group) = group {
            group.remove().await;
        }
        result
    }

    /// Whether sandboxes work on this machine, found out before any job is asked for.
    pub fn check(toolchain: &Toolchain, scratch: &Path) -> anyhow::Result<()> {
        let phase = Phase {
            name: String::new(),
            network: false,
            binds: vec![],
            environment: vec![],
            command: vec![inside(toolchain, "bin/rustc").into(), "--version".into()],
            scratch,
            written: vec![],
            cache: None,
        };
        let report = scratch.join("check");
        let command = launch::command(toolchain, &phase, &Limits::default(), None, &report);
        let output = command.into_std().output().context("no /bin/sh")?;
        drop(std::fs::remove_file(report));
        if !output.status.success() {
            bail!(
                "no sandbox on this machine, so no job can be built: {}\n\
                 Needed: bubblewrap (bwrap), util-linux (prlimit), and user namespaces.",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}
