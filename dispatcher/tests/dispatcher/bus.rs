//! A job's way over the bus, through all tasks of a dispatcher at once.

use crate::{
    peer::Peer,
    support::{ARM, Builder, LINUX, NODE, Store, new_job, version},
};
use cratemill_dispatcher::{
    assignment::{self, Assignment},
    logs::{self, Archive, sweep},
    outbox, outcomes,
    registry::answer::{self, Refreshes},
    requests,
    wakes::{self, Wakes},
};
use cratemill_protocol::{
    FailureClass, JobId, JobState, Kind, Limits, Outcome, Target,
    bus::{
        self, Assigned, BuildRequest, DomainEvent, EventMessage, LogBody, LogMessage, NodeMessage,
        OutcomeBatch, OutcomeMessage, RefreshReply, RefreshRequest, RequestBatch,
    },
    job::Timings,
    subjects,
};
use cratemill_scheduler::Scheduler;
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::nats::Nats;
use cratemill_store::{PgPool, attempts, attempts::ToArchive, jobs, queue};
use flate2::read::GzDecoder;
use futures_util::StreamExt;
use std::{collections::HashSet, io::Read, sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// All that runs; a task that fails fails the test.
struct Dispatcher {
    pool: PgPool,
    store: Store,
    nats: Nats,
    peer: Peer,
    archive: Archive,
    wakes: Arc<Wakes>,
    /// As an API node.
    api: Bus,
    /// As an operator.
    admin: Bus,
    shutdown: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Dispatcher {
    async fn start(pool: PgPool) -> Self {
        let (mut store, peer) = (Store::start().await, Peer::start().await);
        let nats = Nats::start(&store.data, &mut store.secrets).await.unwrap();
        let connect =
            async |user: &str| Bus::connect(&nats.url(user).unwrap().parse().unwrap(), user).await.unwrap();
        let (own, api, admin) = (connect("dispatcher").await, connect("api").await, connect("admin").await);
        let (shutdown, wakes, mut tasks) =
            (CancellationToken::new(), Arc::new(Wakes::default()), JoinSet::new());
        streams::ensure(&own, 1, &shutdown).await.unwrap();
        let registry = Arc::new(peer.registry(None));
        let archive = Archive {
            pool: pool.clone(),
            bus: own.clone(),
            objects: store.objects.clone(),
            // Shorter than what the test logs: a builder may add to its jobs' output.
            log_bytes: 8,
            empty: Arc::default(),
        };
        let assignment = Assignment {
            pool: pool.clone(),
            bus: own.clone(),
            registry: registry.clone(),
            wakes: wakes.clone(),
            limits: Limits::default(),
            lease_s: 60,
        };
        let refreshes = Refreshes::new(pool.clone(), registry);
        tasks.spawn(wakes::run(pool.clone(), own.clone(), wakes.clone(), shutdown.clone()));
        tasks.spawn(requests::run(pool.clone(), own.clone(), wakes.clone(), shutdown.clone()));
        tasks.spawn(assignment::run(assignment, shutdown.clone()));
        let scheduler =
            Scheduler { pool: pool.clone(), bus: own.clone(), jobs: Some(wakes.schedule.clone()) };
        tasks.spawn(cratemill_scheduler::run(scheduler, shutdown.clone()));
        let objects = store.objects.clone();
        tasks.spawn(outcomes::run(
            (pool.clone(), pool.clone()),
            objects,
            own.clone(),
            wakes.clone(),
            shutdown.clone(),
        ));
        tasks.spawn(outbox::run(pool.clone(), own.clone(), wakes.clone(), shutdown.clone()));
        tasks.spawn(logs::run(archive.clone(), wakes.clone(), shutdown.clone()));
        tasks.spawn(answer::run(own, refreshes, shutdown.clone()));
        Self { pool, store, nats, peer, archive, wakes, api, admin, shutdown, tasks }
    }

    /// Publishes as an API node does.
    async fn publish(&self, subject: &str, id: &str, message: Vec<u8>) {
        self.api.store(subject, id, message.into(), PATIENCE).await.unwrap();
    }

    /// As the builder's node, on its behalf: it waits for one job.
    async fn ask(&self, builder: &Builder, serial: u64) {
        let request = BuildRequest {
            builder: builder.id,
            connection: builder.connection.clone(),
            node: NODE.into(),
            targets: vec![Target::parse(LINUX).unwrap()],
            slots: 1,
            answered: Vec::new(),
            serial,
        };
        let (subject, id) = (subjects::build_request(NODE), format!("request-{serial}"));
        self.publish(&subject, &id, bus::encode(&RequestBatch { requests: vec![request] })).await;
    }

    /// Everything drains.
    async fn stop(mut self) {
        self.shutdown.cancel();
        let drained = async {
            while let Some(task) = self.tasks.join_next().await {
                task.unwrap().unwrap();
            }
        };
        timeout(PATIENCE, drained).await.expect("all tasks drain");
    }
}

fn log(job: JobId, seq: u64, body: LogBody) -> LogMessage {
    LogMessage { job, attempt: cratemill_protocol::Attempt(1), seq, at_ms: 0, body }
}

fn text(job: JobId, seq: u64, offset: u64, text: &str) -> LogMessage {
    log(job, seq, LogBody::Text { offset, text: text.into() })
}

#[sqlx::test(migrations = "../migrations")]
async fn a_job_goes_over_the_bus(pool: PgPool) {
    let dispatcher = Dispatcher::start(pool.clone()).await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let mut events = dispatcher.admin.client.subscribe("live.event.job.>").await.unwrap();
    let mut node = dispatcher.api.client.subscribe(subjects::node(NODE)).await.unwrap();
    dispatcher.admin.settle().await.unwrap();
    dispatcher.api.settle().await.unwrap();

    // What cannot be read is dropped, and holds nothing up.
    dispatcher.publish("build.request.1", "poison", b"x".to_vec()).await;
    dispatcher.publish("build.outcome.1", "poison-2", b"x".to_vec()).await;
    dispatcher.ask(&builder, 1).await;
    let mut tx = pool.begin().await.unwrap();
    let version = version(&mut tx).await;
    let id = queue::enqueue(&mut tx, &new_job(version, Kind::Tarball, LINUX)).await.unwrap().id();
    tx.commit().await.unwrap();

    let message = timeout(PATIENCE, node.next()).await.unwrap().unwrap();
    let NodeMessage::Assign { mut jobs } = bus::decode(&message.payload).unwrap() else {
        panic!("an assignment")
    };
    let Assigned { connection, job, .. } = jobs.remove(0);
    assert_eq!((connection, job.id, job.attempt.0), (builder.connection.clone(), id, 1));
    assert_eq!((job.source.as_str(), job.private), ("http://files.example/demo/1.0.0", false));
    assert!(job.index.unwrap().starts_with("sparse+http://127.0.0.1"));
    assert!(queue::accept(&mut conn, id, job.attempt, builder.id, 60).await.unwrap());

    // A builder that reconnects sends parts again.
    let subject = subjects::log(id, job.attempt);
    for (n, part) in
        [text(id, 1, 0, "one\n"), text(id, 2, 4, "two\n"), text(id, 2, 4, "two\n"), text(id, 3, 8, "three\n")]
            .iter()
            .enumerate()
    {
        dispatcher.publish(&subject, &format!("log-{n}"), bus::encode(part)).await;
    }
    let outcome = OutcomeMessage {
        job: id,
        attempt: job.attempt,
        builder: builder.id,
        outcome: Outcome::Failed {
            class: FailureClass::Build,
            message: "it does not compile".into(),
            stage: None,
            timings: Timings::default(),
        },
        last_seq: 3,
        manifest: None,
        signature: None,
        at_ms: 0,
    };
    let outcomes = OutcomeBatch { outcomes: vec![outcome.clone(), outcome] };
    dispatcher.publish(&subjects::build_outcome("api-1"), "outcome", bus::encode(&outcomes)).await;

    let mut states = Vec::new();
    while states.last() != Some(&JobState::Failed) {
        let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        let event: EventMessage = bus::decode(&event.payload).unwrap();
        if let DomainEvent::Job(changed) = event.event {
            states.push(changed.state);
        }
    }
    assert_eq!(states, [JobState::Queued, JobState::Assigned, JobState::Running, JobState::Failed]);
    archived(&dispatcher, id).await;
    assert_eq!(jobs::find(&mut conn, id).await.unwrap().unwrap().state, JobState::Failed);
    dispatcher.stop().await;
}

/// The log is stored, its end is announced after all of it, and a sweep takes it off the bus.
async fn archived(dispatcher: &Dispatcher, id: JobId) {
    let stream = dispatcher.admin.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    let object = async {
        loop {
            let mut conn = dispatcher.pool.acquire().await.unwrap();
            let log = attempts::log(&mut conn, id, None).await.unwrap().unwrap();
            if let Some(object) = log.log_object {
                return (object, log.log_bytes);
            }
            tokio::task::yield_now().await;
        }
    };
    let (object, bytes) = timeout(PATIENCE, object).await.unwrap();
    let packed = dispatcher.store.objects.get_bytes(&object, 1 << 20).await.unwrap();
    let mut unpacked = String::new();
    GzDecoder::new(packed.as_ref()).read_to_string(&mut unpacked).unwrap();
    assert_eq!((unpacked.as_str(), bytes), ("one\ntwo\nthree\n", Some(14)));

    let attempt = cratemill_protocol::Attempt(1);
    let last = stream.direct_get_last_for_subject(subjects::log(id, attempt)).await.unwrap();
    let last: LogMessage = bus::decode(&last.payload).unwrap();
    assert_eq!(last.body, LogBody::End { state: JobState::Failed });
    assert_eq!(last.seq, 4);

    let seen = sweep::round(&dispatcher.pool, &stream, &HashSet::new()).await.unwrap();
    assert_eq!(seen, HashSet::from([(id, attempt)]), "readers have until the next sweep");
    assert!(sweep::round(&dispatcher.pool, &stream, &seen).await.unwrap().is_empty());
    assert!(stream.direct_get_last_for_subject(subjects::log(id, attempt)).await.is_err());

    // A dispatcher that listed the log before, and was slow, finds nothing on the bus: the good log stays.
    let (job, state) = (id, JobState::Failed);
    let late = ToArchive { job, attempt, last_seq: Some(3), state, ended_ago_s: 60.0 };
    dispatcher.archive.archive(&stream, &late).await.unwrap();
    assert!(stream.direct_get_last_for_subject(subjects::log(id, attempt)).await.is_err(), "no second end");
    let mut conn = dispatcher.pool.acquire().await.unwrap();
    let log = attempts::log(&mut conn, id, None).await.unwrap().unwrap();
    assert_eq!((log.log_object, log.log_bytes), (Some(object), Some(14)));
}

/// Jobs that nobody can take are known as such once a round has met them, and another's job is handed out beside them.
#[sqlx::test(migrations = "../migrations")]
async fn a_target_without_builders_is_found(pool: PgPool) {
    let dispatcher = Dispatcher::start(pool.clone()).await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let mut node = dispatcher.api.client.subscribe(subjects::node(NODE)).await.unwrap();
    dispatcher.api.settle().await.unwrap();
    let version = version(&mut conn).await;
    queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, ARM)).await.unwrap();
    let id = queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, LINUX)).await.unwrap().id();
    dispatcher.ask(&builder, 1).await;
    let message = timeout(PATIENCE, node.next()).await.unwrap().unwrap();
    let assigned: NodeMessage = bus::decode(&message.payload).unwrap();
    assert!(matches!(assigned, NodeMessage::Assign { jobs } if jobs[0].job.id == id));
    let found = async {
        while dispatcher.wakes.unserved.known(Instant::now()) != [ARM] {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, found).await.expect("it is found");
    dispatcher.stop().await;
}

