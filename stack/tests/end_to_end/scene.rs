//! What most of these tests start with: a registry, a cluster that watches it, and questions to both.

use super::events::Viewer;
use cratemill_stack::{
    client::Client,
    cluster::{Cluster, Options},
    fixtures::{Package, Registry, registry},
    services::Role,
};
use serde_json::{Value, json};
use std::time::Duration;

/// From the beginning of the events.
pub(super) const START: &str = "0";

/// Of a machine's disk, for builders: what else fills it while the tests run is none of their business.
pub(super) const NO_RESERVE: &str = "0";

pub(super) struct Scene {
    pub(super) registry: Registry,
    pub(super) cluster: Cluster,
    pub(super) client: Client,
}

impl Scene {
    pub(super) async fn start(packages: &[Package], options: Options) -> Self {
        let registry = Registry::start(registry::Options::default()).await.unwrap();
        for package in packages {
            registry.publish(package).unwrap();
        }
        Self::with_registry(registry, options).await
    }

    pub(super) async fn with_registry(registry: Registry, mut options: Options) -> Self {
        options.index = registry.index_url();
        let options = options.with_env(Role::Dispatcher, "WATCH_INTERVAL_S", "1").with_env(
            Role::Builder,
            "MIN_FREE_DISK_MIB",
            NO_RESERVE,
        );
        let cluster = Cluster::start(options).await.unwrap();
        let client = cluster.client();
        Self { registry, cluster, client }
    }

    pub(super) async fn viewer(&self, topics: &[&str]) -> Viewer {
        Viewer::open(&self.cluster.lb_url(), topics, Some(START)).await
    }

    pub(super) async fn enqueue(&self, krate: &str, kind: &str) -> Value {
        let mut body = json!({"crate": krate, "version": "latest", "kind": kind});
        if kind != "metadata" {
            body["target"] = json!(self.target());
        }
        self.client.post("/api/v1/jobs", &body).await.unwrap()
    }

    pub(super) fn target(&self) -> &str {
        &self.cluster.targets()[0]
    }

    /// Of the load balancer.
    pub(super) async fn get(&self, path: &str) -> reqwest::Response {
        self.request(reqwest::Method::GET, path, &[]).await
    }

    pub(super) async fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::Response {
        let mut request = self.client.http().request(method, self.client.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.expect("the load balancer answers")
    }

    pub(super) async fn log(&self, job: &Value) -> String {
        let response = self.get(&format!("/api/v1/jobs/{job}/log")).await;
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    }
}

/// Asks until `found` finds something: for what no event tells of.
pub(super) async fn until<T, F>(what: &str, found: F) -> T
where
    F: AsyncFnMut() -> Option<T>,
{
    until_within(Duration::from_mins(1), what, found).await
}

pub(super) async fn until_within<T, F>(limit: Duration, what: &str, mut found: F) -> T
where
    F: AsyncFnMut() -> Option<T>,
{
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    loop {
        pause.tick().await;
        if let Some(found) = found().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come");
    }
}
