//! The dialects beside our own: the zero-code event API, and publish/subscribe over CBOR. The older systems that speak them
//! are not measured here: what theirs costs an idle connection, 14.4 kB, was measured on a machine like this one.
//!
//! ```text
//! this process: people who insert and watch, members that acknowledge -> nodes (processes of their own) -> bus, database
//! ```

mod events;
mod farm;
mod memory;
mod people;
mod precision;
mod queue;
mod sync;

use crate::live::files;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Events inserted over HTTP and seen by a watcher, in a second.
    Events,
    /// How late 1,000 events of the same second are, while a million others wait.
    Precision,
    /// 1,000 names to 1,000 clients that come at once, and 100,000 names to one.
    Sync,
    /// Publications that members of a group get and acknowledge, in a second.
    Queue,
    /// Bytes of an idle connection of each dialect.
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
    #[arg(long, default_value_t = 5_000)]
    connections: usize,
    /// Events that wait while others fall due.
    #[arg(long, default_value_t = 1_000_000)]
    pending: u32,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!((1..=99).contains(&arguments.runs), "1 to 99 runs");
    ensure!((100..=9_000).contains(&arguments.connections), "100 to 9,000 connections");
    files::raise_limit()?;
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut result = json!({ "bench": "dialects" });
    if wants(Part::Events) {
        println!("events");
        add(&mut result, events::measure(arguments.runs).await?);
    }
    if wants(Part::Precision) {
        println!("precision: {} events wait", arguments.pending);
        add(&mut result, precision::measure(arguments.runs, arguments.pending).await?);
    }
    if wants(Part::Sync) {
        println!("sync");
        add(&mut result, sync::measure(arguments.runs).await?);
    }
    if wants(Part::Queue) {
        println!("queue");
        add(&mut result, queue::measure(arguments.runs).await?);
    }
    if wants(Part::Memory) {
        println!("memory: {} connections", arguments.connections);
        add(&mut result, memory::measure(arguments.connections).await?);
    }
    println!("{result}");
    Ok(())
}

/// The fields of one part beside those of the others.
pub(crate) fn add(result: &mut Value, part: Value) {
    if let (Value::Object(all), Value::Object(part)) = (result, part) {
        all.extend(part);
    }
}
