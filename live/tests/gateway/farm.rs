//! What a gateway needs around it, and gateways. Dropping it ends every process.

use bytes::Bytes;
use cratemill_protocol::{
    Attempt, CrateName, Features, JobId, JobState, Kind, Priority, Target,
    bus::{self, DomainEvent, EventMessage, JobChanged, LogBody, LogMessage},
    subjects,
};
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::{
    data_dir::DataDir,
    nats::Nats,
    ports::Port,
    process::{Command, Process, Signal},
    s3::{BUCKET, REGION, S3},
    secrets::Secrets,
};
use cratemill_store::{
    attempts,
    objects::{ObjectStore, Objects},
};
use flate2::{Compression, write::GzEncoder};
use sqlx::{ConnectOptions, PgPool};
use std::{
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Long against anything that is waited for here, short against a person's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Farm {
    pub(crate) pool: PgPool,
    pub(crate) nats: Nats,
    pub(crate) bus: Bus,
    s3: S3,
    objects: Objects,
    messages: AtomicU64,
    data_dir: DataDir,
}

/// A running gateway.
pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) process: Process,
    _port: Port,
}

impl Farm {
    pub(crate) async fn start(pool: PgPool) -> Self {
        let data_dir = DataDir::temporary().unwrap();
        let mut secrets = Secrets::open(data_dir.path()).unwrap();
        let nats = Nats::start(&data_dir, &mut secrets).await.unwrap();
        let s3 = S3::start(&data_dir, &mut secrets).await.unwrap();
        let objects = Objects::new(&ObjectStore {
            s3_endpoint: s3.endpoint(),
            s3_bucket: BUCKET.into(),
            s3_region: REGION.into(),
            s3_access_key: s3.access_key().into(),
            s3_secret_key: s3.secret_key().into(),
        });
        let bus = Bus::connect(&nats.url("admin").unwrap().parse().unwrap(), "test").await.unwrap();
        streams::ensure(&bus, 1, &CancellationToken::new()).await.unwrap();
        Self { pool, nats, bus, s3, objects, messages: AtomicU64::new(1), data_dir }
    }

    pub(crate) async fn node(&self) -> Node {
        self.node_with(&[]).await
    }

    /// `env` comes over what a node needs.
    pub(crate) async fn node_with(&self, env: &[(&str, &str)]) -> Node {
        let node = self.starting_node_with(env).await;
        node.is_ready().await;
        node
    }

    /// It may not be ready, and not even listen.
    pub(crate) async fn starting_node_with(&self, env: &[(&str, &str)]) -> Node {
        let port = Port::reserve().unwrap();
        let name = format!("live-{}", port.number());
        let mut command = Command::new(name, env!("CARGO_BIN_EXE_cratemill-live"), &self.data_dir.log());
        for (key, value) in [
            ("LISTEN", port.address().to_string()),
            ("DATABASE_URL", self.pool.connect_options().to_url_lossy().to_string()),
            ("NATS_URL", self.nats.url("live").unwrap()),
            ("S3_ENDPOINT", self.s3.endpoint()),
            ("S3_BUCKET", BUCKET.to_owned()),
            ("S3_ACCESS_KEY", self.s3.access_key().to_owned()),
            ("S3_SECRET_KEY", self.s3.secret_key().to_owned()),
            ("LOG_FORMAT", "text".to_owned()),
            ("RUST_LOG", "info,cratemill_live=debug".to_owned()),
        ] {
            command = command.env(key, value);
        }
        for (key, value) in env {
            command = command.env(key, *value);
        }
        let process = command.spawn().await.unwrap();
        Node::new(process, port)
    }

    /// Publishes an event that only its number tells from others. Returns its sequence.
    pub(crate) async fn event(&self, subject: &str, event: DomainEvent) -> u64 {
        let payload = bus::encode(&EventMessage { at_ms: 0, event });
        self.publish(subject, payload).await
    }

    pub(crate) async fn queue_event(&self, number: u64) -> u64 {
        self.event(subjects::QUEUE_EVENT, DomainEvent::Queue { queued: number, running: 0 }).await
    }

    pub(crate) async fn job_event(&self, krate: &str, job: i64, number: u64) -> u64 {
        self.job_event_that_says(krate, job, number.to_string()).await
    }

    /// With a message that begins with its number.
    pub(crate) async fn long_job_event(&self, number: u64, text: &str) -> u64 {
        self.job_event_that_says("hexyl", 1, format!("{number} {text}")).await
    }

    async fn job_event_that_says(&self, krate: &str, job: i64, message: String) -> u64 {
        let krate = CrateName::parse(krate).unwrap();
        let event = JobChanged {
            job: JobId(job),
            krate: krate.clone(),
            version: "1.0.0".into(),
            kind: Kind::Tarball,
            target: Target::parse("x86_64-unknown-linux-gnu").unwrap(),
            features: Features::default(),
            priority: Priority::OnDemand,
            state: JobState::Running,
            attempt: Attempt(1),
            stage: None,
            builder: None,
            failure: None,
            message: Some(message),
        };
        self.event(&subjects::job_event(&krate, JobId(job)), DomainEvent::Job(event)).await
    }

