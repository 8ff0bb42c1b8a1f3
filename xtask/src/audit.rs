//! An audit of the local Cratemill that `cargo xtask up` has started.

use crate::{binaries, dev};
use anyhow::{Context, Result, bail};
use cratemill_stack::{Role, process::Command};
use std::{fs, process::ExitCode, time::Duration};

/// An audit bounds its own waits; this is for one that does not.
const TIMEOUT: Duration = Duration::from_hours(2);
/// As `cratemill-dispatcher audit` ends where it can say nothing.
pub(crate) const FAILED: u8 = 2;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For `cratemill-dispatcher audit`: --at-rest, --job ID, --since TIME, --json.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

/// Ends as the audit does.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let path = dev::folder()?.join("env");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read: `cargo xtask up` writes it", path.display()))?;
    let program = binaries::build(false).await?.join(Role::Dispatcher.program());
    let mut command = Command::foreground("audit", program).args(["audit"]).args(arguments.more);
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        command = command.env(key, value);
    }
    let process = command.spawn().await?;
    match process.exited_within(TIMEOUT).await?.and_then(|status| status.code()) {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(FAILED))),
        None => bail!("the audit did not end by itself"),
    }
}
