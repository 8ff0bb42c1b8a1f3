//! Load generators and peers. Each bench ends with one line of JSON.

mod cpu;
mod dialects;
mod dispatch;
mod downloads;
mod fleet;
mod idle;
mod live;
mod mastodon;
mod overhead;
mod statistics;
mod usage;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Benches of Cratemill")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// What Cratemill adds to the time that cargo itself runs, from enqueue to listed artifact.
    Overhead(overhead::Arguments),
    /// How fast jobs go through the queue, and all the way to builders and back, beside other job queues.
    Dispatch(dispatch::Arguments),
    /// What thousands of connected builders cost that wait, and how soon one of them has a new job.
    Idle(idle::Arguments),
    /// How fast downloads are counted and answered, and whether each is counted once though everything is killed.
    Downloads(downloads::Arguments),
    /// What viewers cost the live gateway and other servers, idle, in traffic, and when a node dies.
    Live(live::Arguments),
    /// What the zero-code event API and publish/subscribe over CBOR do in a second, and what their clients cost.
    Dialects(dialects::Arguments),
    /// What viewers of Mastodon's streams cost.
    Mastodon(mastodon::Arguments),
    /// Part of `live`: many viewers in one process.
    #[command(hide = true)]
    LiveViewers(live::viewers::Arguments),
    /// Part of `live`: viewers of a log in one process.
    #[command(hide = true)]
    LiveLogReaders(live::logs::readers::Arguments),
    /// Part of `live`: a server that is plain axum.
    #[command(hide = true)]
    LiveAxum(live::servers::axum::Arguments),
    /// Part of `live`: a loop that writes to sockets.
    #[command(hide = true)]
    LiveRaw(live::servers::raw::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().bench {
        // Nothing else is to be in the process.
        Bench::LiveViewers(arguments) => live::viewers::run(arguments),
        Bench::LiveRaw(arguments) => live::servers::raw::run(&arguments),
        Bench::LiveLogReaders(arguments) => live::logs::readers::run(&arguments),
        bench => measure(bench),
    }
}

#[tokio::main]
async fn measure(bench: Bench) -> Result<()> {
    match bench {
        Bench::Overhead(arguments) => overhead::run(arguments).await,
        Bench::Dispatch(arguments) => dispatch::run(arguments).await,
        Bench::Idle(arguments) => idle::run(arguments).await,
        Bench::Downloads(arguments) => downloads::run(arguments).await,
        Bench::Live(arguments) => live::run(arguments).await,
        Bench::Dialects(arguments) => dialects::run(arguments).await,
        Bench::Mastodon(arguments) => mastodon::run(arguments).await,
        Bench::LiveViewers(arguments) => live::viewers::run(arguments),
        Bench::LiveLogReaders(arguments) => live::logs::readers::run(&arguments),
        Bench::LiveAxum(arguments) => live::servers::axum::run(arguments).await,
        Bench::LiveRaw(arguments) => live::servers::raw::run(&arguments),
    }
}
