//! What an operator sees: readiness, drains, and processes that die.

use super::{
    peer::{METADATA, Peer, new_key, put, register},
    scene::{Scene, until},
};
use cratemill_protocol::{
    Sha256Hex,
    builder::{CloseReason, Event},
    codec::Encoding,
};
use cratemill_stack::{
    cluster::Options,
    fixtures::crates,
    services::{Role, Service},
};
use serde_json::Value;

/// The local stack drains for five seconds, which a machine that is busy compiling may need to write a count down.
const DRAIN_S: &str = "20";

async fn readiness(service: &Service) -> (u16, Value) {
    readiness_with(service, "").await
}

async fn readiness_with(service: &Service, query: &str) -> (u16, Value) {
    let response = reqwest::get(format!("{}/readyz{query}", service.url().unwrap())).await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_what_is_missing_and_comes_back() {
    let mut scene = Scene::start(&[], Options { builder: 0, ..Options::default() }).await;
    scene.cluster.nats.kill9().await.unwrap();
    for service in [
        &scene.cluster.api[0],
        &scene.cluster.live[0],
        &scene.cluster.dispatchers[0],
        &scene.cluster.counters[0],
    ] {
        until("the bus is reported as missing", async || {
            let (status, body) = readiness_with(service, "?with=nats").await;
            (status == 503 && body["missing"]["nats"].is_string()).then_some(())
        })
        .await;
        // Downloads go on without it.
        let expected = if service.role() == Role::Api { 200 } else { 503 };
        assert_eq!(readiness(service).await.0, expected, "{}", service.name());
        let alive = reqwest::get(format!("{}/healthz", service.url().unwrap())).await.unwrap();
        assert_eq!(alive.status(), 200, "alive all the same");
    }
    scene.cluster.nats.restart().await.unwrap();
    scene.cluster.postgres.stop().await.unwrap();
    let api = &scene.cluster.api[0];
    until("the database is reported as missing", async || {
        let (status, body) = readiness(api).await;
        (status == 503 && body["missing"]["postgres"].is_string() && body["missing"]["nats"].is_null())
            .then_some(())
    })
    .await;
    scene.cluster.postgres.restart().await.unwrap();
    until("all is well again", async || (readiness(api).await.0 == 200).then_some(())).await;
    // Only some of the work needs it: no load balancer is to take the rest away too.
    scene.cluster.s3.stop().await;
    let (status, body) = until("the object store is reported as missing", async || {
        let (status, body) = readiness(&scene.cluster.api[0]).await;
        body["missing"]["object store"].is_string().then_some((status, body))
    })
    .await;
    assert_eq!((status, &body["ready"]), (200, &true.into()), "{body}");
    scene.cluster.s3.restart().await.unwrap();
    let api = &scene.cluster.api[0];
    let metrics = reqwest::get(format!("{}/metrics", api.url().unwrap())).await.unwrap();
    assert_eq!(metrics.status(), 200);
    scene.cluster.stop().await.unwrap();
}

/// A builder goes on at another node with what it was doing: the log has every line once.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_dies_and_the_build_goes_on() {
    let options = Options { api: 2, builder: 0, ..Options::default() };
    let mut scene = Scene::start(&[crates::hello_bin("1.0.0").unwrap()], options).await;
    let key = new_key();
    register(&scene.client, "peer", &key, scene.cluster.targets()).await;
    let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key.clone()).await;
    peer.login().await;
    scene.enqueue("hello-bin", "metadata").await;
    let job = peer.take_job().await;
    peer.event(&job, 1, Event::Log { offset: 0, text: "one\n".into() }).await;

    let node = node_of(&scene).await;
    let dead = scene.cluster.api.iter_mut().find(|service| service.name() == node).unwrap();
    dead.kill9().await.unwrap();
    let mut peer = reconnect(&scene, key).await;
    let next_seq = peer.resume(&job).await;
    assert_eq!(next_seq, 2, "what was acknowledged is stored");
    peer.event(&job, 2, Event::Log { offset: 4, text: "two\n".into() }).await;
    let sha256 = Sha256Hex::of(METADATA).to_string();
    assert_eq!(put(&scene.client, &job, "m.json", job.token.secret(), METADATA, &sha256).await, 201);
    peer.succeed(&job, "m.json", METADATA, 2, |_| {}).await;
    let end = scene.viewer(&[&format!("job.{}", job.id)]).await.job_end("hello-bin", "metadata").await;
    assert_eq!((end["state"].as_str(), end["attempt"].as_i64()), (Some("succeeded"), Some(1)));
    assert_eq!(scene.log(&end["job"]).await, "one\ntwo\n");
    scene.cluster.stop().await.unwrap();
}

