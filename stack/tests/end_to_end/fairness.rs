//! One crate's long queue and another's single job: it is served in its turn, whatever waits before it.

use super::{
    peer::{Peer, new_key, of, register},
    scene::Scene,
};
use cratemill_protocol::{
    CrateName, FailureClass, Features, Kind, Outcome, Priority, Sha256Hex, Target,
    builder::{ClientMessage, Job, JobResponse, ServerMessage},
    codec::Encoding,
    job::Timings,
};
use cratemill_stack::{cluster::Options, fixtures::crates};
use cratemill_store::{
    crates as known_crates,
    queue::{self, NewJob},
    versions::{self, Change, Published},
};
use sqlx::PgPool;
use std::collections::VecDeque;

const GREEDY: &str = "greedy";
const GREEDY_JOBS: usize = 5_000;
const BUILDERS: usize = 2;
const SLOTS: usize = 2;
/// Each line deals crates their turns, and a crate that comes new stands beside who is next.
const AHEAD: i64 = 1;

/// A builder whose jobs end when the test wants it.
struct Hands {
    peer: Peer,
    held: VecDeque<Job>,
}

impl Hands {
    async fn take(&mut self) {
        let job = self.peer.take_job().await;
        self.held.push_back(job);
    }

    /// Ends the oldest of its jobs, as crates' own failures do, and takes the one that comes for it.
    async fn next(&mut self) -> &Job {
        let ended = of(&self.held.pop_front().expect("all slots are taken"));
        let (class, message) = (FailureClass::Build, "it does not compile".to_owned());
        let outcome = Outcome::Failed { class, message, stage: None, timings: Timings::default() };
        let response = JobResponse {
            job: ended.job,
            attempt: ended.attempt,
            outcome,
            last_seq: 0,
            manifest: None,
            signature: None,
        };
        self.peer.send(&ClientMessage::JobResponse(response)).await;
        let done = ServerMessage::JobDone(ended);
        self.peer.wait_for(|message| (*message == done).then_some(())).await;
        self.take().await;
        self.held.back().expect("it has just taken one")
    }
}

/// Of the same priority and for the same builders, so that nothing but its turn can bring the single job forward.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_of_one_crate_does_not_delay_anothers_only_job() {
    let options = Options { api: 2, dispatcher: 2, builder: 0, ..Options::default() };
    let scene = Scene::start(&[crates::hello_bin("1.0.0").unwrap()], options).await;
    let pool = PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    enqueue_greedy(&pool).await;
    let mut builders = Vec::new();
    for number in 0..BUILDERS {
        let key = new_key();
        register(&scene.client, &format!("builder-{number}"), &key, scene.cluster.targets()).await;
        let mut peer = Peer::connect(&scene.cluster, Encoding::MsgPack, key).await;
        peer.login().await;
        let mut hands = Hands { peer, held: VecDeque::new() };
        for _ in 0..SLOTS {
            hands.take().await;
        }
        builders.push(hands);
    }

    let single = scene.enqueue("hello-bin", "metadata").await;
    assert_eq!(single["state"], "queued", "every slot is taken: {single:#}");
    let single = single["id"].as_i64().unwrap();
    // Once each running job has ended, it is with a builder.
    let mut taken = Vec::new();
    for turn in 0..BUILDERS * SLOTS {
        taken.push(builders[turn % BUILDERS].next().await.id.0);
    }
    assert!(taken.contains(&single), "{single} is not among {taken:?}");

    let ahead: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM jobs j JOIN all_attempts own ON own.job_id = j.id
         JOIN all_attempts a ON a.job_id <> j.id AND a.assigned_at BETWEEN j.created_at AND own.assigned_at
         WHERE j.id = $1",
    )
    .bind(single)
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(ahead <= AHEAD, "{ahead} jobs were assigned before it, and after it was asked for");
    pool.close().await;
    scene.cluster.stop().await.unwrap();
}

/// As if thousands of its versions had been asked for.
async fn enqueue_greedy(pool: &PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let krate = known_crates::upsert(&mut tx, &CrateName::parse(GREEDY).unwrap()).await.unwrap();
    let published: Vec<_> = (0..GREEDY_JOBS)
        .map(|number| {
            let version = format!("0.{number}.0");
            Published { sha256: Sha256Hex::of(version.as_bytes()), version, yanked: false }
        })
        .collect();
    let changes = versions::merge(&mut tx, krate.id, &published).await.unwrap();
    let jobs: Vec<_> = changes
        .into_iter()
        .filter_map(|(change, _)| match change {
            Change::Added(version) => Some(NewJob {
                version,
                kind: Kind::Metadata,
                target: Target::any(),
                features: Features::default(),
                priority: Priority::OnDemand,
                run_at: None,
                parent: None,
            }),
            Change::Yanked(_) | Change::Unyanked(_) => None,
        })
        .collect();
    assert_eq!(queue::enqueue_all(&mut tx, &jobs).await.unwrap().len(), GREEDY_JOBS);
    tx.commit().await.unwrap();
}
