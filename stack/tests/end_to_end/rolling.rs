//! A new version is rolled out: every process is restarted, one after another, and nobody notices.

use super::{
    events::Viewer,
    scene::{START, Scene, until},
    work::{self, Work},
};
use cratemill_stack::{cluster::Options, services::Role};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::mpsc;

/// Of a node that was restarted, at the load balancer.
const UP_AGAIN: Duration = Duration::from_secs(30);
/// Of a NATS server that was restarted.
const CATCH_UP: Duration = Duration::from_mins(2);
const SERVICES: [(Role, usize); 4] =
    [(Role::Api, 3), (Role::Dispatcher, 2), (Role::Live, 2), (Role::Counter, 2)];
const NATS: usize = 3;
/// One for each restart, so that something is always under way.
const JOBS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_costs_no_job_a_try() {
    let options =
        Options { api: 3, dispatcher: 2, live: 2, counter: 2, nats: NATS, builder: 2, ..Options::default() };
    let mut scene = Scene::start(&work::packages(JOBS), options).await;
    let (sender, mut ends) = mpsc::unbounded_channel();
    let follower = tokio::spawn(follow(scene.cluster.lb_url(), sender));
    let mut work = Work::default();
    for (role, count) in SERVICES {
        for number in 0..count {
            work.enqueue(&scene).await;
            restart(&mut scene, role, number).await;
        }
    }
    for number in 0..NATS {
        work.enqueue(&scene).await;
        scene.cluster.nats.servers[number].restart().await.unwrap();
        scene.cluster.nats.wait_for_replicas(CATCH_UP).await.unwrap();
    }

    work.check(&scene).await;
    // The viewer has seen each end, once.
    let mut seen: BTreeMap<i64, usize> = work.jobs.iter().map(|job| (*job, 0)).collect();
    until("the viewer sees each end", async || {
        while let Ok(job) = ends.try_recv() {
            // There are others: metadata, and what follows from it.
            if let Some(times) = seen.get_mut(&job) {
                *times += 1;
            }
        }
        seen.values().all(|times| *times > 0).then_some(())
    })
    .await;
    follower.abort();
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    scene.cluster.stop().await.unwrap();
}

/// As an operator does it: the next one goes when this one is back.
async fn restart(scene: &mut Scene, role: Role, number: usize) {
    let cluster = &mut scene.cluster;
    let services = match role {
        Role::Api => &mut cluster.api,
        Role::Live => &mut cluster.live,
        Role::Dispatcher => &mut cluster.dispatchers,
        Role::Counter => &mut cluster.counters,
        Role::Builder => &mut cluster.builders,
    };
    services[number].restart().await.unwrap();
    cluster.haproxy.wait_for_nodes(UP_AGAIN).await.unwrap();
}

/// A viewer that goes on, with the id of its last event, at whichever node there is.
async fn follow(server: String, ends: mpsc::UnboundedSender<i64>) {
    let mut last = START.to_owned();
    loop {
        let Some(mut viewer) = Viewer::try_open(&server, &["builds"], Some(&last)).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
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
