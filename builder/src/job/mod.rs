//! One attempt at a job, from the source to the signed manifest.
//!
//! ```text
//! fetch: download, check, unpack, cargo fetch -> build: cargo -> package: tarball -> upload: put, then sign
//! ```
//! Whatever happens, it ends with an outcome, its folder is removed, and nothing of it runs any more.

mod cargo;
mod failure;
mod manifests;
mod package;
mod source;
mod unpack;
mod upload;

#[cfg(test)]
mod unpack_tests;

use crate::{
    config::{Caps, Server},
    events::{Abandoned, Events},
    identity::Identity,
    log::Log,
    sandbox::{Bounds, Sandbox},
    session::{Finished, JobLimits},
    stop::Stop,
    workdir::{JobDir, WorkDir},
};
use cargo::Cargo;
use cratemill_protocol::{
    ArtifactName, Kind, Outcome, Stage,
    builder::{Job, JobRef},
    job::Timings,
    manifest::{self, Manifest},
    token::Token,
};
use failure::{Failure, size};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use upload::Artifact;

/// A failure's message is a sentence or two; it may quote what the crate or its build says, which has any length.
const MAX_MESSAGE_CHARS: usize = 2_000;

/// What all jobs of an agent share.
#[derive(Debug)]
pub struct Context {
    pub server: Server,
    pub identity: Identity,
    pub http: reqwest::Client,
    pub sandbox: Sandbox,
    pub work: WorkDir,
    pub caps: Caps,
}

/// How the session steers a running attempt.
#[derive(Debug)]
pub struct Control {
    pub stop: Stop,
    pub token: watch::Receiver<Token>,
    pub limits: JobLimits,
}

/// Works on an attempt and tells the session how it ended.
pub async fn run(context: Arc<Context>, job: Job, control: Control, events: Events) {
    let limits = context.caps.apply(&job.limits);
    let (log, pump) = Log::start(events.clone(), limits.log_bytes, control.limits.max_log_chunk_bytes);
    let wall = Duration::from_secs(u64::from(limits.wall_s));
    let bounds = Bounds { limits, deadline: Instant::now() + wall, stop: control.stop };
    let attempt = Work { context: &context, job: &job, bounds: &bounds, log: &log };
    let finished = attempt.finish(control.token).await;
    drop(log);
    // A cancelled attempt may be one that nobody takes events from any more.
    let sent = async {
        pump.finish().await?;
        events.finish(finished).await
    };
    if sent.await.is_err() {
        tracing::info!(job = %job.id, attempt = %job.attempt, "The attempt was given up");
    }
}

struct Work<'a> {
    context: &'a Context,
    job: &'a Job,
    bounds: &'a Bounds,
    log: &'a Log,
}

/// How far an attempt has come.
#[derive(Debug, Default)]
struct Progress {
    stage: Option<(Stage, Instant)>,
    timings: Timings,
}

