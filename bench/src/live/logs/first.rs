//! How late a line is that a build prints after silence: from a real build in its sandbox, through its builder, an API node,
//! the bus and a live node, to a viewer behind the load balancer.
//!
//! Cargo keeps what a build script prints until it ends. So this one prints where cargo itself does: into the pipe that the
//! builder reads.

use crate::statistics::{Percentiles, hundredths};
use anyhow::{Context, Result, bail, ensure};
use cratemill_stack::{
    Cluster, Options,
    client::Client,
    fixtures::{Package, Registry, registry},
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep, timeout};

const LINES: usize = 200;
/// The metadata job before it takes a few seconds, and the build prints for less than a minute.
const JOB_TIMEOUT: Duration = Duration::from_mins(2);
const LOG_TIMEOUT: Duration = Duration::from_mins(3);
const POLL: Duration = Duration::from_millis(50);
const MARK: &str = "printed at ";
/// Silences of 150 to 250 ms, in no step with anything that polls.
const BUILD_SCRIPT: &str = r#"
use std::{io::Write, os::unix::process, time::{Duration, SystemTime, UNIX_EPOCH}};
fn main() {
    let cargo = process::parent_id();
    let mut log = std::fs::OpenOptions::new().write(true).open(format!("/proc/{cargo}/fd/2")).expect("cargo has an output");
    for line in 0..LINES_u64 {
        std::thread::sleep(Duration::from_millis(150 + line * 37 % 101));
        let at = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
        writeln!(log, "printed at {at}").expect("the log takes a line");
    }
}
"#;

pub(super) async fn measure() -> Result<Value> {
    let registry = Registry::start(registry::Options::default()).await?;
    let cluster = Cluster::start(Options { index: registry.index_url(), ..Options::default() }).await?;
    registry.publish(&chatty()?)?;
    let client = cluster.client();
    let body = json!({ "crate": "chatty-bin", "version": "0.1.0", "kind": "metadata" });
    client.post("/api/v1/jobs", &body).await?;
    let job = tarball_job(&client).await?;
    let delays = timeout(LOG_TIMEOUT, follow(&client, job)).await.context("the log does not end")??;
    cluster.stop().await?;
    ensure!(delays.len() == LINES, "{} of {LINES} lines came", delays.len());
    let delays = Percentiles::of(delays)?;
    let at = |percent| hundredths(delays.at(percent));
    println!("  {LINES} lines after silence: p50 {} ms, p99 {} ms, most {} ms", at(50), at(99), at(100));
    Ok(json!({
        "log_first_lines": LINES,
        "log_first_line_p50_ms": at(50),
        "log_first_line_p99_ms": at(99),
        "log_first_line_max_ms": at(100),
    }))
}

fn chatty() -> Result<Package> {
    let manifest =
        "[package]\nedition = \"2024\"\nname = \"chatty-bin\"\nversion = \"0.1.0\"\nbuild = \"build.rs\"\n";
    let script = BUILD_SCRIPT.replace("LINES_u64", &format!("{LINES}_u64"));
    Ok(Package::new(manifest)?.file("build.rs", script).file("src/main.rs", "fn main() {}\n"))
}

async fn tarball_job(client: &Client) -> Result<i64> {
    let started = Instant::now();
    loop {
        let jobs = client.list("/api/v1/jobs?crate=chatty-bin").await?;
        if let Some(job) = jobs.iter().find(|job| job["kind"] == "tarball") {
            return job["id"].as_i64().context("a job has no id");
        }
        if let Some(job) = jobs.iter().find(|job| job["state"] == "failed") {
            bail!("the metadata job failed: {}", job["failure"]);
        }
        ensure!(started.elapsed() < JOB_TIMEOUT, "there is no job to follow");
        sleep(POLL).await;
    }
}

/// The delay of each line, in milliseconds.
async fn follow(client: &Client, job: i64) -> Result<Vec<f64>> {
    let url = client.url(&format!("/live/events?topic=job.{job}.log"));
    let mut response = client.http().get(url).send().await?.error_for_status()?;
    let (mut text, mut delays) = (String::new(), Vec::new());
    while let Some(bytes) = response.chunk().await? {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        text.push_str(str::from_utf8(&bytes).context("half a character")?);
        // Whole events: the rest comes with the next read.
        let end = text.rfind("\n\n").map_or(0, |end| end + 2);
        for mark in text[..end].split(MARK).skip(1) {
            let digits = mark.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            let printed_us: u128 = digits.parse().context("a line without its time")?;
            delays.push(f64::from(u32::try_from(now_us.saturating_sub(printed_us))?) / 1e3);
        }
        let ended = text[..end].contains("event: end");
        text.drain(..end);
        if ended {
            break;
        }
    }
    Ok(delays)
}
