use clap::Parser;
use cratemill_builder::{agent::Signal, config::Args, run, telemetry};
use std::process::ExitCode;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::init(args.log_format);
    match start(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    let signals = watch_signals()?;
    run(args.check()?, signals).await
}

/// The first SIGTERM or SIGINT drains, the second aborts.
fn watch_signals() -> std::io::Result<mpsc::Receiver<Signal>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        for wish in [Signal::Drain, Signal::Abort] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send(wish).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
