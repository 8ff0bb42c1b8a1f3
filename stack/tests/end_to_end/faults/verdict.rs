//! What must be true when everything is back: all that is not, as a list.

use super::{
    super::{follower::Follower, scene::Scene, work},
    jobs::{Asked, LINES},
};
use cratemill_protocol::Sha256Hex;
use cratemill_stack::{
    audit::{audit, findings as named},
    cluster::Cluster,
};
use serde_json::Value;
use std::{fs, time::Duration};
use tokio::time::{Instant, sleep};

/// For a NATS server that was killed to have everything again.
const CATCH_UP: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(100);

/// The audit comes as soon as all has settled, and what it finds is said at once: whatever is looked at after that may
/// fail too.
pub(super) async fn findings(
    scene: &Scene,
    asked: &[Asked],
    follower: Follower,
    patience: Duration,
) -> Vec<String> {
    let cluster = &scene.cluster;
    // Before anybody waits for what a dead process was to do.
    let mut found = processes(cluster);
    if !found.is_empty() {
        return found;
    }
    cluster.ready().await.unwrap();
    cluster.nats.wait_for_replicas(CATCH_UP).await.unwrap();
    let ends = settled(scene, asked, patience).await;
    found.extend(audited(cluster).await);
    for finding in &found {
        eprintln!("{finding}");
    }

    let mut ended = Vec::new();
    for (asked, end) in asked.iter().zip(ends) {
        match end {
            Ok(job) => {
                found.extend(job_findings(scene, asked, &job).await);
                ended.push(asked.id);
            }
            Err(state) => found.push(format!("job {} did not end: {state:#}", asked.id)),
        }
    }
    found.extend(others(scene).await);
    let seen = follower.ends(scene, &ended).await;
    let twice = seen.iter().filter(|(_, times)| **times > 1);
    found.extend(twice.map(|(job, times)| format!("a viewer saw job {job} end {times} times")));
    found.extend(processes(cluster));
    found.extend(panics(cluster));
    found
}

/// How each job ended; those that have not by then are as they stand.
async fn settled(scene: &Scene, asked: &[Asked], patience: Duration) -> Vec<Result<Value, Value>> {
    let deadline = Instant::now() + patience;
    let (mut ends, mut attempts, mut most_tries) = (Vec::new(), 0, 0);
    for asked in asked {
        let end = end(scene, asked.id, deadline).await;
        let (Ok(job) | Err(job)) = &end;
        attempts += job["attempts"].as_array().map_or(0, Vec::len);
        most_tries = most_tries.max(job["tries"].as_u64().unwrap_or_default());
        ends.push(end);
    }
    eprintln!("{} jobs took {attempts} attempts; one was tried again {most_tries} times", asked.len());
    ends
}

/// With time for what is on its way to come to rest.
async fn audited(cluster: &Cluster) -> Vec<String> {
    match audit(cluster, &["--at-rest"]).await {
        Ok(report) => named(&report),
        Err(error) => vec![format!("{error:#}")],
    }
}

/// The job once it has ended, or how it stands at the deadline.
async fn end(scene: &Scene, id: i64, deadline: Instant) -> Result<Value, Value> {
    loop {
        let job = scene.client.get(&format!("/api/v1/jobs/{id}")).await.unwrap();
        if work::is_end(&job["state"]) {
            return Ok(job);
        }
        if Instant::now() >= deadline {
            return Err(job);
        }
        sleep(POLL).await;
    }
}

async fn job_findings(scene: &Scene, asked: &Asked, job: &Value) -> Vec<String> {
    if job["state"] != "succeeded" {
        return vec![format!("did not succeed: {job:#}")];
    }
    let mut found = Vec::new();
    if asked.compiles() {
        let said = work::lines(&scene.log(&job["id"]).await);
        if !said.iter().copied().eq(1..=LINES) {
            found.push(format!("job {} has {} lines, or not in order: {said:?}", asked.id, said.len()));
        }
    }
    let path = asked.artifact();
    let artifact = scene.get(&path).await;
    let (status, bytes) = (artifact.status(), artifact.bytes().await.unwrap());
    let sha256 = scene.get(&format!("{path}.sha256")).await.text().await.unwrap();
    if status != 200 || sha256.split_whitespace().next() != Some(&Sha256Hex::of(&bytes).to_string()) {
        found.push(format!("{path}: {status}, {} bytes, not of {sha256}", bytes.len()));
    }
    found
}

/// What nobody asked for, as what follows from a crate's first metadata, ends well too.
async fn others(scene: &Scene) -> Vec<String> {
    let jobs = scene.client.list("/api/v1/jobs").await.unwrap();
    let bad = jobs.iter().filter(|job| job["state"] == "failed" || job["state"] == "cancelled");
    bad.map(|job| format!("a job that did not succeed: {job:#}")).collect()
}

/// Faults of others are no reason to end.
fn processes(cluster: &Cluster) -> Vec<String> {
    let ended = |process: &cratemill_stack::process::Process| {
        let status = process.exited().unwrap()?;
        Some(format!("{} ended by itself: {status}{}", process.name(), process.log_tail()))
    };
    cluster.processes().filter_map(ended).collect()
}

fn panics(cluster: &Cluster) -> Vec<String> {
    let logs = fs::read_dir(cluster.data_dir().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for log in logs {
        let bytes = fs::read(&log).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| line.contains("panicked at"));
        found.extend(lines.map(|line| format!("{}: {line}", log.display())));
    }
    found
}
