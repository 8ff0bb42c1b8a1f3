//! One crate goes all the way, through every real part: from a registry's index to a verified download that is counted.

mod artifact;
mod follow;
mod sse;

use crate::{
    binaries, say,
    up::{self, Running},
};
use anyhow::{Context, Result, bail};
use cratemill_stack::{Cluster, Options, client::Client, cluster::host_target, programs};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What the service promises for a download until it shows is 2 seconds.
const COUNTED_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which crate, and which version if not the latest.
    #[arg(long = "crate", value_name = "NAME[@VERSION]", default_value = "hexyl")]
    krate: String,
    /// Keep everything running afterwards, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Optimised programs.
    #[arg(long)]
    release: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Option<Running>> {
    let data_dir = up::open()?;
    programs::install_missing(programs::BASE, say::line)?;
    let bin_dir = binaries::build(arguments.release).await?;
    let options = Options { api: 2, bin_dir: Some(bin_dir), ..Options::default() };
    let cluster = up::start(data_dir, options).await?;
    let shown = show(&cluster, &arguments.krate).await;
    let logs = cluster.data_dir().join("log");
    shown.with_context(|| format!("the logs of all parts are in {}", logs.display()))?;
    if arguments.stay {
        say::line("everything stays up; Ctrl-C stops it");
        return Ok(Some(Running { cluster, file: None }));
    }
    cluster.stop().await?;
    Ok(None)
}

/// The demo on a running cluster.
async fn show(cluster: &Cluster, krate: &str) -> Result<()> {
    let client = cluster.client();
    let (name, version) = krate.split_once('@').unwrap_or((krate, "latest"));
    let started = Instant::now();
    let metadata = enqueue(&client, name, version).await?;
    let version = text(&metadata, "version")?;
    let target = host_target()?;
    say::line(&format!("{name} {version} for {target}"));
    let metadata = follow::job(&client, &metadata, started).await?;
    let tarball = follow::tarball_after(&client, &metadata, &target).await?;
    let tarball = follow::job(&client, &tarball, started).await?;
    let listed = listed(&client, &tarball).await?;
    report_times(started.elapsed(), &[&metadata, &tarball]);

    let before = downloads(&client, name).await?;
    let folder = cluster.data_dir().join("demo");
    artifact::download_verify_run(&client, &tarball, &listed, &folder).await?;
    wait_until_counted(&client, name, before).await?;
    say::line(&format!(
        "look around:\n  {}\n  {}\n  {}\n  {}",
        client.url(&format!("/api/v1/crates/{name}/{version}")),
        client.url(&format!("/api/v1/jobs/{}/log", tarball["id"])),
        client.url("/live/events?topic=builds"),
        client.url("/api/v1/openapi.json"),
    ));
    Ok(())
}

async fn enqueue(client: &Client, name: &str, version: &str) -> Result<Value> {
    let body = json!({ "crate": name, "version": version, "kind": "metadata" });
    let job = client.post("/api/v1/jobs", &body).await;
    job.with_context(|| {
        format!("cannot enqueue {name} {version}; does the registry have it, and is it reachable?")
    })
}

/// The artifact, as soon as people can see it.
async fn listed(client: &Client, job: &Value) -> Result<Value> {
    let (name, version, target) = (text(job, "crate")?, text(job, "version")?, text(job, "target")?);
    let page = client.get(&format!("/api/v1/crates/{name}/{version}")).await?;
    let artifacts = page["artifacts"].as_array().into_iter().flatten();
    let found = artifacts.clone().find(|artifact| {
        artifact["kind"] == "tarball" && artifact["target"] == target && artifact["url"].is_string()
    });
    found.cloned().context("the job succeeded and its artifact is not listed")
}

fn report_times(total: Duration, jobs: &[&Value]) {
    let cargo_ms: u64 = jobs.iter().map(|job| timing(job, "cargo_ms")).sum();
    let total_ms = u64::try_from(total.as_millis()).unwrap_or(u64::MAX);
    say::line(&format!(
        "enqueued to listed in {:.1} s: cargo ran {:.1} s of it, Cratemill added {:.2} s",
        seconds(total_ms),
        seconds(cargo_ms),
        seconds(total_ms.saturating_sub(cargo_ms)),
    ));
}

/// Of the attempt that succeeded: the last.
fn timing(job: &Value, field: &str) -> u64 {
    let attempts = job["attempts"].as_array();
    attempts.and_then(|attempts| attempts.last()?["timings"][field].as_u64()).unwrap_or(0)
}

#[allow(clippy::cast_precision_loss, reason = "for people, to a tenth")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

async fn downloads(client: &Client, name: &str) -> Result<u64> {
    let page = client.get(&format!("/api/v1/crates/{name}/downloads")).await?;
    page["total"].as_u64().context("the count of downloads has no total")
}

async fn wait_until_counted(client: &Client, name: &str, before: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let now = downloads(client, name).await?;
        if now > before {
            let waited = started.elapsed().as_secs_f32();
            say::line(&format!("the download is counted: {now} of {name} so far ({waited:.1} s after it)"));
            return Ok(());
        }
        if started.elapsed() > COUNTED_TIMEOUT {
            bail!("the download is not counted after {COUNTED_TIMEOUT:?}: look at the counter's log");
        }
        sleep(POLL).await;
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field].as_str().with_context(|| format!("the answer has no {field}"))
}
