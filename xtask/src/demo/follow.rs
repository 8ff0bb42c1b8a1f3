//! Follows a job to its end by its live log, through the load balancer, as any viewer would.

use super::{
    sse::{Event, Parser},
    text,
};
use crate::say;
use anyhow::{Context, Result, anyhow, bail};
use cratemill_stack::client::Client;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Longer than the limit of a build, with its retries.
const JOB_TIMEOUT: Duration = Duration::from_hours(1);
/// Live nodes beat every 15 s: a stream that is silent for longer is broken.
const SILENCE: Duration = Duration::from_secs(40);
const RECONNECT: Duration = Duration::from_millis(500);
/// Between the end that viewers see and the state that the API tells: one transaction.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The result of a metadata job makes its followers in the same transaction.
const FOLLOW_UP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// A few lines, not a wall: what cargo says in between is in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(3);
const LINE_CHARS: usize = 90;
const LOG_TAIL_LINES: usize = 15;

/// Shows a job until it ends well; tells how it ended.
pub(crate) async fn job(client: &Client, job: &Value, started: Instant) -> Result<Value> {
    let id = job["id"].as_i64().context("the job has no id")?;
    let mut screen = Screen { started, kind: text(job, "kind")?.to_owned(), last_log: None };
    let mut last_id = String::new();
    let watch = async {
        // A stream that breaks is picked up where it broke: nodes may come and go.
        while !watch(client, id, &mut last_id, &mut screen).await.unwrap_or(false) {
            sleep(RECONNECT).await;
        }
    };
    timeout(JOB_TIMEOUT, watch)
        .await
        .with_context(|| format!("job {id} has no end after {JOB_TIMEOUT:?}"))?;
    settled(client, id).await
}

/// Reads the live log until it ends (true) or breaks.
async fn watch(client: &Client, id: i64, last_id: &mut String, screen: &mut Screen) -> Result<bool> {
    let url = client.url(&format!("/live/events?topic=job.{id}.log"));
    let mut request = client.http().get(url);
    if !last_id.is_empty() {
        request = request.header("Last-Event-ID", last_id.as_str());
    }
    let mut response = request.send().await?.error_for_status()?;
    let mut parser = Parser::default();
    while let Some(bytes) = timeout(SILENCE, response.chunk()).await?? {
        for event in parser.feed(&bytes) {
            if !event.id.is_empty() {
                event.id.clone_into(last_id);
            }
            // An attempt may end only to be tried again.
            if screen.show(&event)? && is_final(&client.get(&format!("/api/v1/jobs/{id}")).await?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

struct Screen {
    started: Instant,
    kind: String,
    last_log: Option<Instant>,
}

impl Screen {
    /// True at the end of an attempt.
    fn show(&mut self, event: &Event) -> Result<bool> {
        let data: Value = serde_json::from_str(&event.data).context("an event is not JSON")?;
        match event.name.as_str() {
            "stage" => self.line(text(&data, "stage")?),
            "log" if self.last_log.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) => {
                if let Some(line) = text(&data, "text")?.lines().rfind(|line| !line.trim().is_empty()) {
                    self.last_log = Some(Instant::now());
                    self.line(&format!("  {}", line.trim().chars().take(LINE_CHARS).collect::<String>()));
                }
            }
            "end" => {
                self.line(text(&data, "state")?);
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn line(&self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        say::line(&format!("  {seconds:6.1} s  {:8}  {text}", self.kind));
    }
}

/// The job with its attempts, once the API says that it ended; an error if it did not end well.
async fn settled(client: &Client, id: i64) -> Result<Value> {
    let started = Instant::now();
    loop {
        let job = client.get(&format!("/api/v1/jobs/{id}")).await?;
        if job["state"] == "succeeded" {
            return Ok(job);
        }
        if is_final(&job) {
            return Err(why_it_failed(client, id, &job).await);
        }
        if started.elapsed() > SETTLE_TIMEOUT {
            bail!("the live log of job {id} ended and the API still says {}", job["state"]);
        }
        sleep(POLL).await;
    }
}

/// What a person needs to go on: the reason, and the end of the log, which is gone when the stack stops.
async fn why_it_failed(client: &Client, id: i64, job: &Value) -> anyhow::Error {
    let part = |of: &Value, field: &str| of[field].as_str().unwrap_or("unknown").to_owned();
    let failure = &job["failure"];
    let log = match client.http().get(client.url(&format!("/api/v1/jobs/{id}/log"))).send().await {
        Ok(response) => response.text().await.unwrap_or_default(),
        Err(error) => format!("no log: {error}"),
    };
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n    ");
    anyhow!(
        "job {id} {} ({}): {}\n  the end of its log:\n    {tail}\n  try another crate with --crate NAME, or mend this one",
        part(job, "state"),
        part(failure, "class"),
        part(failure, "message"),
    )
}

fn is_final(job: &Value) -> bool {
    matches!(job["state"].as_str(), Some("succeeded" | "failed" | "cancelled"))
}

/// The tarball job that a metadata job led to. Where the artifact is there already none may follow: then it is asked for.
pub(crate) async fn tarball_after(client: &Client, metadata: &Value, target: &str) -> Result<Value> {
    let (name, version) = (text(metadata, "crate")?, text(metadata, "version")?);
    let started = Instant::now();
    loop {
        let page = client.get(&format!("/api/v1/crates/{name}/{version}")).await?;
        let tarballs = page["jobs"].as_array().into_iter().flatten();
        let mut tarballs = tarballs.filter(|job| job["kind"] == "tarball" && job["target"] == target);
        if let Some(job) = tarballs.clone().find(|job| job["parent"] == metadata["id"]) {
            return Ok(job.clone());
        }
        let is_built = tarballs.any(|job| job["state"] == "succeeded");
        if is_built {
            let body = json!({ "crate": name, "version": version, "kind": "tarball", "target": target });
            return client.post("/api/v1/jobs", &body).await.context("cannot enqueue the tarball again");
        }
        if started.elapsed() > FOLLOW_UP_TIMEOUT {
            bail!(
                "no tarball job follows: {name} {version} has no binaries, so choose a crate with some (--crate)"
            );
        }
        sleep(POLL).await;
    }
}
