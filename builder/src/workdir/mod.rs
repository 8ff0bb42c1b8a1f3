//! The agent's folder on disk: whose it is, where things are, and what a killed agent left in it.
//!
//! ```text
//! lock         held by the running agent: one folder, one agent
//! instance     a random name, so that cgroups can be told from those of other agents
//! cargo-home/  cargo's download caches, by number; the newest is shared by all new jobs
//! jobs/<job>-<attempt>/
//! left/        what a killed agent left and nobody could remove yet
//! ```

mod cache;
mod remove;

pub use cache::{Cache, MAX_BYTES as MAX_CACHE_BYTES};

use anyhow::{Context, bail};
use cache::Caches;
use cratemill_protocol::builder::JobRef;
use nix::fcntl::{Flock, FlockArg};
use rand::Rng;
use remove::remove_tree;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug)]
pub struct WorkDir {
    root: PathBuf,
    instance: String,
    _lock: Flock<File>,
    caches: Caches,
}

impl WorkDir {
    /// Takes the folder for this process and removes what jobs of a killed agent left.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot use the work folder {}", root.display());
        fs::create_dir_all(root).with_context(context)?;
        let root = root.canonicalize().with_context(context)?;
        let file = File::create(root.join("lock")).with_context(context)?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!("another builder uses {}: give each its own --work-dir", root.display());
        };
        let instance = instance(&root.join("instance")).with_context(context)?;
        put_aside(&root, "jobs").with_context(context)?;
        fs::create_dir(root.join("jobs")).with_context(context)?;
        remove_left(&root);
        let caches = Caches::open(root.join("cargo-home"), cache::LARGE_BYTES).with_context(context)?;
        Ok(Self { root, instance, _lock: lock, caches })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins the name of every cgroup of this agent.
    pub fn prefix(&self) -> String {
        format!("cratemill-{}-", self.instance)
    }

    /// Removes what comes back by itself, as soon as no attempt uses it; nobody needs to wait for that.
    pub fn make_room(&self) {
        if let Err(error) = self.caches.give_up() {
            tracing::warn!(%error, "The download cache stays");
        }
    }

    /// A new, empty folder for an attempt.
    pub async fn job(&self, job: JobRef) -> io::Result<JobDir> {
        let root = self.root.join("jobs").join(format!("{}-{}", job.job, job.attempt));
        let cache = self.caches.get().await?;
        let making = tokio::task::spawn_blocking(move || {
            remove_tree(&root)?;
            let dir = JobDir { root, cache, removed: false };
            let mut names = ["source", "target", "scratch", "artifacts"].into_iter();
            names.try_for_each(|name| fs::create_dir_all(dir.path(name)))?;
            Ok(dir)
        });
        making.await.map_err(io::Error::other)?
    }
}

fn instance(file: &Path) -> io::Result<String> {
    let known = fs::read_to_string(file).unwrap_or_default();
    if known.len() == 16 && known.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(known);
    }
    let instance = random_name();
    fs::write(file, &instance)?;
    Ok(instance)
}

fn random_name() -> String {
    hex::encode(rand::rng().random::<[u8; 8]>())
}

/// Out of the way at once, whatever is in it.
fn put_aside(root: &Path, name: &str) -> io::Result<()> {
    let left = root.join("left");
    fs::create_dir_all(&left)?;
    match fs::rename(root.join(name), left.join(random_name())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What cannot be removed takes room, but keeps nobody from working.
fn remove_left(root: &Path) {
    let left = root.join("left");
    for entry in fs::read_dir(&left).into_iter().flatten().flatten() {
        if let Err(error) = remove_tree(&entry.path()) {
            tracing::warn!(%error, folder = %left.display(), "What a killed builder left cannot be removed");
        }
    }
}

/// The folder of one attempt, and the download cache that it uses from beginning to end.
#[derive(Debug)]
pub struct JobDir {
    root: PathBuf,
    cache: Arc<Cache>,
    removed: bool,
}

impl JobDir {
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Takes as long as the build liked to make it take, so it is done beside the async threads.
    pub async fn remove(mut self) {
        self.removed = true;
        let (root, cache) = (self.root.clone(), Arc::clone(&self.cache));
        drop(self);
        // It ends early only when the runtime does.
        drop(tokio::task::spawn_blocking(move || remove_job(&root)).await);
        drop(cache::release(cache));
    }
}

/// Only of an attempt that panicked. A cache that has no other user goes with the next start.
impl Drop for JobDir {
    fn drop(&mut self) {
        if !self.removed {
            remove_job(&self.root);
        }
    }
}

fn remove_job(root: &Path) {
    if let Err(error) = remove_tree(root) {
        tracing::warn!(%error, folder = %root.display(), "A job's folder stays until the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{Attempt, JobId};

    #[tokio::test]
    async fn one_agent_per_folder_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        assert!(WorkDir::open(dir.path()).unwrap_err().to_string().contains("another builder"));
        let job = work.job(JobRef { job: JobId(1), attempt: Attempt(1) }).await.unwrap();
        let left = job.path("target").join("left");
        fs::write(&left, "x").unwrap();
        // As after kill -9: no drop ran.
        std::mem::forget(job);
        let prefix = work.prefix();
        drop(work);
        let work = WorkDir::open(dir.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(work.prefix(), prefix);
    }
    /// Sets or clears the flag that no permission overrules; false where that is not possible.
    fn set_immutable(flag: &str, file: &Path) -> bool {
        let chattr = std::process::Command::new("chattr").arg(flag).arg(file).output();
        chattr.is_ok_and(|output| output.status.success())
    }

    #[tokio::test]
    async fn a_leftover_that_cannot_be_removed_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let job = work.job(JobRef { job: JobId(1), attempt: Attempt(1) }).await.unwrap();
        let stuck = job.path("target").join("stuck");
        fs::write(&stuck, "x").unwrap();
        fs::write(job.path("target").join("other"), "x").unwrap();
        if !set_immutable("+i", &stuck) {
            eprintln!("skipped: no file can be made immutable here");
            return;
        }
        std::mem::forget(job);
        drop(work);
        let opened = WorkDir::open(dir.path());
        let mut left: Vec<PathBuf> = files(&dir.path().join("left"));
        for file in &left {
            assert!(set_immutable("-i", file));
        }
        left.retain(|file| file.file_name() != stuck.file_name());
        assert_eq!(left, Vec::<PathBuf>::new(), "the rest is gone");
        let work = opened.unwrap();
        work.job(JobRef { job: JobId(1), attempt: Attempt(1) }).await.unwrap().remove().await;
        drop(work);
        WorkDir::open(dir.path()).unwrap();
        assert_eq!(files(&dir.path().join("left")), Vec::<PathBuf>::new(), "the next start tries again");
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let (mut files, mut todo) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let list = if entry.file_type().unwrap().is_dir() { &mut todo } else { &mut files };
                list.push(entry.path());
            }
        }
        files
    }
}
