//! The jobs that run meanwhile: many, short, and real.

use super::{super::scene::until_within, plan::Plan};
use cratemill_stack::{
    client::Client,
    fixtures::{Package, crates},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What one build takes besides compiling, so that a fault meets some under way and they cost no core meanwhile.
const SECONDS: u32 = 1;
/// Several chunks of a log.
pub(super) const LINES: u32 = 400;
/// One in so many compiles; the others only read metadata, so that there are many on two cores.
const COMPILES: usize = 3;
/// The longest that nobody takes a job: several things may be away one after the other.
const PATIENCE: Duration = Duration::from_mins(3);

/// What was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: i64,
    pub(super) krate: &'static str,
    pub(super) version: String,
    pub(super) kind: &'static str,
    pub(super) target: String,
}

impl Asked {
    pub(super) fn artifact(&self) -> String {
        format!("/api/v1/crates/{}/{}/{}/{}", self.krate, self.version, self.target, self.kind)
    }

    pub(super) fn compiles(&self) -> bool {
        self.kind == "tarball"
    }
}

pub(super) fn packages(jobs: usize) -> impl Iterator<Item = Package> {
    (1..=jobs).map(|number| {
        let version = version(number);
        let package = if compiles(number) {
            crates::slow_bin(&version, SECONDS, LINES)
        } else {
            crates::lib_only(&version)
        };
        package.unwrap()
    })
}

/// Asks for them one by one over the length of the plan.
pub(super) async fn ask(client: Client, target: String, plan: &Plan) -> Vec<Asked> {
    let started = Instant::now();
    let step = plan.length / u32::try_from(plan.jobs.max(1)).unwrap();
    let mut asked = Vec::new();
    for (number, turn) in (1..=plan.jobs).zip(0..) {
        sleep_until(started + step * turn).await;
        let (krate, kind, target) = if compiles(number) {
            ("slow-bin", "tarball", target.clone())
        } else {
            ("lib-only", "metadata", "any".to_owned())
        };
        let version = version(number);
        let body = json!({"crate": krate, "version": version, "kind": kind, "target": target});
        let id = enqueue(&client, &body).await;
        asked.push(Asked { id, krate, version, kind, target });
    }
    asked
}

/// An answer that got lost costs nothing: the same thing is queued once.
async fn enqueue(client: &Client, body: &Value) -> i64 {
    let job = until_within(PATIENCE, "somebody who takes the job", async || {
        client.post("/api/v1/jobs", body).await.ok()
    })
    .await;
    job["id"].as_i64().unwrap()
}

fn compiles(number: usize) -> bool {
    number.is_multiple_of(COMPILES)
}

fn version(number: usize) -> String {
    format!("0.{number}.0")
}
