//! Builders that vanish, and builders that come back when their job is another's: nothing of theirs counts any more.

use super::{
    farm,
    peer::{Peer, new_key, put, register},
    scene::{Scene, until},
    talker::{assert_whole, has_children, has_said, only_job, talker},
};
use cratemill_protocol::{
    Sha256Hex,
    builder::{CancelReason, ClientMessage, Event, JobEvent, JobRef, ServerMessage},
    bus::{self, LogBody, LogMessage},
    codec::Encoding,
    subjects,
};
use cratemill_stack::{cluster::Options, process::Signal, services::Role};
use serde_json::{Value, json};
use std::time::Duration;

const BYTES: &[u8] = b"what the second attempt made";
/// Several times what a busy machine keeps a peer from doing.
const LEASE_S: &str = "15";

/// Leases that run out within a test, and nobody who builds.
fn options() -> Options {
    Options { builder: 0, ..Options::default() }
        .with_env(Role::Api, "HEARTBEAT_S", "2")
        .with_env(Role::Api, "LEASE_S", LEASE_S)
        .with_env(Role::Dispatcher, "LEASE_S", LEASE_S)
        .with_env(Role::Dispatcher, "CATCH_UP_S", "1")
}

async fn peer(scene: &Scene, name: &str) -> Peer {
    let key = new_key();
    register(&scene.client, name, &key, scene.cluster.targets()).await;
    let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key).await;
    peer.login().await;
    peer
}

/// This attempt lost its lease.
async fn is_lost(scene: &Scene, job: &Value, attempt: i32) {
    let mut viewer = scene.viewer(&[&format!("job.{job}")]).await;
    let lost =
        viewer.wait_for(|frame| frame.data["state"] == "queued" && frame.data["attempt"] == attempt).await;
    assert_eq!(lost.data["failure"], "lost", "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_builder_had_is_built_by_another() {
    const LINES: usize = 100;
    let scene = Scene::start(&[talker("talker", LINES, 100)], options()).await;
    let mut first = farm::builder(&scene, 1).await;
    let job = only_job(&scene, "talker").await;
    has_said(&scene, &job, 3).await;
    first.kill9().await.unwrap();
    let second = farm::builder(&scene, 2).await;
    is_lost(&scene, &job, 1).await;
    let end = scene.viewer(&["builds"]).await.job_end("talker", "tarball").await;
    assert_eq!((&end["state"], &end["attempt"]), (&json!("succeeded"), &json!(2)), "{end}");
    assert_whole(&scene.log(&job).await, LINES);
    drop(second);
    scene.cluster.stop().await.unwrap();
}

/// Every dispatcher looks for leases that ran out, so it matters to nobody which of them dies meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_job_is_queued_again_by_whichever_dispatcher_is_left() {
    let mut scene = Scene::start(&[talker("talker", 1, 1)], Options { dispatcher: 2, ..options() }).await;
    let id = only_job(&scene, "talker").await;
    for (dead, attempt) in [(0, 1), (1, 2)] {
        let mut vanishes = peer(&scene, &format!("peer-{attempt}")).await;
        let job = vanishes.take_job().await;
        assert_eq!((json!(job.id), job.attempt.0), (id.clone(), attempt));
        // Once it is acknowledged the job is the builder's for certain.
        vanishes.event(&job, 1, Event::Log { offset: 0, text: "gone\n".into() }).await;
        drop(vanishes);
        scene.cluster.dispatchers[dead].kill9().await.unwrap();
        let job = scene.client.get(&format!("/api/v1/jobs/{id}")).await.unwrap();
        assert_eq!(job["state"], "running", "its lease outlasts the dispatcher: {job:#}");
        is_lost(&scene, &id, attempt).await;
        scene.cluster.dispatchers[dead].restart().await.unwrap();
    }
    scene.cluster.stop().await.unwrap();
}

/// A real builder is stopped with its sandbox running, and goes on when a second attempt has the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_builder_cannot_spoil_the_next_attempt() {
    let scene = Scene::start(&[talker("talker", 100_000, 100)], options()).await;
    let builder = farm::builder(&scene, 1).await;
    let process = builder.process().unwrap();
    let id = only_job(&scene, "talker").await;
    has_said(&scene, &id, 3).await;
    process.signal(Signal::SIGSTOP);
    is_lost(&scene, &id, 1).await;
    let mut peer = peer(&scene, "second").await;
    let job = peer.take_job().await;
    assert_eq!(job.attempt.0, 2);
    peer.event(&job, 1, Event::Log { offset: 0, text: "fresh\n".into() }).await;

    assert!(has_children(process.pid()), "the first attempt's sandbox is still there");
    process.signal(Signal::SIGCONT);
    until("the first attempt's sandbox is killed", async || (!has_children(process.pid())).then_some(()))
        .await;

    let sha256 = Sha256Hex::of(BYTES).to_string();
    let fresh = token_of(&mut peer, &job).await;
    assert_eq!(put(&scene.client, &job, "made.tar.gz", &fresh, BYTES, &sha256).await, 201);
    peer.succeed(&job, "made.tar.gz", BYTES, 1, |_| {}).await;
    let end = scene.viewer(&["builds"]).await.job_end("talker", "tarball").await;
    assert_eq!((&end["state"], &end["attempt"]), (&json!("succeeded"), &json!(2)), "{end}");
    assert_eq!(scene.log(&id).await, "fresh\n");
    let path = format!("/api/v1/crates/talker/0.1.0/{}/tarball", scene.target());
    assert_eq!(scene.get(&path).await.bytes().await.unwrap(), BYTES);
    nothing_after_the_end(&scene, JobRef { job: job.id, attempt: 1.into() }).await;
    scene.cluster.stop().await.unwrap();
}