    pub(crate) async fn log(&self, job: JobId, attempt: i32, body: LogBody) -> u64 {
        let (attempt, seq) = (Attempt(attempt), self.messages.load(Ordering::Relaxed));
        let payload = bus::encode(&LogMessage { job, attempt, seq, at_ms: 0, body });
        self.publish(&subjects::log(job, attempt), payload).await
    }

    pub(crate) async fn text(&self, job: JobId, attempt: i32, offset: usize, text: &str) -> u64 {
        self.log(job, attempt, LogBody::Text { offset: offset as u64, text: text.into() }).await
    }

    async fn publish(&self, subject: &str, payload: Vec<u8>) -> u64 {
        let id = self.messages.fetch_add(1, Ordering::Relaxed).to_string();
        self.bus.store(subject, &id, Bytes::from(payload), PATIENCE).await.unwrap().sequence
    }

    /// A job with so many attempts, the last of which runs.
    pub(crate) async fn job(&self, attempts: i32) -> JobId {
        let id: i64 = sqlx::query_scalar(
            "WITH c AS (INSERT INTO crates (name, canonical) VALUES ('a' || floor(random() * 1e9), 'a' || floor(random() * 1e9)) RETURNING id),
                  v AS (INSERT INTO versions (crate_id, version, sha256) SELECT id, '1.0.0', repeat('0', 64) FROM c RETURNING id)
             INSERT INTO jobs (version_id, kind, target) SELECT id, 'tarball', 't' FROM v RETURNING id",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        sqlx::query(
            "WITH b AS (INSERT INTO builders (name) VALUES ('b' || $1) RETURNING id),
                  past AS (INSERT INTO attempts (job_id, attempt, builder_id, ended_at, result)
                           SELECT $1, n, id, now(), 'lost' FROM b, generate_series(1, $2 - 1) n)
             INSERT INTO leases (job_id, attempt, builder_id, version_id, crate_id, krate, version, sha256, kind, target,
                                 features, priority, run_at, tries, accepted_at, lease_until)
             SELECT $1, $2, b.id, v.id, c.id, c.name, v.version, v.sha256, 'tarball', 't', 'default', 10, now(), 0, now(), now()
             FROM b, jobs j JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id WHERE j.id = $1",
        )
        .bind(id)
        .bind(attempts)
        .execute(&self.pool)
        .await
        .unwrap();
        JobId(id)
    }

    /// Ends the job with its newest attempt.
    pub(crate) async fn finish(&self, job: JobId) {
        let sql = "WITH gone AS (DELETE FROM leases WHERE job_id = $1 RETURNING *)
             INSERT INTO finished_jobs (job_id, state, priority, run_at, attempt, tries, builder_id, assigned_at, result)
             SELECT job_id, 'succeeded', priority, run_at, attempt, tries, builder_id, assigned_at, 'succeeded' FROM gone";
        sqlx::query(sql).bind(job.0).execute(&self.pool).await.unwrap();
    }

    /// Moves an attempt's log from the bus to the object store, as the dispatcher does.
    pub(crate) async fn archive(&self, job: JobId, attempt: i32, text: &str) {
        let key = format!("logs/{job}/{attempt}.gz");
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        self.objects.put(&key, encoder.finish().unwrap().into(), "application/gzip").await.unwrap();
        let mut conn = self.pool.acquire().await.unwrap();
        if !attempts::archived(&mut conn, job, Attempt(attempt), &key, 0, 0).await.unwrap() {
            // Only what ended is archived.
            self.finish(job).await;
            assert!(attempts::archived(&mut conn, job, Attempt(attempt), &key, 0, 0).await.unwrap());
        }
        let stream = self.bus.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
        stream.purge().filter(subjects::log(job, Attempt(attempt))).await.unwrap();
    }

    pub(crate) async fn lose_archived(&self, job: JobId, attempt: i32) {
        self.objects.delete(&format!("logs/{job}/{attempt}.gz")).await.unwrap();
    }
}

impl Node {
    pub(crate) fn new(process: Process, port: Port) -> Self {
        Self { url: format!("http://{}", port.address()), port: port.number(), process, _port: port }
    }

    pub(crate) async fn is_ready(&self) {
        let probe = async || {
            reqwest::get(format!("{}/readyz", self.url)).await?.error_for_status()?;
            Ok(())
        };
        self.process.ready(PATIENCE, probe).await.unwrap();
    }

    /// Once it has noticed what it misses.
    pub(crate) async fn is_unready(&self) {
        let unready = async {
            while reqwest::get(format!("{}/readyz", self.url)).await.unwrap().status() != 503 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, unready).await.expect("it stays ready");
    }

    /// The value of a metric, by the start of its line.
    pub(crate) async fn metric(&self, start: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.url)).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(start));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    pub(crate) async fn metric_is(&self, start: &str, expected: f64) {
        let reached = async {
            while (self.metric(start).await - expected).abs() > 0.5 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{start} is not {expected}"));
    }

    pub(crate) async fn metric_reaches(&self, start: &str, least: f64) {
        let reached = async {
            while self.metric(start).await < least {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{start} is below {least}"));
    }

    pub(crate) async fn terminate(&self) -> bool {
        let (status, by_itself) = self.process.stop(Signal::SIGTERM, PATIENCE).await.unwrap();
        by_itself && status.success()
    }
}
