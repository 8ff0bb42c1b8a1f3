//! Load generators and peers. Each bench ends with one line of JSON.

mod fleet;
mod idle;
mod overhead;

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
    /// What thousands of connected builders cost that wait, and how soon one of them has a new job.
    Idle(idle::Arguments),
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().bench {
        Bench::Overhead(arguments) => overhead::run(arguments).await,
        Bench::Idle(arguments) => idle::run(arguments).await,
    }
}
