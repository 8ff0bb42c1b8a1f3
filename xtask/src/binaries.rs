//! Builds the programs that a stack starts.

use crate::say;
use anyhow::{Context, Result, bail};
use cratemill_stack::{Role, process::Command};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// A cold build of everything takes minutes; two hours is a machine that hangs.
const BUILD_TIMEOUT: Duration = Duration::from_hours(2);
/// How long a build is quiet before it says that it goes on.
const STILL_BUILDING: Duration = Duration::from_secs(30);

/// The cargo that runs us, or the one in PATH.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Builds every service, unless CRATEMILL_BIN_DIR says where they are already; tells the folder they are in.
pub(crate) async fn build(release: bool) -> Result<PathBuf> {
    let mut command = Command::foreground("cargo build", cargo());
    command = command.args(["build", "--quiet", "--locked", "--bins"]);
    for role in Role::ALL {
        command = command.args(["--package", &role.program()]);
    }
    if release {
        command = command.args(["--release"]);
    }
    built_by(&command, release).await
}

/// The same with all tests: what they and the services are made of has the same features then, and is compiled once.
pub(crate) async fn build_with_tests() -> Result<PathBuf> {
    let command = Command::foreground("cargo test", cargo());
    built_by(&command.args(["test", "--quiet", "--locked", "--no-run"]), false).await
}

async fn built_by(command: &Command, release: bool) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CRATEMILL_BIN_DIR") {
        return Ok(folder.into());
    }
    say::line("building Cratemill (a few minutes the first time)");
    let started = Instant::now();
    let process = command.spawn().await?;
    loop {
        match process.exited_within(STILL_BUILDING).await? {
            Some(status) if status.success() => break,
            Some(status) => bail!("cargo build failed ({status}); what is wrong stands above"),
            None if started.elapsed() > BUILD_TIMEOUT => bail!("the build does not end"),
            None => say::line(&format!("  still building, {} s", started.elapsed().as_secs())),
        }
    }
    // This program was built into a folder beside it: <target>/debug.
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    let profile = exe.parent().context("this program is in no folder")?;
    Ok(if release { profile.with_file_name("release") } else { profile.to_owned() })
}
