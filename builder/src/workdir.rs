//! The agent's folder on disk: whose it is, where things are, and what a killed agent left in it.
//!
//! ```text
//! lock         held by the running agent: one folder, one agent
//! instance     a random name, so that cgroups can be told from those of other agents
//! cargo-home/  cargo's download cache, shared by all jobs; written only while fetching
//! jobs/<job>-<attempt>/
//! ```

use anyhow::{Context, bail};
use cratemill_protocol::builder::JobRef;
use nix::fcntl::{Flock, FlockArg};
use rand::Rng;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};

/// A cache beyond this is emptied when no job runs: what is needed comes back with the next fetch.
const MAX_CACHE_BYTES: u64 = 10 << 30;
/// Adding up a large cache takes a second or two.
const CHECK_CACHE_EVERY: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub struct WorkDir {
    root: PathBuf,
    instance: String,
    _lock: Flock<File>,
    /// Read: jobs that use the cache. Write: whoever empties it.
    cache: RwLock<()>,
    checked: Mutex<Option<Instant>>,
}

impl WorkDir {
    /// Takes the folder for this process and removes what jobs of a killed agent left.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot use the work folder {}", root.display());
        fs::create_dir_all(root.join("cargo-home")).with_context(context)?;
        let root = root.canonicalize().with_context(context)?;
        let file = File::create(root.join("lock")).with_context(context)?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!("another builder uses {}: give each its own --work-dir", root.display());
        };
        let instance = instance(&root.join("instance")).with_context(context)?;
        remove_dir(&root.join("jobs")).with_context(context)?;
        fs::create_dir(root.join("jobs")).with_context(context)?;
        Ok(Self { root, instance, _lock: lock, cache: RwLock::new(()), checked: Mutex::new(None) })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins the name of every cgroup of this agent.
    pub fn prefix(&self) -> String {
        format!("cratemill-{}-", self.instance)
    }

    /// A new, empty folder for an attempt.
    pub fn job(&self, job: JobRef) -> io::Result<JobDir> {
        let root = self.root.join("jobs").join(format!("{}-{}", job.job, job.attempt));
        remove_dir(&root)?;
        for name in ["source", "target", "scratch", "artifacts"] {
            fs::create_dir_all(root.join(name))?;
        }
        Ok(JobDir { root })
    }

    /// The download cache, for as long as the guard lives.
    pub async fn cargo_home(&self) -> (PathBuf, RwLockReadGuard<'_, ()>) {
        self.empty_large_cache().await;
        (self.root.join("cargo-home"), self.cache.read().await)
    }

    async fn empty_large_cache(&self) {
        let mut checked = self.checked.lock().await;
        if checked.is_some_and(|at| at.elapsed() < CHECK_CACHE_EVERY) {
            return;
        }
        let Ok(_alone) = self.cache.try_write() else { return };
        *checked = Some(Instant::now());
        let home = self.root.join("cargo-home");
        let emptied = tokio::task::spawn_blocking(move || {
            if crate::sandbox::measure_bytes(&home, MAX_CACHE_BYTES) < MAX_CACHE_BYTES {
                return Ok(());
            }
            tracing::info!("The download cache is over {MAX_CACHE_BYTES} bytes and is emptied");
            remove_dir(&home)?;
            fs::create_dir(&home)
        });
        if let Ok(Err(error)) = emptied.await {
            tracing::warn!(%error, "The download cache cannot be emptied");
        }
    }
}

fn instance(file: &Path) -> io::Result<String> {
    let known = fs::read_to_string(file).unwrap_or_default();
    if known.len() == 16 && known.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(known);
    }
    let instance = hex::encode(rand::rng().random::<[u8; 8]>());
    fs::write(file, &instance)?;
    Ok(instance)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A build may leave folders that their owner cannot look into.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_accessible(dir)?;
            fs::remove_dir_all(dir)
        }
        result => result,
    }
}

fn make_accessible(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_accessible(&entry.path())?;
        }
    }
    Ok(())
}

/// The folder of one attempt; gone when dropped.
#[derive(Debug)]
pub struct JobDir {
    root: PathBuf,
}

impl JobDir {
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

impl Drop for JobDir {
    fn drop(&mut self) {
        if let Err(error) = remove_dir(&self.root) {
            tracing::warn!(%error, folder = %self.root.display(), "A job's folder stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{Attempt, JobId};

    #[test]
    fn one_agent_per_folder_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        assert!(WorkDir::open(dir.path()).unwrap_err().to_string().contains("another builder"));
        let job = work.job(JobRef { job: JobId(1), attempt: Attempt(1) }).unwrap();
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
}
