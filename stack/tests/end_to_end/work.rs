//! Real jobs that run while a test breaks something, and what must be true of all of them afterwards.

use super::{
    events::Frame,
    scene::{Scene, until},
};
use async_nats::jetstream::consumer::PullConsumer;
use cratemill_protocol::subjects;
use cratemill_stack::fixtures::{Package, crates};
use serde_json::{Value, json};

/// What one build takes, besides compiling.
const SECONDS: u32 = 2;
/// More than one chunk of a log.
const LINES: u32 = 2_000;

/// Versions of a crate that takes a while and says much.
pub(super) fn packages(count: usize) -> Vec<Package> {
    (1..=count).map(|number| crates::slow_bin(&version(number), SECONDS, LINES).unwrap()).collect()
}

fn version(number: usize) -> String {
    format!("0.{number}.0")
}

/// Jobs for versions of [`packages`], in the order in which they were asked for.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) jobs: Vec<i64>,
}

impl Work {
    /// Asks for the next version's binary. A node that just died costs a retry, as it does everybody.
    pub(super) async fn enqueue(&mut self, scene: &Scene) -> i64 {
        let version = version(self.jobs.len() + 1);
        let target = scene.target();
        let body = json!({"crate": "slow-bin", "version": version, "kind": "tarball", "target": target});
        let job =
            until("the job is taken", async || scene.client.post("/api/v1/jobs", &body).await.ok()).await;
        let id = job["id"].as_i64().unwrap();
        self.jobs.push(id);
        id
    }

    /// Asks for the next version's binary, and returns once it has begun: it goes on for [`SECONDS`] at least, unless
    /// whoever asks was kept from it for so long.
    pub(super) async fn next_runs(&mut self, scene: &Scene) {
        let path = format!("/api/v1/jobs/{}", self.enqueue(scene).await);
        until("the job runs", async || {
            let job = scene.client.get(&path).await.ok()?;
            (job["state"] == "running" || is_end(&job["state"])).then_some(())
        })
        .await;
    }

    pub(super) async fn one_runs(&self, scene: &Scene) {
        until("a job runs", async || {
            for id in &self.jobs {
                let job = scene.client.get(&format!("/api/v1/jobs/{id}")).await.ok()?;
                if job["state"] == "running" {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    /// Waits for the end of all jobs, then: each succeeded, none lost a try, each log has each line once and in order,
    /// each artifact is there and counted, and no message is left.
    pub(super) async fn check(&self, scene: &Scene) {
        for id in &self.jobs {
            let path = format!("/api/v1/jobs/{id}");
            let job = until("the job's end", async || {
                let job = scene.client.get(&path).await.ok()?;
                is_end(&job["state"]).then_some(job)
            })
            .await;
            assert_eq!(job["state"], "succeeded", "{job:#}");
            assert_eq!(job["tries"], 0, "{job:#}");
            let attempts = job["attempts"].as_array().unwrap();
            let done = attempts.iter().filter(|attempt| attempt["result"] == "succeeded").count();
            assert_eq!(done, 1, "{job:#}");
            assert_eq!(lines(&scene.log(&job["id"]).await), (1..=LINES).collect::<Vec<_>>(), "{id}");
        }
        for number in 1..=self.jobs.len() {
            let path = format!("/api/v1/crates/slow-bin/{}/{}/tarball", version(number), scene.target());
            let response = scene.get(&path).await;
            assert_eq!(response.status(), 200, "{path}");
            // It counts once all of it is sent.
            assert!(!response.bytes().await.unwrap().is_empty());
        }
        until("all downloads are counted", async || {
            let counts = scene.client.get("/api/v1/crates/slow-bin/downloads").await.ok()?;
            (counts["total"] == json!(self.jobs.len())).then_some(())
        })
        .await;
        nothing_is_left(scene).await;
    }
}

/// Whatever was sent has been dealt with. The streams themselves may keep some of it: a server of NATS 2.9 that is killed
/// may forget that it has removed what was acknowledged.
async fn nothing_is_left(scene: &Scene) {
    let jetstream = async_nats::jetstream::new(scene.cluster.nats.client().await.unwrap());
    for (stream, name) in [
        (subjects::BUILD_STREAM, subjects::REQUESTS_CONSUMER),
        (subjects::BUILD_STREAM, subjects::OUTCOMES_CONSUMER),
        (subjects::DOWNLOADS_STREAM, subjects::DOWNLOADS_CONSUMER),
    ] {
        until(name, async || {
            let consumer: PullConsumer = jetstream.get_consumer_from_stream(name, stream).await.ok()?;
            let info = consumer.cached_info();
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }
}

pub(super) fn is_end(state: &Value) -> bool {
    ["succeeded", "failed", "cancelled"].iter().any(|end| state == end)
}

/// The job that this event is the end of.
pub(super) fn ended(frame: &Frame) -> Option<i64> {
    (frame.event == "job" && is_end(&frame.data["state"])).then(|| frame.data["job"].as_i64())?
}

/// The numbers that the crate's build script said.
pub(super) fn lines(log: &str) -> Vec<u32> {
    log.lines().filter_map(|line| line.rsplit_once(": line ")?.1.parse().ok()).collect()
}
