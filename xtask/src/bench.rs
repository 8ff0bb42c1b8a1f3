//! Runs a bench of the `bench` crate, optimised, against optimised services.

use crate::{binaries, dev, say};
use anyhow::{Context, Result};
use cratemill_stack::{process::Command, programs};
use std::time::Duration;

/// Of what a Mastodon has it needs Redis too.
const MASTODON: &str = "mastodon";
/// A bench bounds its own waits; this is for one that does not.
const BENCH_TIMEOUT: Duration = Duration::from_hours(2);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which one; without a name, the benches are listed.
    name: Option<String>,
    /// For the bench, after `--`.
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    std::env::set_current_dir(dev::workspace()?).context("cannot enter the workspace")?;
    let mut command = Command::foreground("bench", binaries::cargo());
    command = command.args(["run", "--quiet", "--locked", "--release", "--package", "cratemill-bench", "--"]);
    if let Some(name) = arguments.name {
        programs::install_missing(programs::BASE, say::line)?;
        if name == MASTODON {
            programs::install_missing(&[programs::REDIS_SERVER], say::line)?;
        }
        let bin_dir = binaries::build(true).await?;
        command = command.env("CRATEMILL_BIN_DIR", bin_dir).args([name]).args(arguments.more);
    } else {
        command = command.args(["--help"]);
    }
    command.run(BENCH_TIMEOUT).await
}
