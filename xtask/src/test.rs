//! Everything that must pass before a change is accepted.

use crate::{binaries, dev, say};
use anyhow::{Context, Result, bail};
use cratemill_stack::{
    Role, data_dir::DataDir, postgres::Postgres, process::Command, programs, secrets::Secrets,
};
use std::time::{Duration, Instant};

/// One step, on a cold and slow machine.
const STEP_TIMEOUT: Duration = Duration::from_hours(2);
/// With the benches, which are no default member: no test runs them, and that they compile is all that keeps them good.
const CLIPPY: &[&str] =
    &["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For `cargo nextest run`, after `--`.
    #[arg(last = true)]
    nextest: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    std::env::set_current_dir(dev::workspace()?).context("cannot enter the workspace")?;
    programs::install_missing(programs::BASE, say::line)?;
    programs::install_missing(&[programs::REDIS_SERVER, programs::NGINX, programs::IP], say::line)?;
    ensure_tools().await?;
    step("formatting", &["fmt", "--all", "--check"], "run `cargo fmt --all`").await?;
    step("clippy", CLIPPY, "mend what clippy names above").await?;
    // With tests they are built with features that tests bring along.
    let programs = Role::ALL.map(Role::program);
    let packages = programs.iter().flat_map(|program| ["--package", program.as_str()]);
    let check: Vec<&str> = ["check", "--quiet", "--locked", "--bins"].into_iter().chain(packages).collect();
    step("what is shipped", &check, "a service lacks what only tests have").await?;
    let bin_dir = binaries::build_with_tests().await?;

    // One server for all database tests: each test has a database of its own in it.
    let data_dir = DataDir::temporary()?;
    let postgres = Postgres::start(&data_dir, &mut Secrets::open(data_dir.path())?, false).await?;
    say::line("tests");
    let tests = Command::foreground("cargo nextest run", binaries::cargo())
        .args(["nextest", "run", "--locked"])
        .args(at_once(&arguments.nextest))
        .args(arguments.nextest)
        .env("DATABASE_URL", postgres.url())
        .env("CRATEMILL_BIN_DIR", bin_dir);
    finish(&tests, "the tests that failed stand above; `cargo xtask test -- NAME` runs one").await
}

/// More than there are cores, unless somebody says how many: each test waits for half of its time, for servers, deadlines
/// and outages.
fn at_once(said: &[String]) -> Option<String> {
    let says = |argument: &String| {
        argument.starts_with("-j") || argument.starts_with("--test-threads") || argument == "--no-capture"
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (!said.iter().any(says)).then(|| format!("--test-threads={}", cores + cores.div_ceil(2)))
}

async fn step(name: &str, arguments: &[&str], help: &str) -> Result<()> {
    let started = Instant::now();
    let command = Command::foreground(format!("cargo {}", arguments[0]), binaries::cargo()).args(arguments);
    finish(&command, help).await?;
    say::line(&format!("{name} is good ({:.1} s)", started.elapsed().as_secs_f32()));
    Ok(())
}

async fn finish(command: &Command, help: &str) -> Result<()> {
    command.run(STEP_TIMEOUT).await.with_context(|| help.to_owned())
}

/// What a Rust installation may lack.
async fn ensure_tools() -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !answers(&[tool, "--version"]) {
            bail!("cargo {tool} is missing: run `rustup component add {component}` and try again");
        }
    }
    if !answers(&["nextest", "--version"]) {
        say::line("installing cargo-nextest (cargo install --locked cargo-nextest)");
        let install = Command::foreground("cargo install cargo-nextest", binaries::cargo());
        let install = install.args(["install", "--quiet", "--locked", "cargo-nextest"]);
        finish(&install, "run `cargo install --locked cargo-nextest` by hand and try again").await?;
    }
    Ok(())
}

fn answers(arguments: &[&str]) -> bool {
    let output = std::process::Command::new(binaries::cargo()).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}
