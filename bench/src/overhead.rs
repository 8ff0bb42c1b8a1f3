//! Enqueue to listed artifact, less the time that cargo itself ran, as the builder measured it.
//!
//! The crate is a fixture from a registry on loopback, so that neither the network nor a long build hides the rest.

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
    total_ms: u64,
    cargo_ms: u64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let registry = Registry::start(registry::Options::default()).await?;
    let cluster = Cluster::start(Options { index: registry.index_url(), ..Options::default() }).await?;
    let client = cluster.client();
    let mut added = Vec::new();
    for number in 0..arguments.runs {
        let version = format!("0.1.{number}");
        registry.publish(&crates::hello_bin(&version)?)?;
        let run = measure(&client, &version).await?;
        println!("hello-bin {version}: {} ms, cargo {} ms", run.total_ms, run.cargo_ms);
        added.push(run.total_ms.saturating_sub(run.cargo_ms));
    }
    cluster.stop().await?;
    added.sort_unstable();
    let (best, worst) = (added.first().context("no run")?, added.last().context("no run")?);
    let result = json!({
        "bench": "overhead",
        "runs": arguments.runs,
        "added_ms": { "median": added[added.len() / 2], "min": best, "max": worst },
    });
    println!("{result}");
    Ok(())
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
            let total_ms = u64::try_from(started.elapsed().as_millis())?;
            return Ok(Run { total_ms, cargo_ms: cargo_ms(client, jobs).await? });
        }
        ensure!(started.elapsed() < RUN_TIMEOUT, "hello-bin {version} is not listed after {RUN_TIMEOUT:?}");
        sleep(POLL).await;
    }
}

/// Of all jobs of the version.
async fn cargo_ms(client: &Client, jobs: &[Value]) -> Result<u64> {
    let mut sum = 0;
    for job in jobs {
        let detail = client.get(&format!("/api/v1/jobs/{}", job["id"])).await?;
        let attempts = detail["attempts"].as_array().context("the job has no attempts")?;
        sum += attempts.iter().filter_map(|attempt| attempt["timings"]["cargo_ms"].as_u64()).sum::<u64>();
    }
    Ok(sum)
}
