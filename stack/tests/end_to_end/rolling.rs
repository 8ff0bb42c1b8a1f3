//! A new version is rolled out: every process is restarted while a job runs, one after another, and nobody notices.

use super::{
    follower::Follower,
    scene::{Scene, until},
    talker::has_children,
    work::{self, Work},
};
use cratemill_stack::{builders, cluster::Options, process::Signal, services::Role};
use std::time::Duration;

/// Of a node that was restarted, at the load balancer.
const UP_AGAIN: Duration = Duration::from_secs(30);
/// Of a NATS server that was restarted.
const CATCH_UP: Duration = Duration::from_mins(2);
const SERVICES: [(Role, usize); 4] =
    [(Role::Api, 3), (Role::Dispatcher, 2), (Role::Live, 2), (Role::Counter, 2)];
const NATS: usize = 3;
const BUILDERS: usize = 2;
/// One for each restart, and for that of a builder one for each builder.
const JOBS: usize = 9 + NATS + BUILDERS * BUILDERS;
/// What a builder has to finish its job: no build here takes as long, however busy the machine is.
const DRAIN: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_costs_no_job_a_try() {
    let options = Options {
        api: 3,
        dispatcher: 2,
        live: 2,
        counter: 2,
        nats: NATS,
        builder: BUILDERS,
        ..Options::default()
    }
    .with_env(Role::Builder, "DRAIN_S", DRAIN.as_secs().to_string());
    let mut scene = Scene::start(&work::packages(JOBS), options).await;
    let follower = Follower::start(scene.cluster.lb_url());
    let mut work = Work::default();
    for (role, count) in SERVICES {
        for number in 0..count {
            work.next_runs(&scene).await;
            restart(&mut scene, role, number).await;
        }
    }
    for number in 0..NATS {
        work.next_runs(&scene).await;
        scene.cluster.nats.servers[number].restart().await.unwrap();
        scene.cluster.nats.wait_for_replicas(CATCH_UP).await.unwrap();
    }
    for number in 0..BUILDERS {
        // As many as there are builders, so that this one has one.
        for _ in 0..BUILDERS {
            work.enqueue(&scene).await;
        }
        restart_builder(&mut scene, number).await;
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

/// Its owner waits until it has finished its job, and starts the new one.
async fn restart_builder(scene: &mut Scene, number: usize) {
    let process = scene.cluster.builders[number].process().unwrap();
    let pid = process.pid();
    until("the builder builds", async || has_children(pid).then_some(())).await;
    let (status, by_itself) = process.stop(Signal::SIGTERM, DRAIN).await.unwrap();
    assert!(by_itself && status.success(), "{status}{}", process.log_tail());
    scene.cluster.builders[number].spawn().await.unwrap();
    let process = scene.cluster.builders[number].process().unwrap();
    let key = scene.cluster.builder_key(number + 1).unwrap();
    builders::connected(&scene.client, process, key).await.unwrap();
}
