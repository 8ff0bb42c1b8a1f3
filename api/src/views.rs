//! What the API says about jobs, artifacts, crates and builders: the JSON, apart from the tables.

use crate::config::PublicUrl;
use cratemill_protocol::{Attempt, Features, JobId, JobState, Kind, Priority, Stage, manifest::Manifest};
use cratemill_store::{artifacts, attempts, builders, estimates, jobs, versions};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::{
    ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; null on the last one.
    pub next: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Job {
    #[schema(value_type = i64)]
    id: JobId,
    #[serde(rename = "crate")]
    krate: String,
    version: String,
    #[schema(schema_with = kind)]
    kind: Kind,
    /// A target triple; `any` where the result does not depend on one.
    target: String,
    /// `default` or `no-default`, then feature names, separated by commas.
    #[schema(value_type = String)]
    features: Features,
    #[schema(schema_with = priority)]
    priority: Priority,
    #[schema(schema_with = job_state)]
    state: JobState,
    /// What a running job is at.
    stage: Option<String>,
    /// The number of the newest attempt, 0 before the first.
    #[schema(value_type = i32)]
    attempt: Attempt,
    /// How often an attempt ended in a way that is retried.
    tries: i32,
    #[serde(with = "time::serde::rfc3339")]
    run_at: OffsetDateTime,
    builder: Option<BuilderRef>,
    /// How many queued jobs go before it, plus one; 10000 stands for that or more. Null in lists, and when it is not
    /// queued.
    queue_position: Option<i64>,
    /// Null in lists, once it ended, and when nothing is known.
    estimate: Option<Estimate>,
    /// Of the newest attempt that failed.
    failure: Option<Failure>,
    /// The job this one follows from or repeats.
    parent: Option<i64>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    finished_at: Option<OffsetDateTime>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BuilderRef {
    id: i64,
    name: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Failure {
    /// build, timeout, out_of_memory, output_too_large, infrastructure or lost.
    class: String,
    message: String,
}

/// From what was built before: of the crate, else of all of the kind and target.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Estimate {
    /// Seconds until it is likely to start; null once it has, or when nobody builds for its target now.
    starts_in_s: Option<f64>,
    /// Seconds from its start to its end; null when nothing like it was built lately.
    takes_s: Option<f64>,
}

impl From<estimates::Estimate> for Estimate {
    fn from(estimate: estimates::Estimate) -> Self {
        // More digits would be a promise.
        let rounded = |seconds: f64| (seconds * 10.0).round() / 10.0;
        Self { starts_in_s: estimate.starts_in_s.map(rounded), takes_s: estimate.takes_s.map(rounded) }
    }
}

impl Job {
    pub(crate) fn new(
        job: jobs::Job,
        queue_position: Option<i64>,
        estimate: Option<estimates::Estimate>,
    ) -> Self {
        let running = job.state == JobState::Running;
        let builder = job.builder_id.zip(job.builder_name);
        Self {
            id: job.id,
            krate: job.krate.into(),
            version: job.version,
            kind: job.kind,
            target: job.target.into(),
            features: job.features,
            priority: job.priority,
            state: job.state,
            stage: job.stage.filter(|_| running),
            attempt: job.attempt,
            tries: job.tries,
            run_at: job.run_at,
            builder: builder.map(|(id, name)| BuilderRef { id, name }),
            queue_position,
            estimate: estimate.map(Into::into),
            failure: job
                .failure_class
                .map(|class| Failure { class, message: job.failure_message.unwrap_or_default() }),
            parent: job.parent_id,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}

/// A job with all its attempts, and what it made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobDetail {
    #[serde(flatten)]
    pub job: Job,
    pub attempts: Vec<AttemptView>,
    pub artifacts: Vec<Artifact>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
pub(crate) struct AttemptView {
    #[schema(value_type = i32)]
    attempt: Attempt,
    builder: BuilderRef,
    #[serde(with = "time::serde::rfc3339")]
    assigned_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    accepted_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    /// succeeded, cancelled or a failure class, once it ended.
    result: Option<String>,
    message: Option<String>,
    #[schema(schema_with = stage)]
    stage: Option<String>,
    /// `fetch_ms`, `build_ms`, `package_ms`, `upload_ms`, and `cargo_ms`, the part of them that cargo itself ran.
    #[schema(value_type = Option<std::collections::BTreeMap<String, u64>>)]
    timings: Option<serde_json::Value>,
}

impl From<attempts::Row> for AttemptView {
    fn from(row: attempts::Row) -> Self {
        Self {
            attempt: row.attempt,
            builder: BuilderRef { id: row.builder_id, name: row.builder_name },
            assigned_at: row.assigned_at,
            accepted_at: row.accepted_at,
            ended_at: row.ended_at,
            result: row.result,
            message: row.message,
            stage: row.stage,
            timings: row.timings,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Artifact {
    #[schema(schema_with = kind)]
    kind: Kind,
    target: String,
    #[schema(value_type = String)]
    features: Features,
    /// Its file name.
    name: String,
    size: i64,
    sha256: String,
    /// What built it, as `rustc --version` says.
    toolchain: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Where it is downloaded. Null for the second and later files of a build: the first stands for it.
    url: Option<String>,
    downloads: i64,
}

impl Artifact {
    pub(crate) fn new(artifact: artifacts::Artifact, public_url: &PublicUrl) -> Self {
        let url = (artifact.position == 0).then(|| {
            let artifacts::Artifact { krate, version, target, kind, features, .. } = &artifact;
            let path = format!("{public_url}/api/v1/crates/{krate}/{version}/{target}/{kind}");
            if *features == Features::default() {
                path
            } else {
                // The only character of a variant that means something else in a query.
                format!("{path}?features={}", features.to_string().replace('+', "%2B"))
            }
        });
        Self {
            kind: artifact.kind,
            target: artifact.target.into(),
            features: artifact.features,
            name: artifact.name,
            size: artifact.size,
            sha256: artifact.sha256.to_string(),
            toolchain: Manifest::parse(&artifact.manifest).ok().map(|manifest| manifest.toolchain),
            created_at: artifact.created_at,
            url,
            downloads: artifact.downloads,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VersionSummary {
    version: String,
    yanked: bool,
    /// Taken down by the operator: its artifacts answer 410.
    blocked: bool,
    #[serde(with = "time::serde::rfc3339")]
    seen_at: OffsetDateTime,
}

impl From<versions::Version> for VersionSummary {
    fn from(version: versions::Version) -> Self {
        let versions::Version { version, yanked, blocked, seen_at, .. } = version;
        Self { version, yanked, blocked, seen_at }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Builder {
    id: i64,
    name: String,
    enabled: bool,
    /// It finishes what it has and gets nothing new.
    drain: bool,
    targets: Vec<String>,
    fingerprints: Vec<String>,
    /// Verifies the manifests it signs.
    public_key: Option<String>,
    connected: bool,
    /// Jobs it works on.
    running: i64,
    /// It gets no job until then: one after the other was rejected, lost, or not what its manifest said.
    #[serde(with = "time::serde::rfc3339::option")]
    paused_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_seen_at: Option<OffsetDateTime>,
}

impl From<builders::Builder> for Builder {
    fn from(builder: builders::Builder) -> Self {
        Self {
            id: builder.id.0,
            name: builder.name,
            enabled: builder.enabled,
            drain: builder.drain,
            targets: builder.targets,
            fingerprints: builder.fingerprints,
            public_key: builder.public_key,
            connected: builder.connected,
            running: builder.running,
            paused_until: builder.paused_until,
            last_seen_at: builder.last_seen_at,
        }
    }
}

fn words(words: impl Iterator<Item = &'static str>) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
}

pub(crate) fn kind() -> RefOr<Schema> {
    words(Kind::ALL.iter().map(|kind| kind.as_str()))
}

pub(crate) fn priority() -> RefOr<Schema> {
    words(Priority::ALL.iter().map(|priority| priority.as_str()))
}

pub(crate) fn job_state() -> RefOr<Schema> {
    words(JobState::ALL.iter().map(|state| state.as_str()))
}

fn stage() -> RefOr<Schema> {
    let schema = ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::SchemaType::from_iter([Type::String, Type::Null]));
    schema.enum_values(Some(Stage::ALL.iter().map(|stage| Some(stage.as_str())).chain([None]))).into()
}
