//! A node for a test, what it depends on, and a queue with something in it.

use axum::{Router, body::Body};
use bytes::Bytes;
use clap::Parser;
use cratemill_api::{App, Config, Waiting, routes};
use cratemill_protocol::{
    ArtifactName, Attempt, BuilderId, CrateName, Features, JobId, Kind, Outcome, Priority, Sha256Hex, Target,
    VersionId,
    bus::DownloadBatch,
    job::Timings,
    manifest::{Entry, Manifest},
    subjects,
    token::{Claims, Purpose},
};
use cratemill_service::{bus::Bus, clock, http::PeerAddr, streams};
use cratemill_stack::{
    data_dir::DataDir,
    nats::Nats,
    s3::{BUCKET, S3},
    secrets::Secrets,
};
use cratemill_store::{
    PgPool, artifacts, builders, crates,
    nodes::{self, Run},
    queue,
    queue::{End, Ended, Held, NewJob},
    sessions, targets,
    uploads::{self, Upload},
    versions::{self, Published},
};
use http_body_util::BodyExt;
use serde_json::Value;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub(crate) const ADMIN: &str = "the-operators-token";
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Nothing listens on the discard port of loopback.
const NOWHERE: &str = "127.0.0.1:9";

/// A node, and how a test speaks to it.
pub(crate) struct Node {
    pub app: App,
    router: Router,
}

/// For what comes by itself, on a machine that is busy compiling.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Servers that a node depends on. Their data goes with them.
pub(crate) struct Servers {
    pub nats: Nats,
    pub s3: S3,
    dir: DataDir,
}

pub(crate) struct Answer {
    pub status: u16,
    pub headers: axum::http::HeaderMap,
    pub body: Bytes,
}

impl Servers {
    pub(crate) async fn start() -> Self {
        let dir = DataDir::temporary().unwrap();
        let mut secrets = Secrets::open(dir.path()).unwrap();
        let s3 = S3::start(&dir, &mut secrets).await.unwrap();
        let nats = Nats::start(&dir, &mut secrets).await.unwrap();
        let this = Self { nats, s3, dir };
        streams::ensure(&this.bus("dispatcher").await, 1, &CancellationToken::new()).await.unwrap();
        this
    }

    /// A connection of one of the users, once it is there.
    pub(crate) async fn bus(&self, user: &str) -> Bus {
        let bus = Bus::connect(&self.nats.url(user).unwrap().parse().unwrap(), user).await.unwrap();
        bus.client.flush().await.unwrap();
        bus
    }

    /// The files of all objects in the bucket.
    pub(crate) fn objects(&self) -> Vec<std::path::PathBuf> {
        let mut folders = vec![self.dir.path().join("s3").join(BUCKET)];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files
    }

    /// What the stream of download batches has now.
    pub(crate) async fn batches(&self) -> Vec<DownloadBatch> {
        self.batches_once(|_| true).await
    }

    pub(crate) async fn wait_for_batches(&self, done: impl Fn(&[DownloadBatch]) -> bool) {
        self.batches_once(done).await;
    }

