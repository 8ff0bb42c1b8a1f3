//! More real builders of a cluster, each started and ended by a test.

use super::scene::{NO_RESERVE, Scene};
use cratemill_stack::{
    builders::{self, Key},
    cluster::Cluster,
    services::{self, Role, Service},
};

/// Registers and starts builder `number`, and waits until it has logged in.
pub(super) async fn builder(scene: &Scene, number: usize) -> Service {
    builder_at(scene, number, &scene.cluster.lb_url()).await
}

/// One that dials `server`.
pub(super) async fn builder_at(scene: &Scene, number: usize, server: &str) -> Service {
    let cluster: &Cluster = &scene.cluster;
    let key = Key::open(builders::key_path(cluster.data_dir(), number)).unwrap();
    builders::register(&scene.client, &format!("farm-{number}"), &key, cluster.targets()).await.unwrap();
    let (bin_dir, logs) = (services::bin_dir(None).unwrap(), cluster.data_dir().join("log"));
    let mut service = Service::new(Role::Builder, number, &bin_dir, &logs)
        .unwrap()
        .env("SERVER", server)
        .env("KEY_FILE", &key.path)
        .env("MIN_FREE_DISK_MIB", NO_RESERVE)
        .args(["--work-dir"])
        .args([cluster.data_dir().join(format!("builder-{number}"))]);
    service.spawn().await.unwrap();
    builders::connected(&scene.client, service.process().unwrap(), &key).await.unwrap();
    service
}
