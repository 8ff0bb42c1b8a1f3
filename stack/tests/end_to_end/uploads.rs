//! What a builder may put, and what becomes of an attempt whose files are not what it signed.

use super::{
    peer::{METADATA as BYTES, Peer, new_key, put, register},
    scene::Scene,
};
use cratemill_protocol::{Sha256Hex, builder::Job, codec::Encoding};
use cratemill_stack::{cluster::Options, fixtures::crates};
use serde_json::json;

async fn scene_with_job() -> (Scene, Peer, Job) {
    let options = Options { builder: 0, ..Options::default() };
    let scene =
        Scene::start(&[crates::hello_bin("1.0.0").unwrap(), crates::lib_only("0.1.0").unwrap()], options)
            .await;
    let key = new_key();
    register(&scene.client, "peer", &key, scene.cluster.targets()).await;
    let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key).await;
    peer.login().await;
    scene.enqueue("hello-bin", "metadata").await;
    let job = peer.take_job().await;
    (scene, peer, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_attempt_itself_puts_what_it_says() {
    let (scene, mut peer, job) = scene_with_job().await;
    let client = &scene.client;
    let sha256 = Sha256Hex::of(BYTES).to_string();
    let token = job.token.secret();
    assert_eq!(put(client, &job, "m.json", "", BYTES, &sha256).await, 401);
    assert_eq!(put(client, &job, "m.json", &format!("{token}x"), BYTES, &sha256).await, 401);
    assert_eq!(put(client, &job, "m.json", token, BYTES, "").await, 400);
    assert_eq!(put(client, &job, "m.json", token, b"other bytes", &sha256).await, 422);
    assert!(put(client, &job, "..%2f..%2fetc", token, BYTES, &sha256).await >= 400);

    let other = scene.enqueue("lib-only", "metadata").await["id"].as_i64().unwrap();
    let upload = job.upload.replace(&format!("/{}/", job.id), &format!("/{other}/"));
    let foreign = Job { upload, ..job.clone() };
    assert_eq!(put(client, &foreign, "m.json", token, BYTES, &sha256).await, 403);

    // The same file twice is one file.
    assert_eq!(put(client, &job, "m.json", token, BYTES, &sha256).await, 201);
    assert_eq!(put(client, &job, "m.json", token, BYTES, &sha256).await, 201);
    let listed = scene.get("/api/v1/crates/hello-bin/1.0.0/any/metadata").await;
    assert_eq!(listed.status(), 404, "stored is not visible");
    peer.succeed(&job, "m.json", BYTES, 0, |_| {}).await;
    let end = scene.viewer(&[&format!("job.{}", job.id)]).await.job_end("hello-bin", "metadata").await;
    assert_eq!(end["state"], "succeeded", "{end}");
    assert_eq!(put(client, &job, "late.json", token, BYTES, &sha256).await, 409, "the attempt is over");
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_does_not_fit_its_files_lists_nothing() {
    let (scene, mut peer, job) = scene_with_job().await;
    let sha256 = Sha256Hex::of(BYTES).to_string();
    assert_eq!(put(&scene.client, &job, "m.json", job.token.secret(), BYTES, &sha256).await, 201);
    peer.succeed(&job, "m.json", BYTES, 0, |manifest| {
        manifest.artifacts[0].sha256 = Sha256Hex::of(b"what was never uploaded");
    })
    .await;
    let path = format!("/api/v1/jobs/{}", job.id);
    let mut viewer = scene.viewer(&[&format!("job.{}", job.id)]).await;
    let again = viewer.wait_for(|frame| frame.data["state"] == "queued" && frame.data["attempt"] == 1).await;
    assert_eq!(again.data["failure"], "infrastructure");
    assert_eq!(scene.client.get(&path).await.unwrap()["artifacts"], json!([]));
    assert_eq!(scene.get("/api/v1/crates/hello-bin/1.0.0/any/metadata").await.status(), 404);
    scene.cluster.stop().await.unwrap();
}
