//! The bus loses a leader while builders build: it costs seconds, and nothing else.

use super::{
    peer::{METADATA, Peer, new_key, put, register},
    scene::{Scene, until},
    work::{self, Work},
};
use cratemill_protocol::{
    Sha256Hex,
    builder::{Event, Job},
    codec::Encoding,
    subjects,
};
use cratemill_stack::{cluster::Options, fixtures::crates, nats::Nats};
use std::time::Duration;

/// For servers that were killed to have everything again.
const CATCH_UP: Duration = Duration::from_mins(2);
const JOBS: usize = 6;
/// More often than a builder has to.
const BEAT: Duration = Duration::from_secs(5);
/// Lines that a builder writes from a leader's death on, each after the one before was acknowledged.
const LINES: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_outlive_the_leaders_of_their_messages() {
    let options =
        Options { api: 3, dispatcher: 2, live: 2, counter: 2, nats: 3, builder: 0, ..Options::default() };
    let mut packages = work::packages(JOBS);
    packages.push(crates::hello_bin("1.0.0").unwrap());
    let mut scene = Scene::start(&packages, options).await;
    let key = new_key();
    register(&scene.client, "peer", &key, scene.cluster.targets()).await;
    // Past the load balancer, which takes a node that looks for another server as being down for a moment.
    let node = scene.cluster.api[0].url().unwrap();
    let mut peer = Peer::connect_at(&node, &scene.cluster, Encoding::MsgPack, key).await;
    peer.login().await;
    scene.enqueue("hello-bin", "metadata").await;
    let job = peer.take_job().await;
    for _ in 0..2 {
        scene.cluster.add_builder(None).await.unwrap();
    }
    let mut work = Work::default();
    for _ in 0..JOBS {
        work.enqueue(&scene).await;
    }

    let mut seq = 0;
    for stream in [subjects::BUILD_STREAM, subjects::LOGS_STREAM] {
        work.one_runs(&scene).await;
        let nats = &mut scene.cluster.nats;
        let leader = nats.leader(stream).await.unwrap();
        nats.servers[leader].kill9().await.unwrap();
        seq = write(&mut peer, &job, seq).await;
        let nats = &mut scene.cluster.nats;
        let recovers = async {
            another_leads(nats, stream, leader).await;
            nats.servers[leader].restart().await.unwrap();
            nats.wait_for_replicas(CATCH_UP).await.unwrap();
        };
        // A builder that says nothing for so long is given up.
        let beats = async {
            loop {
                peer.beat(&[&job]).await;
                tokio::time::sleep(BEAT).await;
            }
        };
        tokio::select! {
            () = recovers => {}
            () = beats => {}
        }
    }

    let sha256 = Sha256Hex::of(METADATA).to_string();
    assert_eq!(put(&scene.client, &job, "m.json", job.token.secret(), METADATA, &sha256).await, 201);
    peer.succeed(&job, "m.json", METADATA, seq, |_| {}).await;
    let end = scene.viewer(&[&format!("job.{}", job.id)]).await.job_end("hello-bin", "metadata").await;
    assert_eq!(end["state"], "succeeded", "{end}");
    let written: String = (1..=seq).map(line).collect();
    assert_eq!(scene.log(&end["job"]).await, written);
    work.check(&scene).await;
    scene.cluster.stop().await.unwrap();
}

async fn another_leads(nats: &Nats, stream: &str, dead: usize) {
    until("another server leads", async || {
        nats.leader(stream).await.ok().filter(|leader| *leader != dead).map(drop)
    })
    .await;
}

fn line(seq: u64) -> String {
    format!("line {seq:4}\n")
}

/// Goes on after `seq`; tells the last line's number.
async fn write(peer: &mut Peer, job: &Job, seq: u64) -> u64 {
    for seq in seq + 1..=seq + LINES {
        let offset = (seq - 1) * line(1).len() as u64;
        peer.event(job, seq, Event::Log { offset, text: line(seq) }).await;
    }
    seq + LINES
}
