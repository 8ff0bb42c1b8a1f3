//! Single jobs through the REST API, one after the other: from the request to the moment a builder accepts.

use crate::{
    fleet::{Fleet, now_us},
    statistics::Percentiles,
};
use anyhow::{Context, Result, ensure};
use cratemill_protocol::JobId;
use cratemill_stack::Cluster;
use serde_json::{Value, json};
use std::{collections::HashMap, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// A job that nobody has by then is lost.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Its end is recorded within milliseconds; the next job of the same thing is a new one only then.
const END_TIMEOUT: Duration = Duration::from_secs(30);
const END_POLL: Duration = Duration::from_millis(20);

/// In milliseconds.
pub(super) async fn measure(cluster: &Cluster, fleet: &Fleet, jobs: u32) -> Result<Percentiles> {
    let client = cluster.client();
    let body = json!({ "crate": "hello-bin", "version": "1.0.0", "kind": "metadata" });
    let mut seen = HashMap::new();
    let mut waits = Vec::new();
    let mut last = None;
    for _ in 0..jobs {
        let deadline = Instant::now() + END_TIMEOUT;
        let (started_us, job) = loop {
            let started_us = now_us();
            let job = id(&client.post("/api/v1/jobs", &body).await?)?;
            if Some(job) != last {
                break (started_us, job);
            }
            ensure!(Instant::now() < deadline, "job {job} does not end");
            sleep(END_POLL).await;
        };
        let accepted_us = timeout(ACCEPT_TIMEOUT, accepted(fleet, &mut seen, job)).await;
        let accepted_us = accepted_us.with_context(|| format!("nobody accepts job {job}"))?;
        waits.push(f64::from(i32::try_from(accepted_us - started_us)?) / 1_000.0);
        last = Some(job);
        sleep(END_POLL).await;
    }
    Percentiles::of(waits)
}

fn id(job: &Value) -> Result<JobId> {
    job["id"].as_i64().map(JobId).context("the answer has no id")
}

/// When a builder sent that it takes the job.
async fn accepted(fleet: &Fleet, seen: &mut HashMap<JobId, i64>, job: JobId) -> i64 {
    loop {
        seen.extend(fleet.accepts.take().into_iter().map(|accept| (accept.job, accept.at_us)));
        if let Some(at_us) = seen.get(&job) {
            return *at_us;
        }
        fleet.accepts.some().await;
    }
}
