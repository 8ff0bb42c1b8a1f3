//! What an operator does to jobs and builders while they work: cancel, retry, drain, disable; and what a yank does.

use super::{
    peer::{Peer, new_key, register},
    scene::{Scene, until},
    talker::{has_said, only_job, processes, stubborn, talker},
};
use cratemill_protocol::{
    builder::{CANCEL_GRACE_S, CloseReason},
    codec::Encoding,
};
use cratemill_stack::{client::Client, cluster::Options, fixtures::crates, services::Role};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use std::time::{Duration, Instant};

/// Unlike any other sleep on this machine.
const MARK: u32 = 575_757;
/// What an operator says reaches a builder within this, wherever it is connected. Each message may be lost, and what
/// makes up for it is kept from doing so within that time: on a machine with nothing else to do it takes milliseconds.
const AT_ONCE: Duration = Duration::from_mins(1);
/// Heartbeats tell of cancels too: here none comes while a cancel is on its way.
const HEARTBEAT_S: &str = "120";
const LEASE_S: &str = "600";

async fn database(scene: &Scene) -> PgPool {
    PgPool::connect(&scene.cluster.postgres.url()).await.unwrap()
}

/// The operator at one node, past the load balancer: first the one that holds the builder's connection, then another.
async fn at_each_node(scene: &Scene) -> [Client; 2] {
    let pool = database(scene).await;
    let node: String =
        sqlx::query_scalar("SELECT node FROM builder_sessions").fetch_one(&pool).await.unwrap();
    pool.close().await;
    let client = |holds: bool| {
        let service = scene.cluster.api.iter().find(|service| (service.name() == node) == holds).unwrap();
        Client::new(&service.url().unwrap(), scene.cluster.admin_token())
    };
    [client(true), client(false)]
}

/// The node that holds the builder's connection, and when it has looked whether its sessions have changed. It does so every
/// five seconds, and this returns right after it did: what the builder hears before the next look it was told.
async fn node_has_looked(pool: &PgPool) -> (String, String) {
    let node: String = sqlx::query_scalar("SELECT node FROM builder_sessions").fetch_one(pool).await.unwrap();
    let before = looked_at(pool, &node).await;
    let looked = until("the node marks itself", async || {
        let now = looked_at(pool, &node).await;
        (now != before).then_some(now)
    });
    let looked = looked.await;
    (node, looked)
}

async fn looked_at(pool: &PgPool, node: &str) -> String {
    let look = "SELECT seen_at::text FROM nodes WHERE name = $1";
    sqlx::query_scalar(look).bind(node).fetch_one(pool).await.unwrap()
}

