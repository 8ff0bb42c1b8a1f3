//! `cargo xtask`: the demo, a local Cratemill, everything that must pass, and the benches.

mod bench;
mod binaries;
mod demo;
mod dev;
mod say;
mod test;
mod up;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use up::Running;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Demo, local stack, tests and benches of Cratemill")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a real crate from the public registry, from its index entry to a verified download that is counted.
    Demo(demo::Arguments),
    /// Start a local Cratemill, write .dev/env, and stay until Ctrl-C.
    Up(up::Arguments),
    /// Run everything that must pass.
    Test(test::Arguments),
    /// Run a bench; its last line is one JSON object.
    Bench(bench::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Whatever a signal interrupts is dropped, and a dropped stack leaves no process.
    let result = tokio::select! {
        result = run(arguments.command) => result,
        result = interrupted() => result.and_then(|()| bail!("interrupted")),
    };
    // From here on a signal is a wish to stop in order.
    let result = match result {
        Ok(Some(running)) => running.stay().await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::line(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells what is to stay, if anything.
async fn run(command: Command) -> Result<Option<Running>> {
    match command {
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Up(arguments) => up::run(arguments).await.map(Some),
        Command::Test(arguments) => test::run(arguments).await.map(|()| None),
        Command::Bench(arguments) => bench::run(arguments).await.map(|()| None),
    }
}

/// Returns at Ctrl-C, SIGTERM or when the terminal goes away.
async fn interrupted() -> Result<()> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
