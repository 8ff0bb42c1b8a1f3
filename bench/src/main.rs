//! Load generators and peers. Each bench ends with one line of JSON.

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
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().bench {
        Bench::Overhead(arguments) => overhead::run(arguments).await,
    }
}
