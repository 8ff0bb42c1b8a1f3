//! The counter against a real Postgres (`DATABASE_URL`) and a real NATS with the shipped configuration.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use async_nats::jetstream::consumer::Info;
use cratemill_counter::app;
use cratemill_protocol::{
    ArtifactId, CrateName,
    bus::{self, ClientClass, DownloadBatch, DownloadCount},
    subjects,
};
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use cratemill_store::{PgPool, bulk, crates, downloads};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// A message comes again after a quarter of a minute, and what a dead server kept is looked for six times a minute.
const PATIENCE: Duration = Duration::from_mins(2);

/// Messages between two deaths of the bus: some groups.
const MANY: u64 = 200;

struct Stack {
    nats: Nats,
    api: Bus,
    admin: Bus,
    _data: DataDir,
}

impl Stack {
    async fn start() -> Self {
        let data = DataDir::temporary().unwrap();
        let mut secrets = Secrets::open(data.path()).unwrap();
        let nats = Nats::start(&data, &mut secrets).await.unwrap();
        let (api, admin) = (connect(&nats, "api").await, connect(&nats, "admin").await);
        let dispatcher = connect(&nats, "dispatcher").await;
        streams::ensure(&dispatcher, 1, &CancellationToken::new()).await.unwrap();
        Self { nats, api, admin, _data: data }
    }

    async fn count(&self, pool: &PgPool) -> Counter {
        Self::count_from(connect(&self.nats, "counter").await, pool)
    }

    fn count_from(bus: Bus, pool: &PgPool) -> Counter {
        let pool = bulk::beside(pool).unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = tokio::spawn(async move { app::count(pool, &bus, &token).await });
        Counter { shutdown, task }
    }

    /// As an API node does; the id is another one each time, so that repeats reach the counter.
    async fn publish(&self, id: &str, payload: Vec<u8>) {
        self.api.store(&subjects::download("n"), id, payload.into(), PATIENCE).await.unwrap();
    }

    /// Waits until everything is acknowledged.
    async fn drained(&self) {
        self.drained_to(0).await;
    }

