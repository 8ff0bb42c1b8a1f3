//! Nodes die and connections break while a real builder works: the build goes on, and nothing is there twice.

use super::{
    events::Viewer,
    peer::{METADATA, Peer, new_key, put, register},
    proxy::Proxy,
    scene::{Scene, until},
    talker::{assert_whole, has_said, talker},
};
use cratemill_protocol::{Sha256Hex, codec::Encoding};
use cratemill_stack::{
    cluster::Options,
    fixtures::{Registry, crates, registry},
    process::Signal,
    services::Role,
};
use serde_json::{Value, json};

const LINES: usize = 60;

/// The node that a builder is connected to, as a number from 0.
async fn holder(scene: &Scene, not: Option<usize>) -> usize {
    let pool = sqlx::PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    let holder = until("the builder is at a node", async || {
        let node: Option<String> =
            sqlx::query_scalar("SELECT node FROM builder_sessions").fetch_optional(&pool).await.unwrap();
        let place = scene.cluster.api.iter().position(|service| Some(service.name()) == node.as_deref());
        place.filter(|place| Some(*place) != not)
    })
    .await;
    pool.close().await;
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_when_its_node_is_killed_and_when_the_next_one_drains() {
    let options = Options { api: 2, ..Options::default() };
    let mut scene = Scene::start(&[talker("talker", LINES, 150)], options).await;
    let job = scene.enqueue("talker", "tarball").await["id"].clone();
    has_said(&scene, &job, 3).await;
    let first = holder(&scene, None).await;
    scene.cluster.api[first].kill9().await.unwrap();
    let second = holder(&scene, Some(first)).await;
    scene.cluster.api[first].restart().await.unwrap();
    scene.cluster.haproxy.wait_for_nodes(std::time::Duration::from_secs(30)).await.unwrap();
    has_said(&scene, &job, LINES / 2).await;
    scene.cluster.api[second].stop().await.unwrap();

    let end = scene.viewer(&["builds"]).await.job_end("talker", "tarball").await;
    let log = scene.log(&job).await;
    assert_eq!((&end["state"], &end["attempt"]), (&json!("succeeded"), &json!(1)), "{end}: {log}");
    assert_whole(&log, LINES);
    let shown = scene.client.get(&format!("/api/v1/jobs/{job}")).await.unwrap();
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 1, "it was not built again: {shown}");
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_and_an_outcome_that_were_cut_off_are_sent_again() {
    let proxy = Proxy::start().await;
    let registry = Registry::start(registry::Options::default()).await.unwrap();
    registry.publish(&crates::hello_bin("1.0.0").unwrap()).unwrap();
    let options = Options { builder: 0, ..Options::default() }.with_env(Role::Api, "PUBLIC_URL", proxy.url());
    let mut scene = Scene::with_registry(registry, options).await;
    proxy.lead_to(&scene.cluster.lb_url());
    let builder = super::farm::builder_at(&scene, 1, &proxy.url()).await;

    let (uploading, done_lost) = (proxy.stop_upload(2_000), proxy.cut_at("job_done"));
    let job = scene.enqueue("hello-bin", "tarball").await["id"].clone();
    uploading.await.unwrap();
    scene.cluster.api[0].kill9().await.unwrap();
    scene.cluster.api[0].restart().await.unwrap();
    done_lost.await.unwrap();
    until("the builder is done with it", async || {
        let pool = sqlx::PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
        let idle: i64 = sqlx::query_scalar("SELECT count(*) FROM builder_sessions WHERE slots = 1")
            .fetch_one(&pool)
            .await
            .unwrap();
        pool.close().await;
        (idle == 1).then_some(())
    })
    .await;
    one_effect(&scene, &job, "tarball").await;
    let path = format!("/api/v1/crates/hello-bin/1.0.0/{}/tarball", scene.target());
    let bytes = scene.get(&path).await.bytes().await.unwrap();
    let sums = scene.get(&format!("{path}.sha256")).await.text().await.unwrap();
    assert!(sums.starts_with(&Sha256Hex::of(&bytes).to_string()), "the whole file is there: {sums}");
    drop(builder);
    scene.cluster.stop().await.unwrap();
}

/// One attempt, one end, one artifact.
async fn one_effect(scene: &Scene, job: &Value, kind: &str) {
    let mut viewer = scene.viewer(&[&format!("job.{job}")]).await;
    let end = viewer.job_end("hello-bin", kind).await;
    assert_eq!((&end["state"], &end["attempt"]), (&json!("succeeded"), &json!(1)), "{end}");
    let shown = scene.client.get(&format!("/api/v1/jobs/{job}")).await.unwrap();
    let count = |what: &str| shown[what].as_array().unwrap().len();
    assert_eq!((count("attempts"), count("artifacts")), (1, 1), "{shown}");
    // What comes after all that was said of this job is said of another one.
    let mut all = Viewer::open(&scene.cluster.lb_url(), &["builds"], Some("0")).await;
    let next =
        json!({"crate": "hello-bin", "version": "latest", "kind": "metadata", "features": "no-default"});
    let next = scene.client.post("/api/v1/jobs", &next).await.unwrap()["id"].clone();
    let mut ends = 0;
    loop {
        let frame = all.next().await;
        if frame.data["job"] == *job {
            ends += u32::from(frame.data["state"] == "succeeded");
        } else if frame.data["job"] == next {
            break;
        }
    }
    assert_eq!(ends, 1, "it ended once");
}

/// The outcome is stored, and nobody has looked at it when the builder sends it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_sent_twice_has_one_effect() {
    let scene =
        Scene::start(&[crates::hello_bin("1.0.0").unwrap()], Options { builder: 0, ..Options::default() })
            .await;
    let key = new_key();
    register(&scene.client, "peer", &key, scene.cluster.targets()).await;
    let connect = async || Peer::connect(&scene.cluster, Encoding::MsgPack, key.clone()).await;
    let mut peer = connect().await;
    peer.login().await;
    let id = scene.enqueue("hello-bin", "metadata").await["id"].clone();
    let job = peer.take_job().await;
    let sha256 = Sha256Hex::of(METADATA).to_string();
    assert_eq!(put(&scene.client, &job, "m.json", job.token.secret(), METADATA, &sha256).await, 201);
    // Accepted, or the frozen dispatcher would find that it was not.
    until("the job runs", async || {
        let job = scene.client.get(&format!("/api/v1/jobs/{id}")).await.unwrap();
        (job["state"] == "running").then_some(())
    })
    .await;
    let dispatcher = scene.cluster.dispatchers[0].process().unwrap();
    dispatcher.signal(Signal::SIGSTOP);
    peer.respond(&job, "m.json", METADATA, 0, |_| {}).await;
    drop(peer);
    let mut peer = connect().await;
    assert_eq!(peer.resume(&job).await, 1);
    peer.succeed(&job, "m.json", METADATA, 0, |_| {}).await;
    dispatcher.signal(Signal::SIGCONT);
    one_effect(&scene, &id, "metadata").await;
    scene.cluster.stop().await.unwrap();
}
