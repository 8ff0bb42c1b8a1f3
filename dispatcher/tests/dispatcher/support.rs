//! An object store, a builder with a key, and a job that it works on.

use cratemill_dispatcher::outcomes::{self, Applied, Reads};
use cratemill_protocol::{
    ArtifactName, Attempt, BuilderId, CrateName, Features, JobId, Kind, Outcome, Priority, Sha256Hex, Target,
    VersionId,
    bus::OutcomeMessage,
    job::Timings,
    manifest::{Entry, Manifest, NAMESPACE},
    sshsig,
};
use cratemill_stack::{data_dir::DataDir, s3, secrets::Secrets};
use cratemill_store::{
    PgConnection, PgPool, builders, crates,
    nodes::{self, Run},
    objects::{ObjectStore, Objects},
    queue::{self, NewJob},
    sessions, targets,
    uploads::{self, Upload},
    versions::{self, Change, Published},
};
use ssh_key::{HashAlg, LineEnding, PrivateKey, private::Ed25519Keypair};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

pub(crate) const LINUX: &str = "x86_64-unknown-linux-gnu";
pub(crate) const ARM: &str = "aarch64-unknown-linux-gnu";
pub(crate) const NODE: &str = "node-1";

/// A folder of its own, and an S3 server over it.
pub(crate) struct Store {
    pub(crate) secrets: Secrets,
    pub(crate) objects: Objects,
    pub(crate) data: DataDir,
    _server: s3::S3,
}

impl Store {
    pub(crate) async fn start() -> Self {
        let data = DataDir::temporary().unwrap();
        let mut secrets = Secrets::open(data.path()).unwrap();
        let server = s3::S3::start(&data, &mut secrets).await.unwrap();
        let objects = objects(&server.endpoint(), server.access_key(), server.secret_key());
        Self { secrets, objects, data, _server: server }
    }
}

/// An object store that is away.
pub(crate) fn no_objects() -> Objects {
    objects("http://127.0.0.1:1", "a", "b")
}

/// An object store that takes connections and never answers.
pub(crate) struct Hanging {
    pub(crate) objects: Objects,
    asked: mpsc::UnboundedReceiver<TcpStream>,
}

impl Hanging {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if sender.send(socket).is_err() {
                    return;
                }
            }
        });
        Self { objects: objects(&endpoint, "a", "b"), asked }
    }

    /// Somebody waits for it; the connection stays open while it is held.
    pub(crate) async fn asked(&mut self) -> TcpStream {
        self.asked.recv().await.unwrap()
    }
}

/// As the dispatcher applies an outcome that has a transaction of its own.
pub(crate) async fn apply(
    pool: &PgPool,
    objects: &Objects,
    message: &OutcomeMessage,
) -> Result<Applied, outcomes::Error> {
    let document = outcomes::read(pool, &Reads::new(objects.clone()), message).await?;
    outcomes::apply(pool, message, document).await
}

fn objects(endpoint: &str, access_key: &str, secret_key: &str) -> Objects {
    Objects::new(&ObjectStore {
        s3_endpoint: endpoint.into(),
        s3_bucket: s3::BUCKET.into(),
        s3_region: s3::REGION.into(),
        s3_access_key: access_key.into(),
        s3_secret_key: secret_key.into(),
    })
}

pub(crate) fn key(seed: u8) -> PrivateKey {
    Ed25519Keypair::from_seed(&[seed; 32]).into()
}

/// A builder that is connected to [`NODE`].
pub(crate) struct Builder {
    pub(crate) id: BuilderId,
    pub(crate) key: PrivateKey,
    pub(crate) connection: String,
}

impl Builder {
    pub(crate) async fn connect(conn: &mut PgConnection, seed: u8) -> Self {
        let (key, linux) = (key(seed), [Target::parse(LINUX).unwrap()]);
        targets::ensure(conn, &[linux[0].clone(), Target::parse(ARM).unwrap()]).await.unwrap();
        let line = key.public_key().to_openssh().unwrap();
        let fingerprint = sshsig::fingerprint(key.public_key());
        let (name, connection) = (format!("builder-{seed}"), format!("connection-{seed}"));
        let id = builders::register(conn, &name, &fingerprint, &line, &linux).await.unwrap();
        let run = Run { name: NODE.into(), epoch: 1 };
        nodes::register(conn, &run).await.unwrap();
        sessions::open(conn, id, &connection, &run, &linux).await.unwrap();
        Self { id, key, connection }
    }
}

/// A version of the crate `demo`.
pub(crate) async fn version(conn: &mut PgConnection) -> VersionId {
    let row = crates::upsert(conn, &CrateName::parse("demo").unwrap()).await.unwrap();
    let published = Published { version: "1.0.0".into(), sha256: source(), yanked: false };
    match versions::merge(conn, row.id, &[published]).await.unwrap()[..] {
        [(Change::Added(id), _)] => id,
        ref other => panic!("{other:?}"),
    }
}

