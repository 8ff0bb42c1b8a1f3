//! The counter against a real Postgres (`DATABASE_URL`) and a real NATS with the shipped configuration.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use cratemill_counter::app;
use cratemill_protocol::{
    ArtifactId, CrateName,
    bus::{self, ClientClass, DownloadBatch, DownloadCount},
    subjects,
};
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use cratemill_store::{PgPool, downloads};
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

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
        let (pool, bus, shutdown) =
            (pool.clone(), connect(&self.nats, "counter").await, CancellationToken::new());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { app::count(&pool, &bus, &token).await });
        Counter { shutdown, task }
    }

    /// As an API node does; the id is another one each time, so that repeats reach the counter.
    async fn publish(&self, id: &str, payload: Vec<u8>) {
        self.api.store(&subjects::download("n"), id, payload.into(), PATIENCE).await.unwrap();
    }

    /// Waits until everything is acknowledged.
    async fn drained(&self) {
        let mut stream = self.admin.jetstream.get_stream(subjects::DOWNLOADS_STREAM).await.unwrap();
        let empty = async {
            while stream.info().await.unwrap().state.messages > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, empty).await.expect("everything is counted and acknowledged");
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

fn batch(artifact: i64, number: u64, count: u64) -> Vec<u8> {
    let count =
        DownloadCount { artifact: ArtifactId(artifact), day: 20_777, client: ClientClass::Curl, count };
    bus::encode(&DownloadBatch { node: "n".into(), epoch: 1, batch: number, counts: vec![count] })
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
    let demo = CrateName::parse("demo").unwrap();
    downloads::total(&mut pool.acquire().await.unwrap(), &demo).await.unwrap()
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
    let mut consumer = None;
    let refused = async {
        // Until the message was handed out and given back.
        loop {
            if consumer.is_none() {
                let stream = stack.admin.jetstream.get_stream(subjects::DOWNLOADS_STREAM).await.unwrap();
                consumer = stream
                    .get_consumer::<async_nats::jetstream::consumer::pull::Config>(
                        subjects::DOWNLOADS_CONSUMER,
                    )
                    .await
                    .ok();
            }
            let Some(consumer) = &mut consumer else { continue };
            if consumer.info().await.unwrap().num_redelivered > 0 {
                return;
            }
        }
    };
    timeout(PATIENCE, refused).await.expect("it is tried");
    assert_eq!(total(&pool).await, 0);
    sqlx::query("ALTER TABLE away RENAME TO download_batches").execute(&pool).await.unwrap();
    stack.drained().await;
    assert_eq!(total(&pool).await, 2);
    counter.stop().await;
}
