//! Things break while real jobs run: at random, and one after the other each that everything depends on. It costs time,
//! and nothing else.
//!
//! `cargo xtask faults` makes the runs that take too long for every day.

mod away;
mod jobs;
mod plan;
mod player;
mod schedule;
mod verdict;

use super::{follower::Follower, scene::Scene};
use cratemill_stack::{
    cluster::Options,
    fixtures::{Registry, registry},
    network::Network,
    services::Role,
};
use plan::Plan;
use schedule::{Counts, schedule};

const COUNTS: Counts =
    Counts { api: 3, live: 2, dispatchers: 2, counters: 2, builders: 3, nats: 3, network: true };

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_a_random_schedule_of_faults() {
    let plan = Plan::from_env();
    let _replay = Replay(plan.seed);
    eprintln!("{plan:#?}");
    let logs = tempfile::tempdir().unwrap();
    let network = if Network::available("the cut of a network in the random schedule").unwrap() {
        Some(Network::start(logs.path()).await.unwrap())
    } else {
        None
    };
    let faults = schedule(&plan, &Counts { network: network.is_some(), ..COUNTS });
    let mut scene = start(&plan, network.as_ref()).await;

    let follower = Follower::start(scene.cluster.lb_url());
    let asking = jobs::ask(scene.client.clone(), scene.target().to_owned(), &plan);
    let playing = player::play(&mut scene.cluster, network.as_ref(), &faults);
    let (asked, ()) = tokio::join!(asking, playing);
    let findings = verdict::findings(&scene, &asked, follower, plan.patience).await;
    assert!(findings.is_empty(), "FAULTS_SEED={}: {findings:#?}", plan.seed);
    scene.cluster.stop().await.unwrap();
}

/// The first builder stands in the network that is cut.
async fn start(plan: &Plan, network: Option<&Network>) -> Scene {
    let mut options = Options {
        api: COUNTS.api,
        live: COUNTS.live,
        dispatcher: COUNTS.dispatchers,
        counter: COUNTS.counters,
        nats: COUNTS.nats,
        builder: 0,
        slots: 2,
        data_dir: std::env::var_os("FAULTS_DATA_DIR").map(Into::into),
        ..Options::default()
    }
    .with_env(Role::Api, "HEARTBEAT_S", plan.heartbeat_s.to_string())
    .with_env(Role::Api, "LEASE_S", plan.lease_s.to_string())
    .with_env(Role::Dispatcher, "LEASE_S", plan.lease_s.to_string())
    .with_env(Role::Dispatcher, "CATCH_UP_S", plan.catch_up_s.to_string());
    let mut registry_options = registry::Options::default();
    if let Some(network) = network {
        options.address = network.host();
        registry_options.address = Some(network.host());
    }
    let registry = Registry::start(registry_options).await.unwrap();
    for package in jobs::packages(plan.jobs) {
        registry.publish(&package).unwrap();
    }
    let mut scene = Scene::with_registry(registry, options).await;
    for number in 0..COUNTS.builders {
        scene.cluster.add_builder(network.filter(|_| number == 0)).await.unwrap();
    }
    scene
}

/// Says how to have the same faults again, however the run fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the same faults again: FAULTS_SEED={}", self.0);
        }
    }
}
