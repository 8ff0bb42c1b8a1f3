//! Builders that mean harm, or are broken: each is told why, where it can be told, and another one builds meanwhile.

use super::{
    peer::{METADATA, Peer, new_key, of, open, put, register},
    scene::{Scene, until},
};
use cratemill_protocol::{
    Sha256Hex,
    builder::{
        CancelReason, ClientMessage, CloseReason, Event, Heartbeat, Job, JobEvent, JobRef, Load,
        ServerMessage,
    },
    codec::Encoding,
};
use cratemill_stack::{cluster::Options, fixtures::crates};
use futures_util::{SinkExt, StreamExt, stream};
use serde_json::json;
use sqlx::PgPool;
use ssh_key::PrivateKey;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

/// From the request to the end that a viewer sees: what a whole job of a good builder takes at most beside a bad one. On
/// two busy cores it takes half a second, and this is for a machine that stands still now and then.
const BESIDE: Duration = Duration::from_secs(30);

/// A service with nobody but peers, and a good one among them.
async fn scene() -> (Scene, Peer) {
    let scene = Scene::start(
        &[crates::hello_bin("1.0.0").unwrap(), crates::lib_only("0.1.0").unwrap()],
        Options { builder: 0, ..Options::default() },
    )
    .await;
    let good = peer(&scene, "good").await.0;
    (scene, good)
}

async fn peer(scene: &Scene, name: &str) -> (Peer, PrivateKey) {
    let key = new_key();
    register(&scene.client, name, &key, scene.cluster.targets()).await;
    let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key.clone()).await;
    peer.login().await;
    (peer, key)
}

/// A whole job, from the request to its end, in time.
async fn builds(scene: &Scene, good: &mut Peer) {
    let begun = Instant::now();
    let id = scene.enqueue("hello-bin", "metadata").await["id"].clone();
    let job = good.take_job().await;
    assert_eq!(json!(job.id), id);
    good.event(&job, 1, Event::Log { offset: 0, text: "good\n".into() }).await;
    finish(scene, good, &job).await;
    assert!(begun.elapsed() < BESIDE, "{:?}", begun.elapsed());
    assert_eq!(scene.log(&id).await, "good\n");
}

/// The rest of a job that has one event.
async fn finish(scene: &Scene, good: &mut Peer, job: &Job) {
    let sha256 = Sha256Hex::of(METADATA).to_string();
    assert_eq!(put(&scene.client, job, "m.json", job.token.secret(), METADATA, &sha256).await, 201);
    good.succeed(job, "m.json", METADATA, 1, |_| {}).await;
    let mut viewer = scene.viewer(&[&format!("job.{}", job.id)]).await;
    let end = viewer.job_end("hello-bin", "metadata").await;
    assert_eq!((&end["state"], &end["attempt"]), (&json!("succeeded"), &json!(job.attempt.0)), "{end}");
}

