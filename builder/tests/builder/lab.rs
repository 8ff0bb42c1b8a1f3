//! Runs single attempts through the real job code, without a connection: the lab plays the session.

use crate::service::Service;
use axum::Router;
use cratemill_builder::{
    config::{Caps, Server},
    events::{Events, News, UPDATES},
    identity::Identity,
    job::{self, Context, Control},
    sandbox::{Cgroups, Sandbox},
    session::{Finished, JobLimits},
    stop,
    toolchain::Toolchain,
    workdir::WorkDir,
};
use cratemill_protocol::{
    Attempt, CrateName, FailureClass, Features, JobId, Kind, Limits, Outcome, Stage,
    builder::{Event, Job, JobRef},
    token::Token,
};
use ssh_key::{Algorithm, PrivateKey, rand_core::OsRng};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

pub(crate) struct Lab {
    pub(crate) service: Service,
    pub(crate) context: Arc<Context>,
    pub(crate) folder: TempDir,
    next_job: i64,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) finished: Finished,
    pub(crate) log: String,
    pub(crate) stages: Vec<Stage>,
}

impl Lab {
    /// With what this machine has to limit jobs.
    pub(crate) async fn new() -> Self {
        Self::start(true).await
    }

    /// As on a machine without cgroups.
    pub(crate) async fn without_cgroups() -> Self {
        Self::start(false).await
    }

    /// None on a machine without cgroups, which a test then says nothing about.
    pub(crate) async fn with_cgroups() -> Option<Self> {
        let lab = Self::new().await;
        if matches!(lab.context.sandbox.cgroups, Cgroups::None) {
            assert!(!can_make_cgroups(), "cgroups could be made here, but none were found");
            eprintln!("skipped: this machine lets us make no cgroups");
            return None;
        }
        Some(lab)
    }

    async fn start(cgroups: bool) -> Self {
        let service = Service::start(Router::new()).await;
        let folder = tempfile::tempdir().unwrap();
        let work = WorkDir::open(&folder.path().join("work")).unwrap();
        let toolchain = Toolchain::find(None).unwrap();
        let prefix = work.prefix();
        let cgroups = if cgroups { Cgroups::detect(&prefix) } else { Cgroups::None };
        let context = Context {
            server: Server::new(&service.url, None).unwrap(),
            identity: Identity::from_key(PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap()),
            http: job::http_client().unwrap(),
            sandbox: Sandbox { toolchain: Arc::new(toolchain), cgroups, prefix, reserve_bytes: 0 },
            work,
            caps: Caps::default(),
        };
        Self { service, context: Arc::new(context), folder, next_job: 0 }
    }

    /// A tarball job for `demo` 0.1.0 from these bytes.
    pub(crate) fn job(&mut self, source: Vec<u8>) -> Job {
        self.next_job += 1;
        let (source, sha256) = self.service.serve(&format!("{}/demo.crate", self.next_job), source);
        Job {
            id: JobId(self.next_job),
            attempt: Attempt(1),
            krate: CrateName::parse("demo").unwrap(),
            version: "0.1.0".into(),
            source,
            sha256,
            index: None,
            kind: Kind::Tarball,
            target: self.context.sandbox.toolchain.host.clone(),
            features: Features::default(),
            limits: Limits { wall_s: 60, ..Limits::default() },
            lease_s: 60,
            token: Token::new("secret"),
            upload: format!("{}/uploads", self.service.url),
        }
    }

    pub(crate) async fn build(&mut self, source: Vec<u8>) -> Run {
        let job = self.job(source);
        self.run(job).await
    }

    pub(crate) async fn build_within(&mut self, source: Vec<u8>, limits: Limits) -> Run {
        let job = Job { limits, ..self.job(source) };
        self.run(job).await
    }

    pub(crate) async fn run(&self, job: Job) -> Run {
        self.run_until(job, Duration::ZERO, |_| false).await
    }

    /// Cancels when an event wants it, and kills what is left after `grace`.
    pub(crate) async fn run_until(
        &self,
        job: Job,
        grace: Duration,
        wants_end: impl Fn(&Event) -> bool,
    ) -> Run {
        let (sender, mut updates) = mpsc::channel(UPDATES);
        let job_ref = JobRef { job: job.id, attempt: job.attempt };
        let (events, credits) = Events::new(job_ref, sender);
        let (_token, token) = watch::channel(job.token.clone());
        let limits = JobLimits { max_log_chunk_bytes: 32 * 1024 };
        let (stopper, stop) = stop::channel();
        let control = Control { stop, token, limits };
        let task = tokio::spawn(job::run(Arc::clone(&self.context), job, control, events));
        let (mut log, mut stages) = (String::new(), Vec::new());
        loop {
            let update = updates.recv().await.expect("every attempt ends with an outcome");
            match update.news {
                News::Event(event) => {
                    credits.add_permits(1);
                    if wants_end(&event) {
                        stopper.stop(grace);
                    }
                    match event {
                        Event::Stage { stage } => stages.push(stage),
                        Event::Log { offset, text } => {
                            assert_eq!(offset, log.len() as u64, "offsets count what came before");
                            log.push_str(&text);
                        }
                    }
                }
                News::Finished(finished) => {
                    task.await.unwrap();
                    self.assert_nothing_is_left();
                    return Run { finished: *finished, log, stages };
                }
            }
        }
    }

    fn assert_nothing_is_left(&self) {
        let jobs = std::fs::read_dir(self.context.work.root().join("jobs")).unwrap();
        assert_eq!(jobs.count(), 0, "the attempt's folder is removed");
        let prefix = &self.context.sandbox.prefix;
        let mut groups = vec![];
        if let Cgroups::V1 { memory, pids, .. } = &self.context.sandbox.cgroups {
            groups = vec![memory, pids];
        }
        for base in groups {
            let left = std::fs::read_dir(base).unwrap().flatten();
            let left: Vec<_> = left.filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).collect();
            assert!(left.is_empty(), "the attempt's cgroups are removed: {left:?}");
        }
    }
}

/// Root with the usual mounts of version 1.
fn can_make_cgroups() -> bool {
    ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"].iter().all(|folder| {
        let probe = std::path::Path::new(folder).join(format!("cratemill-can-{}", std::process::id()));
        std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
    })
}

impl Run {
    pub(crate) fn assert_succeeded(&self) {
        assert!(
            matches!(self.finished.outcome, Outcome::Succeeded { .. }),
            "{:?}\n{}",
            self.finished,
            self.log
        );
    }

    /// It failed with this class, and both message and log say so.
    pub(crate) fn assert_failed(&self, expected: FailureClass, words: &str) {
        let Outcome::Failed { class, message, .. } = &self.finished.outcome else {
            panic!("{:?}\n{}", self.finished, self.log);
        };
        assert_eq!(*class, expected, "{message}\n{}", self.log);
        assert!(message.contains(words), "{message}\n{}", self.log);
        assert!(
            self.log.trim_end().ends_with(message.as_str()),
            "the log ends with the reason:\n{}",
            self.log
        );
        assert_eq!((&self.finished.manifest, &self.finished.signature), (&None, &None));
    }
}