/// Renews the lease, and with it the token.
async fn token_of(peer: &mut Peer, job: &cratemill_protocol::builder::Job) -> String {
    peer.beat(&[job]).await;
    peer.wait_for(|message| match message {
        ServerMessage::LeaseRenewed { token, .. } => Some(token.secret().to_owned()),
        _ => None,
    })
    .await
}

/// An attempt's log ends with its end.
async fn nothing_after_the_end(scene: &Scene, of: JobRef) {
    let url: async_nats::ServerAddr = scene.cluster.nats.url("admin").unwrap().parse().unwrap();
    let password = url.password().unwrap().to_owned();
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), password);
    let jetstream = async_nats::jetstream::new(options.connect(url).await.unwrap());
    let stream = jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    let subject = subjects::log(of.job, of.attempt);
    let last = until("the log's end", async || {
        let last = stream.direct_get_last_for_subject(subject.clone()).await.ok()?;
        let last: LogMessage = bus::decode(&last.payload).unwrap();
        matches!(last.body, LogBody::End { .. }).then_some(last)
    })
    .await;
    assert_eq!((last.job, last.attempt), (of.job, of.attempt));
}

/// A peer that keeps talking but lets its lease run out; then it sends all that an attempt can send.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_the_lease_is_refused_everything() {
    let scene = Scene::start(&[talker("talker", 1, 1)], options()).await;
    let mut old = peer(&scene, "old").await;
    let id = only_job(&scene, "talker").await;
    let stale = old.take_job().await;
    old.event(&stale, 1, Event::Log { offset: 0, text: "stale\n".into() }).await;
    tokio::select! {
        () = is_lost(&scene, &id, 1) => {}
        // It lives, and says nothing of its job.
        () = chatter(&mut old) => {}
    }
    let mut new = peer(&scene, "new").await;
    let job = new.take_job().await;
    new.event(&job, 1, Event::Log { offset: 0, text: "fresh\n".into() }).await;

    let late = Event::Log { offset: 6, text: "late\n".into() };
    let event = JobEvent { job: stale.id, attempt: stale.attempt, seq: 2, event: late };
    old.send(&ClientMessage::JobEvent(event)).await;
    is_told_that_it_lost(&mut old).await;
    let sha256 = Sha256Hex::of(BYTES).to_string();
    assert_eq!(put(&scene.client, &stale, "made.tar.gz", stale.token.secret(), BYTES, &sha256).await, 409);
    old.respond(&stale, "made.tar.gz", BYTES, 2, |_| {}).await;
    is_told_that_it_lost(&mut old).await;
    let fresh = token_of(&mut new, &job).await;
    assert_eq!(put(&scene.client, &job, "made.tar.gz", &fresh, BYTES, &sha256).await, 201);
    new.succeed(&job, "made.tar.gz", BYTES, 1, |_| {}).await;
    let end = scene.viewer(&["builds"]).await.job_end("talker", "tarball").await;
    assert_eq!((&end["state"], &end["attempt"]), (&json!("succeeded"), &json!(2)), "{end}");
    assert_eq!(scene.log(&id).await, "fresh\n");
    nothing_after_the_end(&scene, JobRef { job: stale.id, attempt: stale.attempt }).await;
    let first = scene.get(&format!("/api/v1/jobs/{id}/log?attempt=1")).await.text().await.unwrap();
    assert_eq!(first, "stale\n", "what came in time, and nothing that came late");
    scene.cluster.stop().await.unwrap();
}

async fn chatter(peer: &mut Peer) {
    let mut words = tokio::time::interval(Duration::from_secs(1));
    loop {
        words.tick().await;
        peer.send(&ClientMessage::JobRequest { slots: 0 }).await;
    }
}

async fn is_told_that_it_lost(peer: &mut Peer) {
    peer.wait_for(|message| match message {
        ServerMessage::Cancel { why: CancelReason::LeaseLost, .. } => Some(()),
        ServerMessage::EventAck { seq: 2.., .. } | ServerMessage::JobDone(_) => panic!("{message:?}"),
        _ => None,
    })
    .await;
}
