//! Mastodon's streaming API: what viewers cost who each have blocked, muted and filtered something, what listeners to a user's
//! own stream cost, and what a connection takes in memory.
//!
//! ```text
//! this process: statuses -> Redis -> a node (a process of its own) -> viewers, in a thread of this process
//! ```
//! The original, measured on a machine like this one, delivered 8,900 statuses per CPU-second to a thousand viewers with
//! filters and 59,000 without, took 153 MB before the first client and 6 to 40 kB for each. It is not to be had from any
//! registry, so it is not measured here again: the ratios are to those numbers.

mod farm;
mod filtered;
mod memory;
mod posts;
mod tally;
mod user;
mod viewers;

use crate::{dialects::add, live::files, statistics::hundredths};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Deliveries of the original for each second of a processor.
const ORIGINAL_FILTERED: f64 = 8_900.0;
const ORIGINAL_UNFILTERED: f64 = 59_000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// 1,000 viewers of the public stream, each with blocks, languages and keywords: 10 statuses a second, and as fast as it
    /// goes.
    Filtered,
    /// 16,000 listeners to a user's stream at 5 events a second, and 1,000 at 400.
    User,
    /// Bytes of a connection over WebSocket, each of another account.
    Memory,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; may repeat. Without it, everything.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs of each part but of memory, of which the medians are told.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Connections whose memory is measured.
    #[arg(long, default_value_t = 9_000)]
    connections: usize,
    /// Seconds that statuses come for, in each run.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!((1..=99).contains(&arguments.runs), "1 to 99 runs");
    ensure!((1..=600).contains(&arguments.seconds), "1 to 600 seconds");
    ensure!((100..=18_000).contains(&arguments.connections), "100 to 18,000 connections");
    files::raise_limit()?;
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut result = json!({ "bench": "mastodon" });
    if wants(Part::Filtered) {
        println!("filtered: 1,000 viewers");
        add(&mut result, filtered::measure(arguments.runs, arguments.seconds).await?);
    }
    if wants(Part::User) {
        println!("user");
        add(&mut result, user::measure(arguments.runs, arguments.seconds).await?);
    }
    if wants(Part::Memory) {
        println!("memory: {} connections", arguments.connections);
        add(&mut result, memory::measure(arguments.connections).await?);
    }
    println!("{result}");
    Ok(())
}

/// A number, and how many times the original's it is.
fn compared(name: &str, per_cpu_s: f64, original: f64) -> Value {
    json!({ name: per_cpu_s.round(), format!("{name}_ratio"): hundredths(per_cpu_s / original) })
}