/// What was known of its target does not outlive a builder's request.
#[sqlx::test(migrations = "../migrations")]
async fn a_builder_that_asks_is_served_whatever_was_known(pool: PgPool) {
    let dispatcher = Dispatcher::start(pool.clone()).await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let mut node = dispatcher.api.client.subscribe(subjects::node(NODE)).await.unwrap();
    dispatcher.api.settle().await.unwrap();
    // For longer than this test waits.
    let unserved = &dispatcher.wakes.unserved;
    unserved.found(unserved.begin(), vec![LINUX.into()], Instant::now() + 10 * PATIENCE);
    let version = version(&mut conn).await;
    let id = queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, LINUX)).await.unwrap().id();
    dispatcher.ask(&builder, 1).await;
    let message = timeout(PATIENCE, node.next()).await.unwrap().unwrap();
    let assigned: NodeMessage = bus::decode(&message.payload).unwrap();
    assert!(matches!(assigned, NodeMessage::Assign { jobs } if jobs[0].job.id == id));
    dispatcher.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_crate_is_looked_at_on_request(pool: PgPool) {
    let dispatcher = Dispatcher::start(pool.clone()).await;
    dispatcher.peer.body("de/mo/demo", crate::peer::line("demo", "1.0.0", false, ""));
    let ask = async |name: &str| {
        let request = bus::encode(&RefreshRequest { krate: name.parse().unwrap() });
        loop {
            // Until the dispatcher has subscribed, nobody answers.
            let asked = dispatcher.api.client.request(subjects::REGISTRY_REFRESH, request.clone().into());
            if let Ok(answer) = asked.await {
                return bus::decode::<RefreshReply>(&answer.payload).unwrap();
            }
        }
    };
    assert_eq!(timeout(PATIENCE, ask("demo")).await.unwrap(), RefreshReply::Fresh);
    assert_eq!(timeout(PATIENCE, ask("other")).await.unwrap(), RefreshReply::NotFound);
    dispatcher.peer.status("br/ok/broken", 500);
    let answer = timeout(PATIENCE, ask("broken")).await.unwrap();
    assert!(matches!(answer, RefreshReply::Unavailable { .. }), "{answer:?}");
    dispatcher.stop().await;
}

/// The bus is killed and comes back: nothing of this process has to be started again.
#[sqlx::test(migrations = "../migrations")]
async fn a_dispatcher_outlives_its_bus(pool: PgPool) {
    let mut dispatcher = Dispatcher::start(pool.clone()).await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let mut node = dispatcher.api.client.subscribe(subjects::node(NODE)).await.unwrap();
    dispatcher.api.settle().await.unwrap();
    dispatcher.nats.kill9().await.unwrap();
    // Queued while the bus is away: assigned when it is back.
    let version = version(&mut conn).await;
    let id = queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, LINUX)).await.unwrap().id();
    dispatcher.nats.restart().await.unwrap();
    dispatcher.ask(&builder, 1).await;
    let message = timeout(PATIENCE, node.next()).await.unwrap().unwrap();
    let assigned: NodeMessage = bus::decode(&message.payload).unwrap();
    assert!(matches!(assigned, NodeMessage::Assign { jobs } if jobs[0].job.id == id));
    dispatcher.stop().await;
}
