//! A new version is rolled out: every process is restarted, one after another, and nobody notices.

use super::{
    follower::Follower,
    scene::Scene,
    work::{self, Work},
};
use cratemill_stack::{cluster::Options, services::Role};
use std::time::Duration;

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
    let follower = Follower::start(scene.cluster.lb_url());
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
    let seen = follower.ends(&scene, &work.jobs).await;
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
