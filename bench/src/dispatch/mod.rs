//! How fast jobs go through: the queue alone, and the whole path to a builder and back, beside job queues that people use,
//! on the same machine and in the same run.
//!
//! A simulated builder ends each job at once with a failure that is final, which needs no upload: what is measured is
//! dispatch, not builds.

mod corpus;
mod costs;
mod limit;
mod path;
mod peers;
mod queue;
mod server;

use crate::statistics::{hundredths, median};
use anyhow::{Result, ensure};
use limit::Promise;
use peers::Load;
use serde_json::{Value, json};
use server::Server;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Jobs of each run.
    #[arg(long, default_value_t = 50_000)]
    jobs: usize,
    /// Runs of each, of which the medians are told.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Simulated builders.
    #[arg(long, default_value_t = 1_000)]
    builders: usize,
    /// Jobs that each builder takes at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    slots: u16,
    /// API nodes that hold their connections.
    #[arg(long, default_value_t = 2)]
    api: usize,
    /// Jobs that are enqueued one by one, to see how soon each reaches a builder.
    #[arg(long, default_value_t = 1_000)]
    latency_jobs: usize,
    #[arg(long, default_value_t = 100.0)]
    latency_per_s: f64,
    /// What to measure, of `queue`, `path`, `peers` and `limits`.
    #[arg(long, value_delimiter = ',', default_value = "queue,path,peers,limits")]
    only: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!((1..=1_000_000).contains(&arguments.jobs), "1 to 1000000 jobs");
    ensure!((1..=99).contains(&arguments.runs), "1 to 99 runs");
    ensure!((1..=19_000).contains(&arguments.builders), "1 to 19000 builders");
    ensure!((1..=8).contains(&arguments.api), "1 to 8 API nodes");
    ensure!((1..=100_000).contains(&arguments.latency_jobs), "1 to 100000 jobs for latency");
    let wants = |part: &str| arguments.only.iter().any(|of| of == part);
    let mut result = json!({ "bench": "dispatch", "jobs": arguments.jobs, "runs": arguments.runs });

    let server = Server::start().await?;
    let mut best_peer = None;
    if wants("peers") {
        let peers = peers(&server, &arguments).await?;
        best_peer = peers.iter().filter_map(|peer| peer["jobs_per_s"].as_f64()).max_by(f64::total_cmp);
        result["peers"] = peers.into();
    }
    if wants("queue") {
        let queue = queue_alone(&server, &arguments, false).await?;
        println!("the queue alone: {queue}");
        result["queue_jobs_per_s"] = queue["jobs_per_s"].clone();
        if let (Some(ours), Some(peer)) = (queue["jobs_per_s"].as_f64(), best_peer) {
            result["queue_ratio"] = hundredths(ours / peer).into();
        }
        result["queue"] = queue;
        let queue = queue_alone(&server, &arguments, true).await?;
        println!("the queue alone, an old snapshot open: {queue}");
        result["queue_old_snapshot"] = queue;
    }
    if wants("limits") {
        let limits = limits(&server, &arguments).await?;
        println!("what the machine allows: {limits}");
        result["limits"] = limits;
    }
    drop(server);
    if wants("path") {
        let path = whole_path(&arguments, false).await?;
        println!("the whole path: {path}");
        for field in ["jobs_per_s", "p50_ms", "p99_ms", "wal_bytes_per_job", "dead_tuples_per_job"] {
            result[field] = path[field].clone();
        }
        result["path"] = path;
        let path = whole_path(&arguments, true).await?;
        println!("the whole path, an old snapshot open: {path}");
        result["path_old_snapshot"] = path;
    }
    println!("{result}");
    Ok(())
}