    /// A server that has just started may not answer yet.
    async fn batches_once(&self, done: impl Fn(&[DownloadBatch]) -> bool) -> Vec<DownloadBatch> {
        let admin = self.bus("admin").await;
        let there = async {
            loop {
                match read_batches(&admin).await {
                    Ok(batches) if done(&batches) => return batches,
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => eprintln!("asking again for the batches: {error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("the batches are on the bus")
    }

    /// Its downloads are counted for as long as the test runs.
    pub(crate) async fn node(&self, pool: PgPool, more: &[&str]) -> Node {
        let node = self.idle_node(pool, more).await;
        let waiting = Waiting { folder: None, max_bytes: 1 << 20 };
        let counting = node.app.counts.clone().run(node.app.bus.clone(), waiting, CancellationToken::new());
        tokio::spawn(counting.unwrap());
        node
    }

    /// Whoever wants downloads of it has to count them.
    pub(crate) async fn idle_node(&self, pool: PgPool, more: &[&str]) -> Node {
        let s3 = [
            format!("--s3-endpoint={}", self.s3.endpoint()),
            format!("--s3-access-key={}", self.s3.access_key()),
            format!("--s3-secret-key={}", self.s3.secret_key()),
        ];
        let given = |flag: &&str| more.iter().any(|other| other.split('=').next() == flag.split('=').next());
        let s3 = s3.iter().map(String::as_str).filter(|flag| !given(flag));
        let flags: Vec<&str> = s3.chain(more.iter().copied()).collect();
        Node::new(pool, self.bus("api").await, &flags)
    }
}

async fn read_batches(admin: &Bus) -> Result<Vec<DownloadBatch>, Box<dyn std::error::Error>> {
    let mut stream = admin.jetstream.get_stream(subjects::DOWNLOADS_STREAM).await?;
    let last = stream.info().await?.state.last_sequence;
    let mut batches = Vec::new();
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await?;
        batches.push(DownloadBatch::decode(&message.payload)?);
    }
    Ok(batches)
}

impl Node {
    fn new(pool: PgPool, bus: Bus, more: &[&str]) -> Self {
        let base = [
            "cratemill-api",
            "--listen=127.0.0.1:0",
            "--database-url=postgres://unused/unused",
            "--nats-url=nats://unused",
            "--s3-endpoint=http://127.0.0.1:9",
            "--s3-access-key=none",
            "--s3-secret-key=none",
            "--public-url=http://cratemill.test",
            "--node=test",
            "--token-secret=0123456789abcdef",
            "--max-artifact-bytes=1000000",
        ];
        let (admin, bucket) = (format!("--admin-token={ADMIN}"), format!("--s3-bucket={BUCKET}"));
        // A flag that is given again wins.
        let mut flags: Vec<&str> = vec![&admin, &bucket];
        flags.extend(more);
        let kept = base.into_iter().filter(|flag| {
            let name = flag.split('=').next().unwrap_or_default();
            !more.iter().any(|other| other.split('=').next() == Some(name))
        });
        let config = Config::try_parse_from(kept.chain(flags)).unwrap();
        let app = App::new(config, pool, bus).unwrap();
        // As the HTTP server does for each connection.
        let peer = PeerAddr(([127, 0, 0, 1], 40_000).into());
        let router = routes::router(app.clone(), Router::new()).unwrap().layer(axum::Extension(peer));
        Self { app, router }
    }

    /// With nothing but the database: bus and object store are away.
    pub(crate) async fn alone(pool: PgPool) -> Self {
        Self::alone_with(pool, &[]).await
    }

    pub(crate) async fn alone_with(pool: PgPool, more: &[&str]) -> Self {
        let bus = Bus::connect(&format!("nats://{NOWHERE}").parse().unwrap(), "api").await.unwrap();
        Self::new(pool, bus, more)
    }

    pub(crate) fn router(&self) -> Router {
        self.router.clone()
    }

    pub(crate) async fn send(&self, request: axum::http::Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// The body is sent as JSON if there is one; each header is a name and a value.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = axum::http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], None).await
    }

    pub(crate) async fn operate(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.ask(method, path, &[("authorization", &format!("Bearer {ADMIN}"))], body).await
    }

    pub(crate) fn token(&self, job: JobId, attempt: Attempt) -> String {
        let claims = Claims { job, attempt, purpose: Purpose::Build, expires: clock::now_s() + 60 };
        format!("Bearer {}", self.app.signer.sign(&claims).secret())
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// Asserts that it is a problem as it must be; the field it names.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> Option<String> {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let body = self.json();
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], "about:blank");
        assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()));
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        body["field"].as_str().map(str::to_owned)
    }
}

pub(crate) async fn add_crate(pool: &PgPool, name: &str, published: &[(&str, bool)]) {
    let mut conn = pool.acquire().await.unwrap();
    let krate = crates::upsert(&mut conn, &name.parse().unwrap()).await.unwrap();
    let published: Vec<_> = published
        .iter()
        .map(|(version, yanked)| Published {
            version: (*version).into(),
            sha256: Sha256Hex::of(version.as_bytes()),
            yanked: *yanked,
        })
        .collect();
    versions::merge(&mut conn, krate.id, &published).await.unwrap();
    targets::ensure(&mut conn, &[TARGET.parse().unwrap()]).await.unwrap();
}

pub(crate) async fn block(pool: &PgPool, name: &str, version: &str) {
    let id = version_of(pool, name, version).await;
    let blocked = "UPDATE versions SET blocked = true WHERE id = $1";
    sqlx::query(blocked).bind(id.0).execute(pool).await.unwrap();
}

pub(crate) async fn version_of(pool: &PgPool, name: &str, version: &str) -> VersionId {
    let name: CrateName = name.parse().unwrap();
    versions::find(&mut pool.acquire().await.unwrap(), &name, version).await.unwrap().unwrap().id
}

pub(crate) async fn add_builder(pool: &PgPool, name: &str) -> (BuilderId, i64) {
    let mut conn = pool.acquire().await.unwrap();
    targets::ensure(&mut conn, &[TARGET.parse().unwrap()]).await.unwrap();
    let target: Target = TARGET.parse().unwrap();
    let fingerprint = format!("SHA256:{name}");
    let id = builders::register(&mut conn, name, &fingerprint, "ssh-ed25519 AAAA", &[target]).await.unwrap();
    let keys = builders::keys(&mut conn, id).await.unwrap();
    (id, keys[0].0)
}