impl Work<'_> {
    async fn finish(&self, token: watch::Receiver<Token>) -> Finished {
        let mut progress = Progress::default();
        let result = self.stages(&mut progress, token).await;
        let stage = progress.stage.map(|(stage, _)| stage);
        progress.end_stage();
        let timings = progress.timings;
        let (outcome, manifest, signature) = match result {
            Ok((manifest, signature)) => (Outcome::Succeeded { timings }, Some(manifest), Some(signature)),
            Err(Failure::Cancelled) => (Outcome::Cancelled, None, None),
            Err(Failure::Failed { class, message }) => {
                let message = message.chars().take(MAX_MESSAGE_CHARS).collect();
                (Outcome::Failed { class, message, stage, timings }, None, None)
            }
        };
        // Whoever reads the log finds the reason at its end. If nobody takes the log, nobody takes this.
        if let Outcome::Failed { message, .. } = &outcome {
            drop(self.log.note(format!("== failed: {message}")).await);
        }
        Finished { outcome, manifest, signature }
    }

    async fn stages(
        &self,
        progress: &mut Progress,
        token: watch::Receiver<Token>,
    ) -> Result<(String, String), Failure> {
        let package = format!("{}-{}", self.job.krate, self.job.version);
        // A version is text to the protocol; in a path it must be harmless.
        ArtifactName::parse(package.as_str())
            .map_err(|_| Failure::build(format!("{package:?} is not a usable folder name")))?;
        let dir = self.context.work.job(JobRef { job: self.job.id, attempt: self.job.attempt }).await?;
        let result = self.stages_in(&dir, &package, progress, token).await;
        dir.remove().await;
        result
    }

    async fn stages_in(
        &self,
        dir: &JobDir,
        package: &str,
        progress: &mut Progress,
        token: watch::Receiver<Token>,
    ) -> Result<(String, String), Failure> {
        let cargo =
            Cargo { context: self.context, job: self.job, dir, bounds: self.bounds, log: self.log, package };
        self.enter(progress, Stage::Fetch).await?;
        self.fetch(dir, package).await?;
        let artifact = match self.job.kind {
            Kind::Metadata => self.make_metadata(progress, &cargo, dir).await?,
            Kind::Tarball => self.make_tarball(progress, &cargo, dir).await?,
            kind => return Err(Failure::infrastructure(format!("this builder cannot make {kind}"))),
        };
        self.enter(progress, Stage::Upload).await?;
        self.hand_over(token, artifact).await
    }

    /// Tells viewers, and ends the stage before it.
    async fn enter(&self, progress: &mut Progress, stage: Stage) -> Result<(), Abandoned> {
        progress.end_stage();
        progress.stage = Some((stage, Instant::now()));
        self.log.stage(stage).await?;
        let Job { krate, version, kind, target, features, .. } = self.job;
        self.log.note(format!("== {stage}: {krate} {version} ({kind}, {target}, {features})")).await
    }

    async fn fetch(&self, dir: &JobDir, package: &str) -> Result<(), Failure> {
        let file = dir.path("source.crate");
        let limits = &self.bounds.limits;
        let download = source::download(self.context, self.job, limits.source_bytes, &file);
        let bytes = self.bounded(download).await??;
        let (into, root, max_bytes) = (dir.path("source"), package.to_owned(), limits.unpacked_bytes);
        let index = self.job.index.clone();
        let unpacked = blocking(move || {
            let file = std::io::BufReader::new(std::fs::File::open(file)?);
            let unpacked = unpack::unpack(file, &root, &into, max_bytes).map_err(Failure::from)?;
            if !into.join(&root).join("Cargo.toml").is_file() {
                return Err(Failure::build("the crate file holds no Cargo.toml"));
            }
            manifests::check(&into.join(&root), index.as_deref()).map_err(Failure::from)?;
            Ok(unpacked)
        });
        let unpacked = unpacked.await?;
        let note = format!(
            "== source: {}, sha256 {}, {} files, {}",
            size(bytes),
            self.job.sha256,
            unpacked.files,
            size(unpacked.bytes)
        );
        Ok(self.log.note(note).await?)
    }

    async fn make_metadata(
        &self,
        progress: &mut Progress,
        cargo: &Cargo<'_>,
        dir: &JobDir,
    ) -> Result<Artifact, Failure> {
        self.enter(progress, Stage::Build).await?;
        let (json, cargo_ms) = cargo.metadata().await?;
        progress.timings.cargo_ms += cargo_ms;
        self.enter(progress, Stage::Package).await?;
        let name = artifact_name(format!("{}-{}.metadata.json", self.job.krate, self.job.version))?;
        let path = dir.path("artifacts").join(&*name);
        tokio::fs::write(&path, json).await?;
        blocking(move || Ok(Artifact::of(name, path)?)).await
    }

    async fn make_tarball(
        &self,
        progress: &mut Progress,
        cargo: &Cargo<'_>,
        dir: &JobDir,
    ) -> Result<Artifact, Failure> {
        progress.timings.cargo_ms += cargo.fetch().await?;
        self.enter(progress, Stage::Build).await?;
        let (announced, cargo_ms) = cargo.build().await?;
        progress.timings.cargo_ms += cargo_ms;
        if announced.is_empty() {
            return Err(Failure::build("the crate has no binaries with these features"));
        }
        self.enter(progress, Stage::Package).await?;
        let Job { krate, version, target, .. } = self.job;
        let folder = format!("{krate}-{target}-v{version}");
        let name = artifact_name(format!("{folder}.tar.gz"))?;
        let path = dir.path("artifacts").join(&*name);
        let source = dir.path("source").join(cargo.package);
        let (target_dir, target) = (dir.path("target"), target.to_string());
        let max_bytes = self.bounds.limits.output_bytes;
        blocking(move || {
            let mut items = package::binaries(&announced, cargo::target_inside(), &target_dir, &target)?;
            items.extend(package::documents(&source)?);
            package::tarball(&folder, items, &path, max_bytes)?;
            Ok(Artifact::of(name, path)?)
        })
        .await
    }

    /// Uploads, then signs what was uploaded.
    async fn hand_over(
        &self,
        mut token: watch::Receiver<Token>,
        artifact: Artifact,
    ) -> Result<(String, String), Failure> {
        self.bounded(upload::upload(self.context, self.job, &mut token, &artifact)).await??;
        let manifest = Manifest {
            krate: self.job.krate.clone(),
            version: self.job.version.clone(),
            kind: self.job.kind,
            target: self.job.target.clone(),
            features: self.job.features.clone(),
            toolchain: self.context.sandbox.toolchain.version.clone(),
            source_sha256: self.job.sha256,
            artifacts: vec![artifact.entry.clone()],
        };
        let text = manifest.to_text();
        let signing = self.context.identity.sign(manifest::NAMESPACE, text.clone().into_bytes());
        let signature = self.bounded(signing).await?.map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "A manifest cannot be signed");
            Failure::infrastructure("the builder's key cannot sign the manifest")
        })?;
        let manifest::Entry { name, size: bytes, sha256 } = artifact.entry;
        self.log.note(format!("== stored: {name}, {}, sha256 {sha256}", size(bytes))).await?;
        Ok((text, signature))
    }

    /// Ends waiting with the job's time or lease.
    async fn bounded<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            result = future => Ok(result),
            () = self.bounds.stop.asked() => Err(Failure::Cancelled),
            () = tokio::time::sleep_until(self.bounds.deadline.into()) => {
                Err(Failure::breach(crate::sandbox::Breach::Wall, &self.bounds.limits))
            }
        }
    }
}