    /// A bus that was just killed may have no answer yet.
    async fn drained_to(&self, left: u64) {
        let drained = async {
            loop {
                let stream = self.admin.jetstream.get_stream(subjects::DOWNLOADS_STREAM).await;
                if stream.is_ok_and(|stream| stream.cached_info().state.messages <= left) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, drained).await.expect("everything is counted and acknowledged");
    }

    /// None before a counter has made it, or while the bus does not answer.
    async fn consumer(&self) -> Option<Info> {
        let stream = self.admin.jetstream.get_stream(subjects::DOWNLOADS_STREAM).await.ok()?;
        stream.consumer_info(subjects::DOWNLOADS_CONSUMER).await.ok()
    }
}

struct Counter {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Counter {
    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.expect("it drains").unwrap();
    }
}

async fn connect(nats: &Nats, user: &str) -> Bus {
    Bus::connect(&nats.url(user).unwrap().parse().unwrap(), user).await.unwrap()
}

fn today() -> i32 {
    i32::try_from(cratemill_service::clock::now_s() / 86_400).unwrap()
}

fn batch(artifact: i64, number: u64, count: u64) -> Vec<u8> {
    let count =
        DownloadCount { artifact: ArtifactId(artifact), day: today(), client: ClientClass::Curl, count };
    let batch =
        DownloadBatch { node: "n".into(), epoch: 1, batch: number, counts: vec![count], installs: vec![] };
    batch.encode()
}

/// An artifact of the crate `demo`. What leads to one is tested with the store; here only the row matters.
async fn artifact(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "WITH c AS (INSERT INTO crates (name, canonical) VALUES ('demo', 'demo') RETURNING id),
              v AS (INSERT INTO versions (crate_id, version, sha256) SELECT id, '1.0.0', repeat('0', 64) FROM c RETURNING id),
              b AS (INSERT INTO builders (name) VALUES ('b') RETURNING id),
              k AS (INSERT INTO builder_keys (builder_id, fingerprint, public_key) SELECT id, 'f', 'k' FROM b RETURNING id),
              j AS (INSERT INTO jobs (version_id, kind, target) SELECT id, 'tarball', 't' FROM v RETURNING id)
         INSERT INTO artifacts (version_id, kind, target, features, job_id, attempt, position, name, size, sha256,
                                object, manifest, signature, builder_key_id)
         SELECT v.id, 'tarball', 't', 'default', j.id, 1, 0, 'n', 1, repeat('0', 64), 'o', '', '', k.id
         FROM v, j, k RETURNING id",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

async fn total(pool: &PgPool) -> i64 {
    let mut conn = pool.acquire().await.unwrap();
    let demo = crates::find(&mut conn, &CrateName::parse("demo").unwrap()).await.unwrap().unwrap();
    downloads::total(&mut conn, demo.id).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn each_download_counts_once(pool: PgPool) {
    let (stack, id) = (Stack::start().await, artifact(&pool).await);
    // Some wait already, in one group; one that cannot be read holds nothing up.
    for number in 1..=300 {
        stack.publish(&format!("a{number}"), batch(id, number, 1)).await;
    }
    stack.publish("poison", b"x".to_vec()).await;
    let (one, two) = (stack.count(&pool).await, stack.count(&pool).await);
    stack.drained().await;
    // Two counters take parts of one publisher in another order than they were sent.
    assert_eq!(total(&pool).await, 300);
    two.stop().await;

    stack.publish("again", batch(id, 300, 1)).await;
    stack.publish("next", batch(id, 301, 5)).await;
    stack.drained().await;
    assert_eq!(total(&pool).await, 305);
    one.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn downloads_wait_while_the_database_is_away(pool: PgPool) {
    let (stack, id) = (Stack::start().await, artifact(&pool).await);
    // The table is gone as the database would be: every statement fails.
    sqlx::query("ALTER TABLE download_batches RENAME TO away").execute(&pool).await.unwrap();
    let counter = stack.count(&pool).await;
    stack.publish("first", batch(id, 1, 2)).await;
    // Until the message was handed out and given back.
    let refused =
        async { while stack.consumer().await.is_none_or(|consumer| consumer.num_redelivered == 0) {} };
    timeout(PATIENCE, refused).await.expect("it is tried");
    assert_eq!(total(&pool).await, 0);
    sqlx::query("ALTER TABLE away RENAME TO download_batches").execute(&pool).await.unwrap();
    stack.drained().await;
    assert_eq!(total(&pool).await, 2);
    counter.stop().await;
}

/// What a counter of a later version is to count is not lost on one of this version; a node whose clock is wrong, or that
/// counts what does not exist, costs nobody else anything.
#[sqlx::test(migrations = "../migrations")]
async fn strange_batches_cost_nobody_else_anything(pool: PgPool) {
    let (stack, id) = (Stack::start().await, artifact(&pool).await);
    let mut newer = batch(id, 1, 7);
    let position = newer.iter().position(|byte| *byte == bus::VERSION).unwrap();
    newer[position] = bus::VERSION + 1;
    stack.publish("newer", newer).await;
    let count = |artifact, day| DownloadCount { artifact, day, client: ClientClass::Apt, count: 1 };
    let of_today = ArtifactId(id);
    let counts = vec![
        count(of_today, 0),
        count(of_today, i32::MAX),
        count(of_today, today() - 3),
        count(ArtifactId(-1), today()),
        count(ArtifactId(i64::MAX), today()),
    ];
    let strange = DownloadBatch { node: "strange".into(), epoch: 1, batch: 1, counts, installs: vec![] };
    stack.publish("strange", strange.encode()).await;
    stack.publish("good", batch(id, 2, 1)).await;
    let counter = stack.count(&pool).await;
    // All but the newer one.
    stack.drained_to(1).await;
    counter.stop().await;
    assert_eq!(total(&pool).await, 4);
    let days: Vec<(i64,)> =
        sqlx::query_as("SELECT count FROM download_days ORDER BY day").fetch_all(&pool).await.unwrap();
    // Three days ago one, and the rest today or, where midnight has just passed, on two days.
    assert_eq!(days[0], (1,));
    assert_eq!(days.iter().map(|day| day.0).sum::<i64>(), 4);
    let months: i64 =
        sqlx::query_scalar("SELECT count(*) FROM download_months").fetch_one(&pool).await.unwrap();
    assert!(months <= 2, "no partition of a year that will never be");
}

/// Before a bus: breaks the first connection on which messages are asked for that are there now, before the bus hears of it.
/// All others pass.
async fn breaking_proxy(bus: String) -> (String, oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (breaks, broken) = oneshot::channel();
    tokio::spawn(async move {
        let mut breaks = Some(breaks);
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&bus).await.unwrap();
            if breaks.is_none() {
                tokio::spawn(async move {
                    let (mut client, mut server) = (client, server);
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                });
                continue;
            }
            until_asked(client, server).await;
            breaks.take().unwrap().send(()).ok();
        }
    });
    (address, broken)
}

async fn until_asked(client: TcpStream, server: TcpStream) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let answers = tokio::io::copy(&mut from_server, &mut to_client);
    let questions = async {
        let (mut said, mut buffer) = (Vec::new(), [0; 4_096]);
        loop {
            let read = from_client.read(&mut buffer).await.unwrap();
            said.extend_from_slice(&buffer[..read]);
            if read == 0 || String::from_utf8_lossy(&said).contains("\"no_wait\":true") {
                return;
            }
            to_server.write_all(&buffer[..read]).await.unwrap();
        }
    };
    tokio::select! {
        _ = answers => {}
        () = questions => {}
    }
}

/// The server dies when it has been asked for more, and has not answered: what was taken before is counted, and so is what
/// comes later.
#[sqlx::test(migrations = "../migrations")]
async fn a_server_that_dies_before_it_answers_is_asked_again(pool: PgPool) {
    let (stack, id) = (Stack::start().await, artifact(&pool).await);
    let url = stack.nats.url("counter").unwrap();
    let (user, server) = url.rsplit_once('@').unwrap();
    let (proxy, broken) = breaking_proxy(server.to_owned()).await;
    let bus = Bus::connect(&format!("{user}@{proxy}").parse().unwrap(), "counter").await.unwrap();
    for number in 1..=3 {
        stack.publish(&format!("a{number}"), batch(id, number, 1)).await;
    }
    let counter = Stack::count_from(bus, &pool);
    timeout(PATIENCE, broken).await.expect("it asks for more").unwrap();
    stack.drained().await;
    assert_eq!(total(&pool).await, 3);
    counter.stop().await;
}

/// As that, with a real death, while many are on their way.
#[sqlx::test(migrations = "../migrations")]
async fn counting_goes_on_after_the_bus_was_killed(pool: PgPool) {
    let (mut stack, id) = (Stack::start().await, artifact(&pool).await);
    let counter = stack.count(&pool).await;
    let mut number = 0;
    for round in 1..=3 {
        for _ in 0..MANY {
            number += 1;
            stack.publish(&format!("{number}"), batch(id, number, 1)).await;
        }
        stack.nats.kill9().await.unwrap();
        stack.nats.restart().await.unwrap();
        // What was handed out and not acknowledged comes again much later: it is enough that others are counted.
        let before = total(&pool).await;
        number += 1;
        stack.publish(&format!("{number}"), batch(id, number, 100_000)).await;
        let counted = async { while total(&pool).await < before + 100_000 {} };
        timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("it goes on after death {round}"));
    }
    let each = i64::try_from(number).unwrap() + 3 * 99_999;
    let all = async { while total(&pool).await < each {} };
    timeout(PATIENCE, all).await.expect("nothing is lost");
    // A server that was killed may keep what was acknowledged, and hand it out to nobody: it goes too, and counts no more.
    stack.drained().await;
    assert_eq!(total(&pool).await, each);
    counter.stop().await;
}

