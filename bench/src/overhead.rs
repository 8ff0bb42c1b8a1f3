//! Enqueue to listed artifact, less the time that cargo itself ran, as the builder measured it.
//!
//! The crate is a fixture from a registry on loopback, so that neither the network nor a long build hides the rest.

use crate::statistics::median;
use anyhow::{Context, Result, bail, ensure};
use cratemill_stack::{
    Cluster, Options,
    client::Client,
    fixtures::{Registry, crates, registry},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Of one fixture: cargo takes a second or two for each of its jobs.
const RUN_TIMEOUT: Duration = Duration::from_mins(2);
/// Adds up to this to a result; a request takes a millisecond.
const POLL: Duration = Duration::from_millis(5);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Versions to build, one after the other; the median is told.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

#[derive(Clone, Copy)]
struct Run {
    total_ms: f64,
    cargo_ms: f64,
}

impl Run {
    fn added_ms(&self) -> f64 {
        self.total_ms - self.cargo_ms
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let registry = Registry::start(registry::Options::default()).await?;
    let cluster = Cluster::start(Options { index: registry.index_url(), ..Options::default() }).await?;
    let client = cluster.client();
    let mut runs = Vec::new();
    for number in 0..arguments.runs {
        let version = format!("0.1.{number}");
        registry.publish(&crates::hello_bin(&version)?)?;
        let run = measure(&client, &version).await?;
        println!("hello-bin {version}: {} ms, cargo {} ms", run.total_ms, run.cargo_ms);
        runs.push(run);
    }
    cluster.stop().await?;
    println!("{}", result(&runs));
    Ok(())
}

/// Each median by itself, so they need not add up; the ratio is ours to cargo alone.
fn result(runs: &[Run]) -> Value {
    let added: Vec<f64> = runs.iter().map(Run::added_ms).collect();
    json!({
        "bench": "overhead",
        "runs": runs.len(),
        "total_ms": median(runs.iter().map(|run| run.total_ms).collect()),
        "cargo_ms": median(runs.iter().map(|run| run.cargo_ms).collect()),
        "added_ms": {
            "median": median(added.clone()),
            "min": added.iter().copied().fold(f64::INFINITY, f64::min),
            "max": added.iter().copied().fold(0.0, f64::max),
        },
        "ratio": median(runs.iter().map(|run| run.total_ms / run.cargo_ms).collect()),
    })
}

async fn measure(client: &Client, version: &str) -> Result<Run> {
    let started = Instant::now();
    let body = json!({ "crate": "hello-bin", "version": version, "kind": "metadata" });
    client.post("/api/v1/jobs", &body).await?;
    let page = format!("/api/v1/crates/hello-bin/{version}");
    loop {
        let state = client.get(&page).await?;
        let jobs = state["jobs"].as_array().context("the answer has no jobs")?;
        if let Some(job) = jobs.iter().find(|job| job["state"] == "failed") {
            bail!("hello-bin {version} failed: {}", job["failure"]);
        }
        if state["artifacts"].as_array().is_some_and(|list| list.iter().any(|it| it["kind"] == "tarball")) {
            let total_ms = (started.elapsed().as_secs_f64() * 1_000.0).round();
            return Ok(Run { total_ms, cargo_ms: cargo_ms(client, jobs).await? });
        }
        ensure!(started.elapsed() < RUN_TIMEOUT, "hello-bin {version} is not listed after {RUN_TIMEOUT:?}");
        sleep(POLL).await;
    }
}

/// Of all jobs of the version.
async fn cargo_ms(client: &Client, jobs: &[Value]) -> Result<f64> {
    let mut sum = 0.0;
    for job in jobs {
        let detail = client.get(&format!("/api/v1/jobs/{}", job["id"])).await?;
        let attempts = detail["attempts"].as_array().context("the job has no attempts")?;
        sum += attempts.iter().filter_map(|attempt| attempt["timings"]["cargo_ms"].as_f64()).sum::<f64>();
    }
    Ok(sum)
}