async fn queue_alone(server: &Server, arguments: &Arguments, keep_snapshot: bool) -> Result<Value> {
    let mut runs = Vec::new();
    for _ in 0..arguments.runs {
        runs.push(queue::measure(server, arguments.jobs, keep_snapshot).await?);
    }
    let of = |field: fn(&queue::Measured) -> f64| median(runs.iter().map(field).collect());
    Ok(json!({
        "jobs_per_s": of(|run| run.jobs_per_s).round(),
        "enqueued_per_s": of(|run| run.enqueued_per_s).round(),
        "postgres_us_per_job": hundredths(of(|run| run.cpu_us)),
        "wal_bytes_per_job": of(|run| run.costs.wal_bytes).round(),
        "dead_tuples_per_job": hundredths(of(|run| run.costs.dead_tuples)),
    }))
}

/// What the machine allows, with one more promise each; and what the whole path cannot do without.
async fn limits(server: &Server, arguments: &Arguments) -> Result<Value> {
    let mut queue = Vec::new();
    for promise in Promise::ALL {
        let mut runs = Vec::new();
        for _ in 0..arguments.runs {
            runs.push(limit::measure(server, promise, arguments.jobs).await?);
        }
        let of = |field: fn(&limit::Measured) -> f64| median(runs.iter().map(field).collect());
        queue.push(json!({
            "name": promise.name(),
            "jobs_per_s": of(|run| run.jobs_per_s).round(),
            "postgres_us_per_job": hundredths(of(|run| run.cpu_us)),
            "wal_bytes_per_job": of(|run| run.costs.wal_bytes).round(),
            "dead_tuples_per_job": hundredths(of(|run| run.costs.dead_tuples)),
        }));
    }
    let (mut postgres, mut nats) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        postgres.push(limit::postgres_us(server, arguments.jobs).await?);
        nats.push(limit::nats_us(arguments.jobs).await?);
    }
    let (postgres, nats) = (median(postgres), median(nats));
    let path = json!({ "postgres_us_per_job": hundredths(postgres), "nats_us_per_job": hundredths(nats) });
    Ok(json!({ "queue": queue, "path": path }))
}

async fn whole_path(arguments: &Arguments, keep_snapshot: bool) -> Result<Value> {
    let mut runs = Vec::new();
    for _ in 0..arguments.runs {
        runs.push(path::measure(arguments, keep_snapshot).await?);
    }
    Ok(path::json(&runs))
}

/// Each by its name, with the medians of its runs.
async fn peers(server: &Server, arguments: &Arguments) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (name, old_snapshot) in
        [("graphile_worker", false), ("awa", false), ("graphile_worker", true), ("awa", true)]
    {
        let load = Load {
            jobs: arguments.jobs,
            latency_jobs: arguments.latency_jobs,
            latency_per_s: arguments.latency_per_s,
            old_snapshot,
        };
        let mut runs = Vec::new();
        for _ in 0..arguments.runs {
            let url = server.database().await?;
            let run = match name {
                "awa" => peers::awa(&url, &load).await,
                _ => peers::graphile(&url, &load).await,
            };
            match run {
                Ok(run) => runs.push(run),
                Err(error) => println!("{name}: a run failed and does not count: {error:#}"),
            }
        }
        ensure!(!runs.is_empty(), "{name} never came to its end");
        let of = |field: fn(&peers::Measured) -> f64| median(runs.iter().map(field).collect());
        let peer = json!({
            "name": name,
            "old_snapshot": old_snapshot,
            "runs": runs.len(),
            "jobs_per_s": of(|run| run.jobs_per_s).round(),
            "enqueued_per_s": of(|run| run.enqueued_per_s).round(),
            "p50_ms": hundredths(of(|run| run.p50_ms)),
            "p99_ms": hundredths(of(|run| run.p99_ms)),
            "max_ms": hundredths(of(|run| run.max_ms)),
            "wal_bytes_per_job": of(|run| run.wal_bytes_per_job).round(),
            "dead_tuples_per_job": hundredths(of(|run| run.dead_tuples_per_job)),
        });
        println!("{peer}");
        all.push(peer);
    }
    Ok(all)
}