/// A job that the builder `name` works on, over a connection to the node `test`.
pub(crate) async fn running_job(pool: &PgPool, krate: &str, version: &str, builder: BuilderId) -> Held {
    let version = version_of(pool, krate, version).await;
    let mut conn = pool.acquire().await.unwrap();
    let new = NewJob {
        version,
        kind: Kind::Tarball,
        target: TARGET.parse().unwrap(),
        features: Features::default(),
        priority: Priority::NewRelease,
        run_at: None,
        parent: None,
    };
    let job = queue::enqueue(&mut conn, &new).await.unwrap().id();
    let run = Run { name: "test".into(), epoch: 1 };
    nodes::register(&mut conn, &run).await.unwrap();
    sessions::open(&mut conn, builder, &format!("connection-{builder}"), &run, &[]).await.unwrap();
    let candidates = queue::candidates(&mut conn, &[TARGET.into()], 100).await.unwrap();
    let candidate = candidates.iter().find(|candidate| candidate.id == job).unwrap();
    queue::assign(&mut conn, &[(candidate, builder)], 60).await.unwrap();
    assert!(queue::accept(&mut conn, job, Attempt(1), builder, 60).await.unwrap());
    queue::hold(&mut conn, job, Attempt(1)).await.unwrap().unwrap()
}

pub(crate) async fn finish(pool: &PgPool, held: &Held, end: End<'_>) {
    let mut conn = pool.acquire().await.unwrap();
    let timings = Timings::default();
    let outcome = match end {
        End::Succeeded => Outcome::Succeeded { timings },
        End::Failed { class, message } => {
            Outcome::Failed { class, message: message.to_owned(), stage: None, timings }
        }
        End::Cancelled => Outcome::Cancelled,
    };
    let ended = Ended { outcome: &outcome, last_seq: None };
    queue::finish(&mut conn, held, end, ended).await.unwrap();
}

/// The name that a build of `krate` has for its tarball.
pub(crate) fn tarball_name(krate: &str, version: &str) -> ArtifactName {
    format!("{krate}-{TARGET}-v{version}.tar.gz").parse().unwrap()
}

/// A crate with one version and a tarball of it, that a job has just made.
pub(crate) async fn published(node: &Node, krate: &str, version: &str, bytes: &[u8]) -> Held {
    add_crate(&node.app.pool, krate, &[(version, false)]).await;
    let (builder, key_id) = add_builder(&node.app.pool, &format!("builder-of-{krate}-{version}")).await;
    let held = running_job(&node.app.pool, krate, version, builder).await;
    publish(node, &held, krate, version, key_id, bytes).await;
    held
}

async fn publish(node: &Node, held: &Held, krate: &str, version: &str, key_id: i64, bytes: &[u8]) {
    let name = tarball_name(krate, version);
    let object = format!("artifacts/{}/{}/{name}", held.id, held.attempt);
    node.app.objects.put(&object, Bytes::copy_from_slice(bytes), "application/gzip").await.unwrap();
    let upload = Upload {
        name: name.clone(),
        size: i64::try_from(bytes.len()).unwrap(),
        sha256: Sha256Hex::of(bytes),
        object,
    };
    let manifest = Manifest {
        krate: krate.parse().unwrap(),
        version: version.into(),
        kind: held.kind,
        target: held.target.clone(),
        features: held.features.clone(),
        toolchain: "rustc 1.95.0".into(),
        source_sha256: Sha256Hex::of(b"source"),
        artifacts: vec![Entry { name, size: bytes.len() as u64, sha256: Sha256Hex::of(bytes) }],
    };
    let mut conn = node.app.pool.acquire().await.unwrap();
    assert!(uploads::record(&mut conn, held.id, held.attempt, &upload).await.unwrap());
    let manifest = manifest.to_text();
    let signature = "-----BEGIN SSH SIGNATURE-----\n";
    let signed = artifacts::Signed { manifest: &manifest, signature, key_id };
    artifacts::publish(&mut conn, held, &[upload], signed).await.unwrap();
    drop(conn);
    finish(&node.app.pool, held, End::Succeeded).await;
}

pub(crate) fn downloads(batches: &[DownloadBatch]) -> u64 {
    batches.iter().map(DownloadBatch::downloads).sum()
}

/// Days since 1970, as counts have them.
pub(crate) fn unix_day() -> i32 {
    i32::try_from(OffsetDateTime::now_utc().unix_timestamp() / 86_400).unwrap()
}
