//! Cargo's download cache: shared by all jobs, and replaced by an empty one when it is large.
//!
//! A job keeps the cache that it began with, since what its fetch phase put there is what its build phase needs. So a
//! large cache is not emptied: new jobs get a new one, and the last job that uses the old one removes it. That works
//! however many jobs run at all times.

use super::remove::remove_tree;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, task::JoinHandle};

/// A cache beyond this is replaced: what is needed comes back with the next fetch.
pub(super) const LARGE_BYTES: u64 = 10 << 30;
/// A job that lets its cache grow beyond this while it fetches is killed.
pub const MAX_BYTES: u64 = 2 * LARGE_BYTES;
/// Adding up a large cache takes a second or two.
const CHECK_EVERY: Duration = Duration::from_mins(10);

#[derive(Debug)]
pub(super) struct Caches {
    folder: PathBuf,
    large_bytes: u64,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    cache: Arc<Cache>,
    checked: Option<Instant>,
}

/// One generation; its folder's name is its number.
#[derive(Debug)]
pub struct Cache {
    number: u64,
    path: PathBuf,
    full: AtomicBool,
}

impl Cache {
    fn make(folder: &Path, number: u64) -> io::Result<Arc<Self>> {
        let path = folder.join(number.to_string());
        fs::create_dir_all(&path)?;
        Ok(Arc::new(Self { number, path, full: AtomicBool::new(false) }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next job gets another one.
    pub fn set_full(&self) {
        self.full.store(true, Ordering::Relaxed);
    }
}

impl Caches {
    /// Goes on with the newest cache in the folder; the others were in use when an agent was killed.
    pub(super) fn open(folder: PathBuf, large_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let names = fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        let number = |name: &std::ffi::OsString| name.to_str()?.parse::<u64>().ok();
        let newest = names.iter().filter_map(number).max().unwrap_or(0);
        for name in names.iter().filter(|name| number(name) != Some(newest)) {
            remove_logged(&folder.join(name));
        }
        let cache = Cache::make(&folder, newest)?;
        Ok(Self { folder, large_bytes, current: Mutex::new(Current { cache, checked: None }) })
    }

    /// The cache for a new job.
    pub(super) async fn get(&self) -> io::Result<Arc<Cache>> {
        let mut current = self.current.lock().await;
        if !current.cache.full.load(Ordering::Relaxed) && self.is_large(&mut current).await {
            current.cache.set_full();
        }
        if current.cache.full.load(Ordering::Relaxed) {
            tracing::info!(cache = %current.cache.path.display(), "The download cache is large: jobs get a new one");
            drop(self.replace(&mut current)?);
        }
        Ok(Arc::clone(&current.cache))
    }

    /// Its room is wanted: what is in it goes, as soon as no job uses it. Nothing happens while somebody is at it.
    pub(super) fn give_up(&self) -> io::Result<Option<JoinHandle<()>>> {
        let Ok(mut current) = self.current.try_lock() else { return Ok(None) };
        if fs::read_dir(&current.cache.path)?.next().is_none() {
            return Ok(None);
        }
        tracing::info!(cache = %current.cache.path.display(), "The download cache makes room");
        self.replace(&mut current)
    }

    fn replace(&self, current: &mut Current) -> io::Result<Option<JoinHandle<()>>> {
        let next = Cache::make(&self.folder, current.cache.number + 1)?;
        Ok(release(std::mem::replace(&mut current.cache, next)))
    }

    async fn is_large(&self, current: &mut Current) -> bool {
        if current.checked.is_some_and(|at| at.elapsed() < CHECK_EVERY) {
            return false;
        }
        current.checked = Some(Instant::now());
        let (path, large_bytes) = (current.cache.path.clone(), self.large_bytes);
        let measuring =
            tokio::task::spawn_blocking(move || crate::sandbox::measure_bytes(&path, large_bytes));
        measuring.await.is_ok_and(|bytes| bytes >= large_bytes)
    }
}

/// Gives a cache back; with its last user a replaced one goes. The current one has a user in [`Caches`]. Nobody needs to
/// wait for it.
pub(super) fn release(cache: Arc<Cache>) -> Option<JoinHandle<()>> {
    let cache = Arc::into_inner(cache)?;
    Some(tokio::task::spawn_blocking(move || remove_logged(&cache.path)))
}

fn remove_logged(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!(%error, folder = %path.display(), "An old download cache cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cache_makes_room_once_its_jobs_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let caches = Caches::open(dir.path().to_owned(), u64::MAX).unwrap();
        assert!(caches.give_up().unwrap().is_none(), "there is nothing in it");
        let job = caches.get().await.unwrap();
        fs::write(job.path().join("download"), "x").unwrap();
        assert!(caches.give_up().unwrap().is_none(), "a job uses it");
        assert!(job.path().join("download").exists());
        let next = caches.get().await.unwrap();
        assert_ne!(next.path(), job.path());
        let old = job.path().to_owned();
        release(job).expect("it was the last").await.unwrap();
        assert!(!old.exists());
        fs::write(next.path().join("download"), "x").unwrap();
        let old = next.path().to_owned();
        assert!(release(next).is_none(), "it is the current one");
        caches.give_up().unwrap().expect("nobody uses it").await.unwrap();
        assert!(!old.exists());
    }

    #[tokio::test]
    async fn a_large_cache_is_replaced_while_jobs_use_it() {
        let dir = tempfile::tempdir().unwrap();
        let caches = Caches::open(dir.path().to_owned(), 100_000).unwrap();
        let (one, two) = (caches.get().await.unwrap(), caches.get().await.unwrap());
        fs::write(one.path().join("download"), vec![1; 200_000]).unwrap();
        assert_eq!(caches.get().await.unwrap().path(), one.path(), "it is not looked at all the time");
        caches.current.lock().await.checked = None;
        let three = caches.get().await.unwrap();
        assert_ne!(three.path(), one.path());
        let old = one.path().to_owned();
        assert!(release(one).is_none());
        assert!(old.join("download").exists(), "another job uses it");
        release(two).expect("it was the last").await.unwrap();
        assert!(!old.exists() && three.path().exists());

        let new = three.path().to_owned();
        three.set_full();
        let four = caches.get().await.unwrap();
        assert_ne!(four.path(), new);
        // As after kill -9: nobody released them.
        drop(three);
        assert!(new.exists());
        let latest = four.path().to_owned();
        let caches = Caches::open(dir.path().to_owned(), 100_000).unwrap();
        assert_eq!(caches.get().await.unwrap().path(), latest);
        assert!(!new.exists());
    }
}