async fn state(scene: &Scene, job: &Value) -> Value {
    scene.client.get(&format!("/api/v1/jobs/{job}")).await.unwrap()["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_sandbox_and_a_drained_builder_ends_when_it_is_empty() {
    let packages = [talker("talker", 100_000, 100), stubborn("stubborn", MARK), talker("short", 30, 100)];
    let options = Options { api: 2, ..Options::default() }
        .with_env(Role::Api, "HEARTBEAT_S", HEARTBEAT_S)
        .with_env(Role::Api, "LEASE_S", LEASE_S)
        .with_env(Role::Dispatcher, "LEASE_S", LEASE_S);
    let scene = Scene::start(&packages, options).await;
    let mut viewer = scene.viewer(&["builds"]).await;
    let talking = only_job(&scene, "talker").await;
    has_said(&scene, &talking, 3).await;
    let [_, elsewhere] = at_each_node(&scene).await;

    // From another node than the one that has the builder, and at once.
    let asked = Instant::now();
    let path = format!("/api/v1/jobs/{talking}/cancel");
    elsewhere.post(&path, &json!({})).await.unwrap();
    let end = viewer.job_end("talker", "tarball").await;
    assert_eq!(end["state"], "cancelled");
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    assert!(scene.log(&talking).await.contains("SIGTERM"), "it was asked before it was killed");

    // Retried it is a new line, and the old one stays as it was.
    let before = scene.client.get(&format!("/api/v1/jobs/{talking}")).await.unwrap();
    let again = scene.client.post(&format!("/api/v1/jobs/{talking}/retry"), &json!({})).await.unwrap();
    assert_eq!((&again["parent"], again["id"] == talking), (&talking, false), "{again}");
    let again = again["id"].clone();
    has_said(&scene, &again, 1).await;
    scene.client.post(&format!("/api/v1/jobs/{again}/cancel"), &json!({})).await.unwrap();
    assert_eq!(viewer.job_end("talker", "tarball").await["job"], again);
    assert_eq!(scene.client.get(&format!("/api/v1/jobs/{talking}")).await.unwrap(), before);

    // What takes no notice is killed after its grace.
    let deaf = only_job(&scene, "stubborn").await;
    let sleep = format!("/bin/sleep {MARK}");
    until("the build sleeps", async || (!processes(&sleep).is_empty()).then_some(())).await;
    let asked = Instant::now();
    elsewhere.post(&format!("/api/v1/jobs/{deaf}/cancel"), &json!({})).await.unwrap();
    assert_eq!(viewer.job_end("stubborn", "tarball").await["state"], "cancelled");
    let (took, grace) = (asked.elapsed(), Duration::from_secs(CANCEL_GRACE_S.into()));
    assert!((grace..grace + AT_ONCE).contains(&took), "{took:?}");
    assert!(processes(&sleep).is_empty(), "nothing of it is left");

    // A draining builder finishes, gets nothing new, and ends with success.
    let last = only_job(&scene, "short").await;
    has_said(&scene, &last, 1).await;
    let builders = scene.client.list("/api/v1/builders").await.unwrap();
    let path = format!("/api/v1/builders/{}", builders[0]["id"]);
    elsewhere.call(Method::PATCH, &path, &json!({"drain": true})).await.unwrap();
    let waiting = only_job(&scene, "stubborn").await;
    assert_eq!(viewer.job_end("short", "tarball").await["state"], "succeeded");
    let process = scene.cluster.builders[0].process().unwrap();
    let ended = process.exited_within(Duration::from_secs(30)).await.unwrap();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}{}", process.log_tail());
    assert_eq!(state(&scene, &waiting).await, "queued");

    // What is done cannot be cancelled, and what waits is cancelled at once.
    let refused = scene.client.post(&format!("/api/v1/jobs/{last}/cancel"), &json!({})).await.unwrap_err();
    assert!(format!("{refused:#}").contains("409 Conflict: the job is succeeded"), "{refused:#}");
    let cancelled = scene.client.post(&format!("/api/v1/jobs/{waiting}/cancel"), &json!({})).await.unwrap();
    assert_eq!(cancelled["state"], "cancelled");
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yank_withdraws_what_is_queued_and_a_disabled_key_is_out_at_once() {
    let options = Options { api: 2, builder: 0, ..Options::default() };
    let scene = Scene::start(&[crates::hello_bin("1.0.0").unwrap()], options).await;
    let queued = scene.enqueue("hello-bin", "tarball").await["id"].clone();
    scene.registry.yank("hello-bin", "1.0.0", true).unwrap();
    // Asking for the newest version has the registry looked at, as watching it would.
    let newest = json!({"crate": "hello-bin", "version": "latest", "kind": "metadata"});
    assert!(scene.client.post("/api/v1/jobs", &newest).await.is_err(), "nothing is left to build");
    let end = scene.viewer(&["builds"]).await.job_end("hello-bin", "tarball").await;
    assert_eq!((&end["job"], &end["state"]), (&queued, &json!("cancelled")));

    let pool = database(&scene).await;
    for from_holder in [true, false] {
        let key = new_key();
        let name = format!("peer-{from_holder}");
        let id = register(&scene.client, &name, &key, scene.cluster.targets()).await;
        let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key.clone()).await;
        peer.login().await;
        let [holder, elsewhere] = at_each_node(&scene).await;
        let operator = if from_holder { holder } else { elsewhere };
        let path = format!("/api/v1/builders/{id}");
        let (node, looked) = node_has_looked(&pool).await;
        operator.call(Method::PATCH, &path, &json!({"enabled": false})).await.unwrap();
        assert_eq!(peer.close_reason().await, CloseReason::Disabled);
        assert_eq!(
            looked_at(&pool, &node).await,
            looked,
            "it was told, asked at its own node: {from_holder}"
        );
        let mut again = Peer::connect(&scene.cluster, Encoding::MsgPack, key).await;
        let hello = again.hello();
        again.send(&hello).await;
        assert_eq!(again.close_reason().await, CloseReason::Disabled);
        until("its session is gone", async || {
            let builders = scene.client.list("/api/v1/builders").await.unwrap();
            builders.iter().all(|builder| builder["connected"] == false).then_some(())
        })
        .await;
    }
    pool.close().await;
    scene.cluster.stop().await.unwrap();
}
