//! `cargo xtask`: the demo, a local Cratemill, everything that must pass, and the benches.

mod bench;
mod binaries;
mod demo;
mod dev;
mod say;
mod test;
mod up;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

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
        result = interrupted() => match result {
            Ok(()) => {
                say::line("interrupted");
                return ExitCode::from(130);
            }
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::line(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Up(arguments) => up::run(arguments).await,
        Command::Test(arguments) => test::run(arguments).await,
        Command::Bench(arguments) => bench::run(arguments).await,
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
