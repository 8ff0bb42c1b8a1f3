//! A viewer that nodes and the load balancer die under: it goes on with the id of its last event, wherever it can.

use super::{
    events::Viewer,
    scene::{START, Scene, until},
    work,
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::mpsc, task::JoinHandle};

/// Before it asks for another node.
const PAUSE: Duration = Duration::from_millis(100);

/// Counts how often it sees each job end, from the first event on.
pub(super) struct Follower {
    ends: mpsc::UnboundedReceiver<i64>,
    task: JoinHandle<()>,
}

impl Follower {
    pub(super) fn start(server: String) -> Self {
        let (sender, ends) = mpsc::unbounded_channel();
        Self { ends, task: tokio::spawn(follow(server, sender)) }
    }

    /// Waits until it has seen each of these jobs end, and one more that ends after all of them, so that an end that is
    /// told twice is seen twice; tells how often it saw each.
    pub(super) async fn ends(mut self, scene: &Scene, jobs: &[i64]) -> BTreeMap<i64, usize> {
        let mut seen: BTreeMap<i64, usize> = jobs.iter().map(|job| (*job, 0)).collect();
        self.see_all(&mut seen).await;
        seen.insert(last(scene).await, 0);
        self.see_all(&mut seen).await;
        seen
    }

    async fn see_all(&mut self, seen: &mut BTreeMap<i64, usize>) {
        until("the viewer sees each end", async || {
            while let Ok(job) = self.ends.try_recv() {
                // There are others: metadata, and what follows from it.
                if let Some(times) = seen.get_mut(&job) {
                    *times += 1;
                }
            }
            let missing: Vec<_> = seen.iter().filter(|(_, times)| **times == 0).map(|(job, _)| job).collect();
            assert!(missing.is_empty() || !self.task.is_finished(), "the viewer gave up before {missing:?}");
            missing.is_empty().then_some(())
        })
        .await;
    }
}

/// A job that ends now: it was not to begin before long after the test.
async fn last(scene: &Scene) -> i64 {
    let run_at = (OffsetDateTime::now_utc() + time::Duration::DAY).format(&Rfc3339).unwrap();
    let body = json!({"crate": "slow-bin", "version": "latest", "kind": "metadata", "features": "no-default",
                      "run_at": run_at});
    let id = scene.client.post("/api/v1/jobs", &body).await.unwrap()["id"].as_i64().unwrap();
    scene.client.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).await.unwrap();
    id
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(server: String, ends: mpsc::UnboundedSender<i64>) {
    let mut last = START.to_owned();
    loop {
        let Some(mut viewer) = Viewer::try_open(&server, &["builds"], Some(&last)).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while let Some(frame) = viewer.try_next().await {
            if let Some(job) = work::ended(&frame) {
                let _ = ends.send(job);
            }
            assert_ne!(frame.event, "reset", "nothing is past its retention: {frame:?} after {last}");
            // A farewell has none.
            if !frame.id.is_empty() {
                last = frame.id;
            }
        }
    }
}