async fn node_of(scene: &Scene) -> String {
    let pool = sqlx::PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    sqlx::query_scalar("SELECT node FROM builder_sessions").fetch_one(&pool).await.unwrap()
}

/// Through the load balancer, which may still try the dead node.
async fn reconnect(scene: &Scene, key: ssh_key::PrivateKey) -> Peer {
    let server = scene.cluster.lb_url();
    until("the load balancer finds the node that lives", async || {
        super::peer::open(&server, Some(Encoding::MsgPack.subprotocol())).await.ok().map(drop)
    })
    .await;
    Peer::connect(&scene.cluster, Encoding::MsgPack, key).await
}

/// SIGTERM: builders are told to go elsewhere, counts are not lost, and each service ends by itself, with success.
#[tokio::test(flavor = "multi_thread")]
async fn services_drain_on_sigterm() {
    let mut options = Options { api: 2, builder: 0, ..Options::default() };
    for role in [Role::Api, Role::Live, Role::Dispatcher, Role::Counter] {
        options = options.with_env(role, "DRAIN_S", DRAIN_S);
    }
    let mut scene = Scene::start(&[crates::hello_bin("1.0.0").unwrap()], options).await;
    let key = new_key();
    register(&scene.client, "peer", &key, scene.cluster.targets()).await;
    let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key.clone()).await;
    peer.login().await;
    scene.enqueue("hello-bin", "metadata").await;
    let job = peer.take_job().await;
    let sha256 = Sha256Hex::of(METADATA).to_string();
    assert_eq!(put(&scene.client, &job, "m.json", job.token.secret(), METADATA, &sha256).await, 201);

    // The node that has the builder drains: the job goes on at the other.
    let node = node_of(&scene).await;
    let draining = scene.cluster.api.iter().position(|service| service.name() == node).unwrap();
    let stopping = scene.cluster.api[draining].stop();
    let (stopped, reason) = tokio::join!(stopping, peer.close_reason());
    stopped.unwrap();
    assert_eq!(reason, CloseReason::Draining);
    let mut peer = reconnect(&scene, key).await;
    assert_eq!(peer.resume(&job).await, 1);
    peer.succeed(&job, "m.json", METADATA, 0, |_| {}).await;
    let end = scene.viewer(&[&format!("job.{}", job.id)]).await.job_end("hello-bin", "metadata").await;
    assert_eq!((end["state"].as_str(), end["attempt"].as_i64()), (Some("succeeded"), Some(1)));

    // A download that was answered is counted, whatever stops right after it.
    let body = scene.get("/api/v1/crates/hello-bin/1.0.0/any/metadata").await;
    assert_eq!(body.bytes().await.unwrap(), METADATA);
    let other = 1 - draining;
    scene.cluster.api[other].stop().await.unwrap();
    let pool = sqlx::PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    until("the download's count", async || {
        let count: Option<i64> = sqlx::query_scalar("SELECT sum(count)::bigint FROM downloads_daily")
            .fetch_one(&pool)
            .await
            .unwrap();
        (count == Some(1)).then_some(())
    })
    .await;
    pool.close().await;
    all_said_that_they_ended(scene).await;
}

async fn all_said_that_they_ended(scene: Scene) {
    // Opened before they are removed with the cluster's folder.
    let log = |name: &str| scene.cluster.data_dir().join("log").join(format!("{name}.log"));
    let names = ["api-1", "api-2", "live-1", "dispatcher-1", "counter-1"];
    let logs = names.map(|name| (name, std::fs::File::open(log(name)).unwrap()));
    scene.cluster.stop().await.unwrap();
    for (name, mut file) in logs {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert!(!text.contains("panicked"), "{name}:\n{text}");
        assert!(!text.contains("\"level\":\"ERROR\""), "{name}:\n{text}");
        assert!(text.contains("\"message\":\"ended\""), "{name} did not end by itself:\n{text}");
    }
}
