//! A world in which all is well: two jobs that ended, one that runs and one that waits.

use crate::support::{Builder, LINUX, Store, Work, apply, lease_now, new_job};
use cratemill_dispatcher::{
    audit::{Auditor, config::Demands, report::Report},
    logs::Archive,
    outbox,
    outcomes::Applied,
    wakes::Wakes,
};
use cratemill_protocol::{
    Attempt, FailureClass, JobId, Kind, Outcome,
    bus::{self, BuildRequest, ClientClass, DownloadBatch, DownloadCount, LogBody, LogMessage},
    job::Timings,
    subjects,
};
use cratemill_service::{bus::Bus, clock, streams};
use cratemill_stack::nats::Nats;
use cratemill_store::{
    PgPool, attempts, bulk,
    downloads::{Group, Writer},
    queue, sessions,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
/// In the order in which rows can be put back.
const TABLES: [&str; 14] = [
    "jobs",
    "queue",
    "leases",
    "finished_jobs",
    "attempts",
    "uploads",
    "artifacts",
    "download_counts",
    "download_sums",
    "download_days",
    "download_batches",
    "outbox",
    // Before the sessions that refer to them.
    "nodes",
    "builder_sessions",
];

pub(super) struct World {
    pub(super) pool: PgPool,
    pub(super) store: Store,
    /// As a dispatcher.
    own: Bus,
    pub(super) api: Bus,
    /// As an operator.
    pub(super) admin: Bus,
    /// Ended well, with two files.
    pub(super) good: JobId,
    /// Failed at its second attempt.
    pub(super) failed: JobId,
    /// With its builder; none in a world at rest.
    pub(super) running: Option<JobId>,
    _nats: Nats,
}

impl World {
    /// Nothing is under way.
    pub(super) async fn at_rest(pool: PgPool) -> Self {
        let mut store = Store::start().await;
        let nats = Nats::start(&store.data, &mut store.secrets).await.unwrap();
        let connect =
            async |user: &str| Bus::connect(&nats.url(user).unwrap().parse().unwrap(), user).await.unwrap();
        let (own, api, admin) = (connect("dispatcher").await, connect("api").await, connect("admin").await);
        streams::ensure(&own, 1, &CancellationToken::new()).await.unwrap();
        let nobody = JobId(0);
        let mut world =
            Self { pool, store, own, api, admin, good: nobody, failed: nobody, running: None, _nats: nats };
        let builder = Builder::connect(&mut world.pool.acquire().await.unwrap(), 1).await;
        let work = Work::start(&world.pool, &builder, Kind::Tarball, LINUX).await;
        world.good = world.succeed(&builder, work).await;
        world.failed = world.fail(&builder).await;
        world.download().await;
        world.archive().await;
        world.relay().await;
        world.ask(&builder, 1).await;
        world.save().await;
        world
    }

    /// Another job runs, and one more waits.
    pub(super) async fn live(pool: PgPool) -> Self {
        let mut world = Box::pin(Self::at_rest(pool)).await;
        let mut conn = world.pool.acquire().await.unwrap();
        let builder = Builder::connect(&mut conn, 2).await;
        let version = version_id(&world.pool).await;
        queue::enqueue(&mut conn, &new_job(version, Kind::Rustdoc, LINUX)).await.unwrap();
        let running = Work::take(&mut conn, &builder).await;
        queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, LINUX)).await.unwrap();
        drop(conn);
        world.write(running.job, running.attempt, &["still", " at it\n"]).await;
        world.running = Some(running.job);
        world.ask(&builder, 0).await;
        world.relay().await;
        world.save().await;
        world
    }

    pub(super) async fn audit(&self, arguments: &[&str]) -> Report {
        let (mut at_rest, mut job) = (false, None);
        for argument in arguments {
            match argument.strip_prefix("--job=") {
                Some(id) => job = Some(id.parse().unwrap()),
                None => at_rest |= *argument == "--at-rest",
            }
        }
        let demands = Demands { at_rest, settle_s: 0, job, since: None };
        let (pool, bus, objects) = (self.pool.clone(), self.own.clone(), self.store.objects.clone());
        Auditor::new(pool, bus, objects, &demands).audit().await.unwrap()
    }

    /// The names of the checks that find something.
    pub(super) async fn found(&self, arguments: &[&str]) -> Vec<&'static str> {
        self.audit(arguments).await.findings().map(|check| check.name).collect()
    }

    /// Does the damage, and asserts that exactly `check` finds it; then all is well again.
    pub(super) async fn damage(&self, check: &str, sql: &str) {
        let sql = sql
            .replace("GOOD", &self.good.to_string())
            .replace("FAILED", &self.failed.to_string())
            .replace("RUNNING", &self.running.unwrap_or(JobId(0)).to_string());
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone())).execute(&self.pool).await.unwrap();
        let report = self.audit(&[]).await;
        let names: Vec<_> = report.findings().map(|check| check.name).collect();
        assert_eq!(names, [check], "{sql}\n{report}");
        self.restore().await;
    }

    pub(super) async fn publish(&self, message: &LogMessage, id: &str) {
        let subject = subjects::log(message.job, message.attempt);
        self.api.store(&subject, id, bus::encode(message).into(), PATIENCE).await.unwrap();
    }

    /// Publishes a log as a builder's node does.
    async fn write(&self, job: JobId, attempt: Attempt, texts: &[&str]) {
        let mut offset = 0;
        for (seq, text) in (1..).zip(texts) {
            let body = LogBody::Text { offset, text: (*text).into() };
            let message = LogMessage { job, attempt, seq, at_ms: clock::now_ms(), body };
            self.publish(&message, &format!("l-{job}-{attempt}-{seq}")).await;
            offset += text.len() as u64;
        }
    }

    /// Builds once more what [`World::good`] built.
    pub(super) async fn build_again(&self) -> JobId {
        let mut conn = self.pool.acquire().await.unwrap();
        let builder = Builder::connect(&mut conn, 3).await;
        let version = version_id(&self.pool).await;
        queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, LINUX)).await.unwrap();
        let work = Work::take(&mut conn, &builder).await;
        drop(conn);
        let job = self.succeed(&builder, work).await;
        self.ask(&builder, 0).await;
        self.save().await;
        job
    }

    async fn succeed(&self, builder: &Builder, mut work: Work) -> JobId {
        for (name, bytes) in [("demo.tar.gz", "binaries"), ("demo.txt", "notes")] {
            work.upload(&self.pool, &self.store.objects, name, bytes.as_bytes()).await;
        }
        self.write(work.job, work.attempt, &["one\n", "two\n"]).await;
        let mut outcome = work.succeeded(builder);
        outcome.last_seq = 2;
        let applied = apply(&self.pool, &self.store.objects, &outcome).await.unwrap();
        assert!(matches!(applied, Applied::Ended { result: "succeeded", .. }));
        work.job
    }

    async fn fail(&self, builder: &Builder) -> JobId {
        let mut conn = self.pool.acquire().await.unwrap();
        let version = version_id(&self.pool).await;
        queue::enqueue(&mut conn, &new_job(version, Kind::Tarball, LINUX)).await.unwrap();
        let mut work = Work::take(&mut conn, builder).await;
        for class in [FailureClass::Lost, FailureClass::Build] {
            self.write(work.job, work.attempt, &["three\n"]).await;
            let failed =
                Outcome::Failed { class, message: "why".into(), stage: None, timings: Timings::default() };
            let mut outcome = work.outcome(builder, failed);
            outcome.last_seq = 1;
            apply(&self.pool, &self.store.objects, &outcome).await.unwrap();
            if class == FailureClass::Lost {
                work.attempt.0 += 1;
                lease_now(&mut conn, work.job, builder, 60).await;
                assert!(queue::accept(&mut conn, work.job, work.attempt, builder.id, 60).await.unwrap());
            }
        }
        work.job
    }

    /// As a counter.
    async fn download(&self) {
        let artifact: i64 = sqlx::query_scalar("SELECT id FROM artifacts WHERE position = 0")
            .fetch_one(&self.pool)
            .await
            .unwrap();
        let day = i32::try_from(clock::now_s() / 86_400).unwrap();
        let count = DownloadCount { artifact: artifact.into(), day, client: ClientClass::Curl, count: 1 };
        let mut group = Group::default();
        group.push(DownloadBatch {
            node: "api-1".into(),
            epoch: 1,
            batch: 1,
            counts: vec![count],
            installs: vec![],
        });
        Writer::new(bulk::beside(&self.pool).unwrap()).apply(&mut group).await.unwrap();
    }

    /// Archives what has ended, and takes it off the bus.
    async fn archive(&self) {
        let (pool, objects) = (self.pool.clone(), self.store.objects.clone());
        let archive =
            Archive { pool, bus: self.own.clone(), objects, log_bytes: 1 << 20, empty: Arc::default() };
        let stream = self.admin.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
        let mut conn = self.pool.acquire().await.unwrap();
        for attempt in attempts::to_archive(&mut conn, 10).await.unwrap() {
            archive.archive(&stream, &attempt).await.unwrap();
        }
        stream.purge().await.unwrap();
    }

    /// Publishes the outbox.
    async fn relay(&self) {
        let shutdown = CancellationToken::new();
        let relay =
            outbox::run(self.pool.clone(), self.own.clone(), Arc::new(Wakes::default()), shutdown.clone());
        let emptied = async {
            let mut pause = tokio::time::interval(Duration::from_millis(5));
            while sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox")
                .fetch_one(&self.pool)
                .await
                .unwrap()
                > 0
            {
                pause.tick().await;
            }
            shutdown.cancel();
        };
        let (relayed, ()) =
            tokio::time::timeout(PATIENCE, async { tokio::join!(relay, emptied) }).await.unwrap();
        relayed.unwrap();
    }

    async fn ask(&self, builder: &Builder, slots: u16) {
        let request = BuildRequest {
            builder: builder.id,
            connection: builder.connection.clone(),
            node: crate::support::NODE.into(),
            targets: Vec::new(),
            slots,
            answered: self.running.iter().map(|job| of(*job)).collect(),
            serial: 1,
        };
        assert!(sessions::request(&mut self.pool.acquire().await.unwrap(), &request).await.unwrap());
    }

    async fn save(&self) {
        let copies = TABLES.map(|table| format!("CREATE TABLE saved.{table} AS TABLE {table};"));
        let sql = format!("DROP SCHEMA IF EXISTS saved CASCADE; CREATE SCHEMA saved; {}", copies.concat());
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    async fn restore(&self) {
        let deletes: Vec<_> = TABLES.iter().rev().map(|table| format!("DELETE FROM {table};")).collect();
        let inserts = TABLES
            .map(|table| format!("INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM saved.{table};"));
        let sql = format!("BEGIN; {} {} COMMIT;", deletes.concat(), inserts.concat());
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }
}

fn of(job: JobId) -> cratemill_protocol::builder::JobRef {
    cratemill_protocol::builder::JobRef { job, attempt: Attempt(1) }
}

async fn version_id(pool: &PgPool) -> cratemill_protocol::VersionId {
    let id: i64 = sqlx::query_scalar("SELECT id FROM versions").fetch_one(pool).await.unwrap();
    id.into()
}