pub(crate) fn source() -> Sha256Hex {
    Sha256Hex::of(b"the .crate file")
}

pub(crate) fn new_job(version: VersionId, kind: Kind, target: &str) -> NewJob {
    NewJob {
        version,
        kind,
        target: Target::parse(target).unwrap(),
        features: Features::default(),
        priority: Priority::OnDemand,
        run_at: None,
        parent: None,
    }
}

/// An attempt that its builder has accepted, and what it would sign.
pub(crate) struct Work {
    pub(crate) job: JobId,
    pub(crate) attempt: Attempt,
    pub(crate) manifest: Manifest,
}

/// Leases this job to a builder, though it may wait for its next try.
pub(crate) async fn lease_now(conn: &mut PgConnection, job: JobId, builder: &Builder, accept_s: i32) {
    sqlx::query("UPDATE queue SET run_at = now() WHERE job_id = $1")
        .bind(job.0)
        .execute(&mut *conn)
        .await
        .unwrap();
    queue::promote(conn, 100).await.unwrap();
    let candidates = queue::candidates(conn, &[LINUX.into()], 100).await.unwrap();
    let candidate = candidates.iter().find(|candidate| candidate.id == job).unwrap();
    assert_eq!(queue::assign(conn, &[(candidate, builder.id)], accept_s).await.unwrap().len(), 1);
}

impl Work {
    pub(crate) async fn start(pool: &PgPool, builder: &Builder, kind: Kind, target: &str) -> Self {
        let mut conn = pool.acquire().await.unwrap();
        let version = version(&mut conn).await;
        queue::enqueue(&mut conn, &new_job(version, kind, target)).await.unwrap();
        Self::take(&mut conn, builder).await
    }

    /// The next job.
    pub(crate) async fn take(conn: &mut PgConnection, builder: &Builder) -> Self {
        let next = queue::candidates(conn, &[LINUX.into()], 1).await.unwrap().remove(0);
        queue::assign(conn, &[(&next, builder.id)], 60).await.unwrap();
        let attempt = Attempt(next.attempt.0 + 1);
        assert!(queue::accept(conn, next.id, attempt, builder.id, 60).await.unwrap());
        let manifest = Manifest {
            krate: next.krate,
            version: next.version,
            kind: next.kind,
            target: next.target,
            features: next.features,
            toolchain: "rustc 1.95.0".into(),
            source_sha256: next.sha256,
            artifacts: Vec::new(),
        };
        Self { job: next.id, attempt, manifest }
    }

    /// Stores a file as the upload route does, and names it in the manifest.
    pub(crate) async fn upload(&mut self, pool: &PgPool, objects: &Objects, name: &str, bytes: &[u8]) {
        let object = format!("artifacts/{}/{}/{name}", self.job, self.attempt);
        objects.put(&object, bytes.to_vec().into(), "application/octet-stream").await.unwrap();
        let (name, sha256) = (ArtifactName::parse(name).unwrap(), Sha256Hex::of(bytes));
        let upload = Upload { name: name.clone(), size: i64::try_from(bytes.len()).unwrap(), sha256, object };
        let mut conn = pool.acquire().await.unwrap();
        assert!(uploads::record(&mut conn, self.job, self.attempt, &upload).await.unwrap());
        self.manifest.artifacts.push(Entry { name, size: bytes.len() as u64, sha256 });
    }

    pub(crate) fn succeeded(&self, builder: &Builder) -> OutcomeMessage {
        let text = self.manifest.to_text();
        let signature = builder.key.sign(NAMESPACE, HashAlg::Sha512, text.as_bytes()).unwrap();
        OutcomeMessage {
            manifest: Some(text),
            signature: Some(signature.to_pem(LineEnding::LF).unwrap()),
            ..self.outcome(builder, Outcome::Succeeded { timings: Timings::default() })
        }
    }

    pub(crate) fn outcome(&self, builder: &Builder, outcome: Outcome) -> OutcomeMessage {
        OutcomeMessage {
            job: self.job,
            attempt: self.attempt,
            builder: builder.id,
            outcome,
            last_seq: 0,
            manifest: None,
            signature: None,
            at_ms: 0,
        }
    }
}

/// Metadata of `demo`, with a binary or without.
pub(crate) fn metadata(kind: &str) -> Vec<u8> {
    format!(
        r#"{{"packages":[{{"name":"demo","version":"1.0.0","features":{{}},
        "targets":[{{"name":"demo","kind":["{kind}"]}}]}}],"version":1}}"#
    )
    .into_bytes()
}
