//! What most tests begin with: a crate with versions, and builders that are logged in.

use cratemill_protocol::{
    Attempt, BuilderId, CrateName, FailureClass, Features, JobId, Kind, Outcome, Priority, Sha256Hex, Target,
    VersionId, job::Timings,
};
use cratemill_store::{
    PgConnection, builders, crates,
    nodes::{self, Run},
    queue,
    queue::{End, Ended, Held, NewJob},
    sessions, targets,
    uploads::{self, Upload},
    versions::{self, Change, Published},
};

pub(crate) const LINUX: &str = "x86_64-unknown-linux-gnu";
pub(crate) const ARM: &str = "aarch64-unknown-linux-gnu";

pub(crate) fn target(name: &str) -> Target {
    Target::parse(name).unwrap()
}

pub(crate) fn krate(name: &str) -> CrateName {
    CrateName::parse(name).unwrap()
}

pub(crate) fn published(version: &str) -> Published {
    Published { version: version.into(), sha256: Sha256Hex::of(version.as_bytes()), yanked: false }
}

/// A crate with one version, added.
pub(crate) async fn version(conn: &mut PgConnection, name: &str) -> VersionId {
    let row = crates::upsert(conn, &krate(name)).await.unwrap();
    let changes = versions::merge(conn, row.id, &[published("1.0.0")]).await.unwrap();
    let [(Change::Added(id), _)] = changes[..] else { panic!("{changes:?}") };
    id
}

/// A builder for one target, registered.
pub(crate) async fn builder(conn: &mut PgConnection, name: &str, name_of_target: &str) -> BuilderId {
    let targets = [target(name_of_target)];
    targets::ensure(conn, &targets).await.unwrap();
    let (fingerprint, key) = (format!("SHA256:{name}"), format!("ssh-ed25519 {name}"));
    builders::register(conn, name, &fingerprint, &key, &targets).await.unwrap()
}

/// The run of a node that marks itself for as long as the test takes, on whatever machine.
pub(crate) async fn node(conn: &mut PgConnection, name: &str) -> Run {
    let run = Run { name: name.into(), epoch: 1 };
    nodes::register(conn, &run).await.unwrap();
    let alive = "UPDATE nodes SET seen_at = now() + interval '1 hour' WHERE name = $1";
    sqlx::query(alive).bind(name).execute(conn).await.unwrap();
    run
}

/// Its node has said nothing for a minute.
pub(crate) async fn silence(conn: &mut PgConnection, name: &str) {
    let silent = "UPDATE nodes SET seen_at = now() - interval '1 minute' WHERE name = $1";
    sqlx::query(silent).bind(name).execute(conn).await.unwrap();
}

/// And logged in, on `node-1`, as the connection `c-<name>`.
pub(crate) async fn connected(conn: &mut PgConnection, name: &str, name_of_target: &str) -> BuilderId {
    let id = builder(conn, name, name_of_target).await;
    let run = node(conn, "node-1").await;
    sessions::open(conn, id, &format!("c-{name}"), &run, &[target(name_of_target)]).await.unwrap();
    id
}

pub(crate) fn job(version: VersionId) -> NewJob {
    NewJob {
        version,
        kind: Kind::Tarball,
        target: target(LINUX),
        features: Features::default(),
        priority: Priority::NewRelease,
        run_at: None,
        parent: None,
    }
}

/// Leases the next job to the builder.
pub(crate) async fn lease(conn: &mut PgConnection, builder: BuilderId, accept_s: i32) -> (JobId, Attempt) {
    let candidates = queue::candidates(conn, &[LINUX.into()], 1).await.unwrap();
    let next = candidates.first().expect("a job is queued");
    assert_eq!(queue::assign(conn, &[(next, builder)], accept_s).await.unwrap().len(), 1);
    (next.id, Attempt(next.attempt.0 + 1))
}

/// A job that the builder has accepted.
pub(crate) struct Running {
    pub(crate) builder: BuilderId,
    pub(crate) version: VersionId,
    pub(crate) job: JobId,
    pub(crate) attempt: Attempt,
}

pub(crate) async fn running(conn: &mut PgConnection, name: &str) -> Running {
    let version = version(conn, name).await;
    let builder = connected(conn, name, LINUX).await;
    queue::enqueue(conn, &job(version)).await.unwrap();
    let (job, attempt) = lease(conn, builder, 60).await;
    assert!(queue::accept(conn, job, attempt, builder, 60).await.unwrap());
    Running { builder, version, job, attempt }
}

/// Ends an attempt and its job as a success does.
pub(crate) async fn succeed(conn: &mut PgConnection, held: &Held) {
    let outcome = Outcome::Succeeded { timings: Timings { build_ms: 7, ..Timings::default() } };
    let ended = Ended { outcome: &outcome, last_seq: Some(9) };
    queue::finish(conn, held, End::Succeeded, ended).await.unwrap();
}

/// Ends an attempt in a way that is retried.
pub(crate) async fn lose(conn: &mut PgConnection, held: &Held, delay_s: f64) {
    let class = FailureClass::Lost;
    let (message, timings) = ("gone".to_owned(), Timings::default());
    let outcome = Outcome::Failed { class, message, stage: None, timings };
    let ended = Ended { outcome: &outcome, last_seq: Some(4) };
    queue::retry_later(conn, held, (class, "gone"), delay_s, ended).await.unwrap();
}

impl Running {
    pub(crate) async fn held(&self, conn: &mut PgConnection) -> Held {
        queue::hold(conn, self.job, self.attempt).await.unwrap().expect("the attempt has the job")
    }
}

pub(crate) fn upload(name: &str) -> Upload {
    Upload {
        name: name.to_owned().try_into().unwrap(),
        size: 3,
        sha256: Sha256Hex::of(name.as_bytes()),
        object: format!("o/{name}"),
    }
}

pub(crate) async fn record(conn: &mut PgConnection, running: &Running, name: &str) -> Upload {
    let upload = upload(name);
    assert!(uploads::record(conn, running.job, running.attempt, &upload).await.unwrap());
    upload
}
