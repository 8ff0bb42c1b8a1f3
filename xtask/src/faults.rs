//! Long runs of the tests that break things: hundreds of jobs, and what is away is away for half a minute.

use crate::{binaries, dev, say};
use anyhow::{Context, Result};
use cratemill_stack::{process::Command, programs};
use std::{path::PathBuf, time::Duration};

/// As long as its profile in `.config/nextest.toml` lets one test run, and the others.
const TIMEOUT: Duration = Duration::from_hours(7);
const RANDOM: &str = "test(=end_to_end::faults::jobs_outlive_a_random_schedule_of_faults)";
const ALL: &str = "test(/^end_to_end::faults::/)";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Repeats the random schedule that has this seed, and runs nothing else.
    #[arg(long)]
    seed: Option<u64>,
    /// Jobs of the random schedule.
    #[arg(long, default_value_t = 300)]
    jobs: usize,
    /// How long the random schedule breaks things; a fault comes about every ten seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    minutes: u64,
    /// Where the cluster of the random schedule keeps its data and logs; without it they go away with it.
    #[arg(long, value_name = "PATH")]
    data_dir: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    std::env::set_current_dir(dev::workspace()?).context("cannot enter the workspace")?;
    programs::install_missing(programs::BASE, say::line)?;
    programs::install_missing(&[programs::IP], say::line)?;
    let bin_dir = binaries::build(false).await?;
    let filter = if arguments.seed.is_some() { RANDOM } else { ALL };
    let mut command = Command::foreground("cargo nextest run", binaries::cargo())
        .args(["nextest", "run", "--locked", "--package", "cratemill-stack", "--profile", "faults"])
        .args(["--no-capture", "-E", filter])
        .env("CRATEMILL_BIN_DIR", bin_dir)
        .env("FAULTS_LONG", "1")
        .env("FAULTS_JOBS", arguments.jobs.to_string())
        .env("FAULTS_MINUTES", arguments.minutes.to_string());
    if let Some(seed) = arguments.seed {
        command = command.env("FAULTS_SEED", seed.to_string());
    }
    if let Some(data_dir) = arguments.data_dir {
        command = command.env("FAULTS_DATA_DIR", data_dir);
    }
    command.run(TIMEOUT).await.context("the findings and the seed stand above")
}