/// One batch is more than the database can hold: those behind it, of the same group, do not wait for it.
#[sqlx::test(migrations = "../migrations")]
async fn what_is_refused_keeps_nothing_from_being_counted(pool: PgPool) {
    let (stack, id) = (Stack::start().await, artifact(&pool).await);
    sqlx::query("SELECT make_download_month(current_date + n) FROM generate_series(-1, 1) n")
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO download_counts SELECT $1, current_date + n, 'curl', 9223372036854775807 FROM generate_series(-1, 1) n")
        .bind(id)
        .execute(&pool)
        .await
        .unwrap();
    let apt = |number| {
        let mut batch = DownloadBatch::decode(&batch(id, number, 1)).unwrap();
        batch.counts[0].client = ClientClass::Apt;
        batch.encode()
    };
    stack.publish("1", batch(id, 1, 1)).await;
    for number in 2..=9 {
        stack.publish(&number.to_string(), apt(number)).await;
    }
    let nobody = DownloadBatch { node: "\0".into(), ..DownloadBatch::decode(&apt(1)).unwrap() };
    stack.publish("nobody", nobody.encode()).await;
    let counter = stack.count(&pool).await;
    let others = async { while total(&pool).await < 8 {} };
    timeout(PATIENCE, others).await.expect("the others are counted");
    stack.drained().await;
    assert_eq!(total(&pool).await, 8);
    let delivered = stack.consumer().await.unwrap().delivered;
    // That one five times, the others once each.
    assert!(delivered.consumer_sequence < 14 + 8, "they did not have to come again: {delivered:?}");
    counter.stop().await;
}