fn log(job: &Job, seq: u64) -> ClientMessage {
    let event = Event::Log { offset: seq - 1, text: "x".into() };
    ClientMessage::JobEvent(JobEvent { job: job.id, attempt: job.attempt, seq, event })
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_and_claims_are_refused_and_cost_nobody_else() {
    let (scene, mut good) = scene().await;

    // Events beyond what may be under way, faster than any bus stores them.
    let (mut flood, _) = peer(&scene, "flood").await;
    scene.enqueue("hello-bin", "tarball").await;
    let job = flood.take_job().await;
    let flooding = async {
        for seq in 1..=20_000 {
            flood.send(&log(&job, seq)).await;
        }
        flood.close_reason().await
    };
    let (reason, ()) = tokio::join!(flooding, builds(&scene, &mut good));
    assert_eq!(reason, CloseReason::Flood);

    // What is another's: its events, its end, its files.
    let (mut thief, _) = peer(&scene, "thief").await;
    let (mut other, _) = peer(&scene, "other").await;
    scene.enqueue("lib-only", "metadata").await;
    let held = other.take_job().await;
    let begun = Instant::now();
    let id = scene.enqueue("hello-bin", "metadata").await["id"].clone();
    let job = good.take_job().await;
    good.event(&job, 1, Event::Log { offset: 0, text: "good\n".into() }).await;
    thief.send(&log(&job, 2)).await;
    is_told_that_it_is_not_its(&mut thief, of(&job)).await;
    thief.respond(&job, "m.json", b"stolen", 1, |_| {}).await;
    is_told_that_it_is_not_its(&mut thief, of(&job)).await;
    thief.beat(&[&job]).await;
    is_told_that_it_is_not_its(&mut thief, of(&job)).await;
    let sha256 = Sha256Hex::of(b"stolen").to_string();
    let upload = job.upload.clone();
    let foreign = Job { upload, ..held.clone() };
    assert_eq!(put(&scene.client, &foreign, "m.json", held.token.secret(), b"stolen", &sha256).await, 403);
    // Its own file with the wrong bytes.
    assert_eq!(put(&scene.client, &held, "m.json", held.token.secret(), METADATA, &sha256).await, 422);
    finish(&scene, &mut good, &job).await;
    assert!(begun.elapsed() < BESIDE, "{:?}", begun.elapsed());
    assert_eq!(scene.log(&json!(id)).await, "good\n");
    scene.cluster.stop().await.unwrap();
}

async fn is_told_that_it_is_not_its(peer: &mut Peer, job: JobRef) {
    peer.wait_for(|message| match message {
        ServerMessage::Cancel { job: id, attempt, why: CancelReason::LeaseLost, .. } => {
            (*id == job.job && *attempt == job.attempt).then_some(())
        }
        _ => None,
    })
    .await;
}

/// One that takes nothing of what it is sent, and one whose file comes a byte at a time: both for as long as they may.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_slow_is_dropped_in_time() {
    let (scene, mut good) = scene().await;
    let key = new_key();
    register(&scene.client, "deaf", &key, scene.cluster.targets()).await;
    let mut deaf = Peer::narrow(&scene.cluster, Encoding::MsgPack, key).await;
    deaf.login().await;
    let (mut slow, _) = peer(&scene, "slow").await;
    scene.enqueue("hello-bin", "tarball").await;
    let job = slow.take_job().await;

    let uploads = async {
        let drips = (0..5).map(|number| drip(&scene, &job, number));
        let mut statuses = futures_util::future::join_all(drips).await;
        statuses.sort_unstable();
        assert_eq!(statuses, [408, 408, 408, 408, 429], "too slow, and one too many at once");
    };
    let dropped = async {
        overfeed(deaf).await;
        let metrics = scene.cluster.api[0].url().unwrap() + "/metrics";
        let text = reqwest::get(metrics).await.unwrap().text().await.unwrap();
        assert!(text.contains("cratemill_builder_closes_total{reason=\"takes_nothing\"} 1"), "{text}");
    };
    let work = async {
        for _ in 0..3 {
            builds(&scene, &mut good).await;
        }
    };
    tokio::join!(uploads, dropped, work);
    scene.cluster.stop().await.unwrap();
}

/// A file of ten megabytes that would take four months; tells how the service answers.
async fn drip(scene: &Scene, job: &Job, number: usize) -> u16 {
    let bytes = stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"x")), ()))
    });
    let url = format!("{}/slow-{number}", job.upload);
    let request =
        scene.client.http().put(url).bearer_auth(job.token.secret()).header("content-length", 10 << 20);
    let request = request.header("x-sha256", Sha256Hex::of(b"").to_string());
    request.body(reqwest::Body::wrap_stream(bytes)).send().await.unwrap().status().as_u16()
}

