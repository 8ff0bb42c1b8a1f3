//! Downloads: how many a counter counts, what an answer costs beside one of nginx, how soon counts are read, and whether each
//! download is counted once while everything is killed.

mod answer;
mod clients;
mod cluster;
mod connection;
mod counter;
mod day;
mod exactness;
mod http;
mod reads;
mod seed;
mod zipf;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to measure, of `counter`, `http`, `reads` and `exactness`.
    #[arg(long, value_delimiter = ',', default_value = "counter,http,reads,exactness")]
    only: Vec<String>,
    /// Runs of each but of exactness, of which the medians are told.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Of each run, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Keep-alive connections that ask for redirects.
    #[arg(long, default_value_t = 256)]
    keep_alive: usize,
    /// Downloads that have to be answered while everything is killed.
    #[arg(long, default_value_t = 2_000_000)]
    downloads: u64,
    /// Of the schedule of what is killed when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Of clients while everything is killed, to all nodes together.
    #[arg(long, default_value_t = 96)]
    connections: usize,
    /// A new folder that exactness leaves its logs and tables in.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!((1..=1_000_000_000).contains(&arguments.downloads), "1 to 1000000000 downloads");
    ensure!((1..=2_000).contains(&arguments.connections), "1 to 2000 connections");
    ensure!((1..=2_000).contains(&arguments.keep_alive), "1 to 2000 keep-alive connections");
    ensure!((1..=99).contains(&arguments.runs), "1 to 99 runs");
    let known = ["counter", "http", "reads", "exactness"];
    let unknown = arguments.only.iter().find(|part| !known.contains(&part.as_str()));
    ensure!(unknown.is_none(), "there is no part {unknown:?}: {}", known.join(", "));
    let wants = |part: &str| arguments.only.iter().any(|of| of == part);
    let mut result = json!({ "bench": "downloads" });
    let time = Duration::from_secs(arguments.seconds);
    if wants("counter") {
        let plan = counter::Plan { runs: arguments.runs, time };
        add(&mut result, counter::measure(&plan).await?);
    }
    if wants("http") {
        let plan = http::Plan { runs: arguments.runs, time, connections: arguments.keep_alive };
        add(&mut result, http::measure(&plan).await?);
    }
    if wants("reads") {
        add(&mut result, reads::measure().await?);
    }
    if wants("exactness") {
        let Arguments { seed, downloads, connections, data_dir, .. } = arguments;
        let plan = exactness::Plan { seed, downloads, connections, data_dir };
        add(&mut result, exactness::measure(&plan).await?);
    }
    println!("{result}");
    ensure!(result["lost"].as_u64().unwrap_or_default() == 0, "downloads were lost");
    ensure!(result["twice"].as_u64().unwrap_or_default() == 0, "downloads were counted twice");
    Ok(())
}

/// The fields of one part beside those of the others.
fn add(result: &mut Value, part: Value) {
    if let (Value::Object(all), Value::Object(part)) = (result, part) {
        all.extend(part);
    }
}
