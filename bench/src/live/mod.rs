//! What viewers cost the live gateway, beside nchan and beside plain axum: memory, deliveries, and what the death of a
//! node does to them.
//!
//! ```text
//! publisher (this process) -> bus or HTTP -> server (processes of its own) -> viewers (processes of their own)
//! ```
//! An event carries the time at which it was sent, on a clock that all processes share.

mod clock;
mod crowd;
mod fanout;
pub(crate) mod files;
mod histogram;
pub(crate) mod logs;
mod many;
mod memory;
mod publisher;
pub(crate) mod servers;
mod storm;
mod topics;
pub(crate) mod usage;
pub(crate) mod viewers;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Bytes of an idle viewer, and after traffic.
    Memory,
    /// 150,000 connections at once.
    #[value(name = "150k")]
    Many,
    /// Deliveries for each second of CPU time.
    Fanout,
    /// 10,000 topics with 10 viewers each.
    Topics,
    /// A node with 18,000 viewers is killed.
    Storm,
    /// The log of a running job: its first line, and many lines to many viewers.
    Logs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; may repeat. Without it, everything.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs of each part but of 150k, of which the medians are told.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Connections whose memory is measured.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Lines that a followed log gets in a second.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    log_lines: u32,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!((1..=99).contains(&arguments.runs), "1 to 99 runs");
    ensure!(
        (100..=crowd::MAX_EACH).contains(&arguments.connections),
        "100 to {} connections",
        crowd::MAX_EACH
    );
    files::raise_limit()?;
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut result = json!({ "bench": "live" });
    if wants(Part::Memory) {
        println!("memory: {} connections", arguments.connections);
        add(&mut result, memory::measure(arguments.connections, arguments.runs).await?);
    }
    if wants(Part::Many) {
        println!("150k");
        add(&mut result, many::measure().await?);
    }
    if wants(Part::Fanout) {
        println!("fanout");
        add(&mut result, fanout::measure(arguments.runs).await?);
    }
    if wants(Part::Topics) {
        println!("topics");
        add(&mut result, topics::measure(arguments.runs).await?);
    }
    if wants(Part::Storm) {
        println!("storm");
        add(&mut result, storm::measure(arguments.runs).await?);
    }
    if wants(Part::Logs) {
        println!("logs: {} lines a second", arguments.log_lines);
        add(&mut result, logs::measure(arguments.runs, arguments.log_lines).await?);
    }
    println!("{result}");
    Ok(())
}

/// The fields of one part beside those of the others.
fn add(result: &mut Value, part: Value) {
    if let (Value::Object(all), Value::Object(part)) = (result, part) {
        all.extend(part);
    }
}