/// Asks and asks, and never reads an answer, until the connection is cut.
async fn overfeed(mut deaf: Peer) {
    let running = (1..=256).map(|job| JobRef { job: (1_000_000 + job).into(), attempt: 1.into() }).collect();
    let heartbeat = ClientMessage::Heartbeat(Heartbeat { load: Load::default(), running });
    let frame = Message::binary(Encoding::MsgPack.encode(&heartbeat));
    let begun = Instant::now();
    while deaf.socket.send(frame.clone()).await.is_ok() {
        assert!(begun.elapsed() < Duration::from_mins(1), "somebody still listens");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_keep_nobody_out() {
    let (scene, mut good) = scene().await;
    let server = scene.cluster.lb_url();
    let silent: Vec<_> = stream::iter(0..1_000)
        .map(|_| open(&server, Some(Encoding::MsgPack.subprotocol())))
        .buffer_unordered(32)
        .collect()
        .await;
    let held = silent.iter().filter(|socket| socket.is_ok()).count();
    assert_eq!(held, 1_000, "nobody is refused a try");
    let begun = Instant::now();
    let (mut newcomer, key) = peer(&scene, "newcomer").await;
    assert!(begun.elapsed() < BESIDE, "{:?}", begun.elapsed());
    builds(&scene, &mut newcomer).await;
    builds(&scene, &mut good).await;
    drop(silent);

    // The same key again and again: the newest has the session, until it is too often.
    let mut reasons = Vec::new();
    for _ in 0..40 {
        let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key.clone()).await;
        let challenge = peer.challenge().await;
        let response = peer.response(&challenge);
        peer.send(&response).await;
        match peer.next().await {
            ServerMessage::Welcome(_) => {}
            ServerMessage::Close { reason, .. } => reasons.push(reason),
            other => panic!("{other:?}"),
        }
    }
    assert!(reasons.len() > 5 && reasons.iter().all(|reason| *reason == CloseReason::Flood), "{reasons:?}");
    builds(&scene, &mut good).await;
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_rejects_every_job_is_held_back() {
    // Several, as one that was rejected waits longer each time.
    const JOBS: [&str; 3] = ["default", "no-default", "no-default,x"];
    let (scene, mut good) = scene().await;
    let (mut picky, _) = peer(&scene, "picky").await;
    for features in JOBS {
        let job =
            json!({"crate": "hello-bin", "version": "latest", "kind": "metadata", "features": features});
        scene.client.post("/api/v1/jobs", &job).await.unwrap();
    }
    let mut rejected = 0;
    let held_back = until("the builder is held back", async || {
        picky.send(&ClientMessage::JobRequest { slots: 1 }).await;
        let answer = tokio::time::timeout(Duration::from_secs(1), picky.next()).await;
        if let Ok(ServerMessage::Jobs { jobs }) = answer {
            rejected += jobs.len();
            let JobRef { job, attempt } = of(&jobs[0]);
            picky.send(&ClientMessage::JobRejected { job, attempt, why: "not today".into() }).await;
        }
        let builders = scene.client.list("/api/v1/builders").await.unwrap();
        builders.into_iter().find(|builder| builder["name"] == "picky" && builder["paused_until"].is_string())
    })
    .await;
    // One that it had been given before another was counted is no incident of its own.
    assert!(held_back["enabled"] == true && rejected >= 3, "{rejected} rejected: {held_back}");
    // For as long as the test takes.
    let pool = PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    let longer = "UPDATE builder_faults SET paused_until = now() + interval '1 hour'";
    sqlx::query(longer).execute(&pool).await.unwrap();
    pool.close().await;

    // What it rejected is built by another, while it waits; and what comes then it does not delay.
    picky.send(&ClientMessage::JobRequest { slots: 1 }).await;
    for _ in 0..JOBS.len() {
        let job = good.take_job().await;
        good.event(&job, 1, Event::Log { offset: 0, text: "good\n".into() }).await;
        finish(&scene, &mut good, &job).await;
    }
    builds(&scene, &mut good).await;
    scene.cluster.stop().await.unwrap();
}
