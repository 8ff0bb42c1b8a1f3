//! The database, the object store or the bus is away while builders build: they go on, and no job loses a try.

use super::{
    super::{
        scene::Scene,
        work::{self, Work},
    },
    plan,
};
use cratemill_stack::{
    audit::{audit, findings},
    cluster::{Cluster, Options},
    services::Role,
};

/// Asked for before, so that there is one in each stage when it goes.
const BEFORE: usize = 5;
const AFTER: usize = 2;
const NOTHING: [&str; 0] = [];
/// Shorter than anything is away, so that leases run out meanwhile: that is no builder's fault.
const LEASE_S: &str = "6";
const HEARTBEAT_S: &str = "1";
/// For builders to be back: with a lease this short they dial once a second.
const CATCH_UP_S: &str = "10";

#[derive(Debug, Clone, Copy)]
enum Thing {
    Postgres,
    ObjectStore,
    Bus,
}

impl Thing {
    async fn goes(self, cluster: &mut Cluster) {
        match self {
            Self::Postgres => cluster.postgres.stop().await.unwrap(),
            Self::ObjectStore => cluster.s3.stop().await,
            Self::Bus => cluster.nats.stop().await.unwrap(),
        }
    }

    async fn comes_back(self, cluster: &mut Cluster) {
        match self {
            Self::Postgres => cluster.postgres.restart().await,
            Self::ObjectStore => cluster.s3.restart().await,
            Self::Bus => cluster.nats.restart().await,
        }
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_the_database_being_away() {
    jobs_outlive(Thing::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_the_object_store_being_away() {
    jobs_outlive(Thing::ObjectStore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_the_bus_being_away() {
    jobs_outlive(Thing::Bus).await;
}

async fn jobs_outlive(thing: Thing) {
    let away = plan::away();
    eprintln!("{thing:?} is away for {} s", away.as_secs());
    let options = Options { api: 2, dispatcher: 2, builder: 2, slots: 2, ..Options::default() }
        .with_env(Role::Api, "LEASE_S", LEASE_S)
        .with_env(Role::Api, "HEARTBEAT_S", HEARTBEAT_S)
        .with_env(Role::Dispatcher, "LEASE_S", LEASE_S)
        .with_env(Role::Dispatcher, "CATCH_UP_S", CATCH_UP_S);
    let mut scene = Scene::start(&work::packages(BEFORE + AFTER), options).await;
    let mut work = Work::default();
    for _ in 0..BEFORE {
        work.enqueue(&scene).await;
    }
    work.one_runs(&scene).await;
    thing.goes(&mut scene.cluster).await;
    tokio::time::sleep(away).await;
    thing.comes_back(&mut scene.cluster).await;
    for _ in 0..AFTER {
        work.enqueue(&scene).await;
    }
    work.check(&scene).await;
    let report = audit(&scene.cluster, &["--at-rest"]).await.unwrap();
    assert_eq!(findings(&report), NOTHING);
    scene.cluster.stop().await.unwrap();
}
