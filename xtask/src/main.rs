//! `cargo xtask`: the demo, a local Cratemill, an audit of it, everything that must pass, and the benches.

mod audit;
mod bench;
mod binaries;
mod demo;
mod dev;
mod faults;
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
    /// Look whether what the local Cratemill holds is what it should be: exit code 1 says that something is not.
    Audit(audit::Arguments),
    /// Run everything that must pass.
    Test(test::Arguments),
    /// Break things at random while jobs run, for minutes; `test` does so for one.
    Faults(faults::Arguments),
    /// Run a bench; its last line is one JSON object.
    Bench(bench::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failure = match arguments.command {
        Command::Audit(_) => ExitCode::from(audit::FAILED),
        _ => ExitCode::FAILURE,
    };
    // Whatever a signal interrupts is dropped, and a dropped stack leaves no process.
    let result = tokio::select! {
        result = run(arguments.command) => result,
        result = interrupted() => result.and_then(|()| bail!("interrupted")),
    };
    // From here on a signal is a wish to stop in order.
    let result = match result {
        Ok(Next::Stay(running)) => running.stay().await.map(|()| ExitCode::SUCCESS),
        Ok(Next::End(code)) => Ok(code),
        Err(error) => Err(error),
    };
    result.unwrap_or_else(|error| {
        say::line(&format!("failed: {error:#}"));
        failure
    })
}

/// What follows when a command has done its work.
enum Next {
    Stay(Box<Running>),
    End(ExitCode),
}

async fn run(command: Command) -> Result<Next> {
    let code = match command {
        Command::Demo(arguments) => match demo::run(arguments).await? {
            Some(running) => return Ok(Next::Stay(Box::new(running))),
            None => ExitCode::SUCCESS,
        },
        Command::Up(arguments) => {
            return up::run(arguments).await.map(|running| Next::Stay(Box::new(running)));
        }
        Command::Audit(arguments) => audit::run(arguments).await?,
        Command::Test(arguments) => test::run(arguments).await.map(|()| ExitCode::SUCCESS)?,
        Command::Faults(arguments) => faults::run(arguments).await.map(|()| ExitCode::SUCCESS)?,
        Command::Bench(arguments) => bench::run(arguments).await.map(|()| ExitCode::SUCCESS)?,
    };
    Ok(Next::End(code))
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