impl Progress {
    fn end_stage(&mut self) {
        let Some((stage, since)) = self.stage.take() else { return };
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let timing = match stage {
            Stage::Fetch => &mut self.timings.fetch_ms,
            Stage::Build => &mut self.timings.build_ms,
            Stage::Package => &mut self.timings.package_ms,
            Stage::Upload => &mut self.timings.upload_ms,
        };
        *timing += ms;
    }
}

impl From<unpack::Error> for Failure {
    fn from(error: unpack::Error) -> Self {
        match error {
            unpack::Error::Disk(error) => error.into(),
            unpack::Error::TooLarge(_) | unpack::Error::TooMany => Self::output_too_large(error.to_string()),
            unpack::Error::Malformed(_) | unpack::Error::Hostile { .. } => Self::build(error.to_string()),
        }
    }
}

impl From<manifests::Error> for Failure {
    fn from(error: manifests::Error) -> Self {
        match error {
            manifests::Error::Disk(error) => error.into(),
            error => Self::build(error.to_string()),
        }
    }
}

fn artifact_name(name: String) -> Result<ArtifactName, Failure> {
    ArtifactName::parse(name).map_err(|error| Failure::build(error.to_string()))
}

/// File work off the async threads. It is bounded by sizes, so it is waited for even when the job is cancelled.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::infrastructure(format!("the builder failed: {error}"))))
}

/// The client for sources and uploads.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    /// A host that does not answer is asked again, or another one is.
    const CONNECT_WAIT: Duration = Duration::from_secs(10);
    /// A transfer may take long, but not stand still.
    const READ_WAIT: Duration = Duration::from_mins(1);
    reqwest::Client::builder()
        .user_agent(concat!("cratemill-builder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WAIT)
        .read_timeout(READ_WAIT)
        .build()
}
