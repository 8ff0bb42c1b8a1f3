//! A builder on a network of its own, which is cut while it builds and heals again.

use super::{
    scene::{Scene, until},
    work::{self, Work},
};
use cratemill_stack::{
    cluster::Options,
    fixtures::{Registry, registry},
    network::Network,
    services::Role,
};

/// Short, so that both ends notice the cut within seconds; a lease outlasts it.
const HEARTBEAT_S: &str = "1";

#[tokio::test(flavor = "multi_thread")]
async fn a_build_outlives_a_cut_of_its_builders_network() {
    if !Network::available("a_build_outlives_a_cut_of_its_builders_network").unwrap() {
        return;
    }
    let logs = tempfile::tempdir().unwrap();
    let network = Network::start(logs.path()).await.unwrap();
    let address = network.host();
    let options = registry::Options { address: Some(address), ..registry::Options::default() };
    let registry = Registry::start(options).await.unwrap();
    for package in work::packages(2) {
        registry.publish(&package).unwrap();
    }
    let options = Options { api: 2, builder: 0, address, ..Options::default() };
    let options = options.with_env(Role::Api, "HEARTBEAT_S", HEARTBEAT_S);
    let mut scene = Scene::with_registry(registry, options).await;
    scene.cluster.add_builder(Some(&network)).await.unwrap();

    let mut work = Work::default();
    work.enqueue(&scene).await;
    work.enqueue(&scene).await;
    until("the first is being built", async || {
        let job = scene.client.get(&format!("/api/v1/jobs/{}", work.jobs[0])).await.ok()?;
        (job["stage"] == "build").then_some(())
    })
    .await;
    network.cut().await.unwrap();
    until("its node gives it up", async || {
        let builders = scene.client.list("/api/v1/builders").await.ok()?;
        (builders[0]["connected"] == false).then_some(())
    })
    .await;
    network.heal().await.unwrap();

    work.check(&scene).await;
    scene.cluster.stop().await.unwrap();
}
