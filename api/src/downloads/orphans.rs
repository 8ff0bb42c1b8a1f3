//! What dead runs left in the folder of the journal: found, read, and handed over one after the other.
//!
//! This is a task of its own, since it reads whole files, and a disk may hang: no download waits for it.

use super::{
    journal::{ENDING, NEW_ENDING, in_time, records},
    metrics,
    publish::Message,
};
use cratemill_protocol::{bus::DownloadBatch, download::JOURNAL_DAYS};
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// A run of another node may die at any time; nobody waits for what it left.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_hours(24);
/// What is too old to be counted is kept for people, under another name.
const EXPIRED_ENDING: &str = "expired";

/// What a dead run left. It is locked, so that nobody else takes it over too.
#[derive(Debug)]
pub(super) struct Orphan {
    path: PathBuf,
    lock: File,
    pub(super) messages: Vec<Message>,
}

impl Orphan {
    /// The bus has all of it.
    pub(super) async fn remove(self) {
        let path = self.path.clone();
        if let Err(error) = in_time(move || fs::remove_file(path)).await {
            tracing::warn!(%error, file = %self.path.display(), "what a dead run left stays, and is told again");
            // Not by this process, though: it keeps the lock until its end.
            std::mem::forget(self.lock);
        }
    }
}

/// Hands over what it finds, for as long as somebody takes it.
pub(super) async fn find(folder: PathBuf, found: mpsc::Sender<Orphan>) {
    // None is read before there is a place for it: its memory is bounded.
    while let Ok(place) = found.reserve().await {
        let look = folder.clone();
        match tokio::task::spawn_blocking(move || next(&look)).await {
            Ok(Ok(Some(orphan))) => {
                place.send(orphan);
                continue;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot look for counts that a dead run left"),
            Err(error) => tracing::error!(%error, "looking for counts that a dead run left broke"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = found.closed() => return,
        }
    }
}

/// One that has anything; those that have nothing go.
fn next(folder: &Path) -> io::Result<Option<Orphan>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let taken = match path.extension().and_then(OsStr::to_str) {
            Some(ENDING) => take(&path),
            // One that died before it had a name promised nothing to anybody.
            Some(NEW_ENDING) => lock(&path).map(|locked| {
                if locked.is_some() {
                    let _ = fs::remove_file(&path);
                }
                None
            }),
            _ => continue,
        };
        match taken {
            Ok(Some(orphan)) if !orphan.messages.is_empty() => return Ok(Some(orphan)),
            Ok(Some(orphan)) => {
                if let Err(error) = fs::remove_file(&orphan.path) {
                    tracing::warn!(%error, file = %path.display(), "an empty file stays behind");
                }
            }
            Ok(None) => {}
            // The others behind it are as good as ever.
            Err(error) => tracing::warn!(%error, file = %path.display(), "cannot read what a dead run left"),
        }
    }
    Ok(None)
}

/// None if its run lives, or somebody else has it.
fn take(path: &Path) -> io::Result<Option<Orphan>> {
    let Some(mut file) = lock(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (batches, torn) = records(bytes.into());
    let messages: Vec<Message> = batches.into_iter().filter_map(read).collect();
    let downloads: u64 = messages.iter().map(|message| message.downloads).sum();
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    if age > DAY * JOURNAL_DAYS.unsigned_abs() {
        metrics::dropped(downloads);
        tracing::error!(downloads, file = %path.display(), "what a dead run left is too old to be counted");
        fs::rename(path, path.with_extension(EXPIRED_ENDING))?;
        return Ok(None);
    }
    if downloads > 0 {
        tracing::info!(downloads, torn, file = %path.display(), "taking over what a dead run left");
    }
    Ok(Some(Orphan { path: path.to_owned(), lock: file, messages }))
}

/// The file, if it can be locked and still has its name.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
    let file = match OpenOptions::new().read(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) => return gone(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another one may have removed it or put another file in its place before the lock was ours.
    let (ours, named) = match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours, named),
        (Err(error), _) | (_, Err(error)) => return gone(error),
    };
    Ok(((ours.dev(), ours.ino()) == (named.dev(), named.ino())).then_some(file))
}

/// A record whose checksum is right was a batch when it was written.
fn read(payload: bytes::Bytes) -> Option<Message> {
    match DownloadBatch::decode(&payload) {
        Ok(batch) => Some(Message::of(&batch, payload)),
        Err(error) => {
            tracing::error!(%error, "a batch that a dead run left is of another version: it is dropped");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::journal::{Journal, tests::folder},
        *,
    };
    use bytes::Bytes;
    use cratemill_protocol::{
        ArtifactId,
        bus::{ClientClass, DownloadCount},
    };

    fn batch(number: u64) -> Bytes {
        let (artifact, client) = (ArtifactId(1), ClientClass::Curl);
        let counts = vec![DownloadCount { artifact, day: 20_000, client, count: number }];
        DownloadBatch { node: "n".into(), epoch: 1, batch: number, counts, installs: vec![] }.encode().into()
    }

    async fn journal(folder: &Path, epoch: i64, numbers: &[u64]) -> Journal {
        let mut journal = Journal::open(folder, "n", epoch, 0).unwrap();
        for number in numbers {
            journal.append(&batch(*number)).await.unwrap();
        }
        journal
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    fn downloads(orphan: &Orphan) -> Vec<u64> {
        orphan.messages.iter().map(|message| message.downloads).collect()
    }

    #[tokio::test]
    async fn what_a_dead_run_left_is_taken_over_once() {
        let folder = folder();
        let dead = journal(folder.path(), 1, &[1, 2]).await;
        let _alive = journal(folder.path(), 2, &[7]).await;
        assert!(next(folder.path()).unwrap().is_none(), "both are alive");
        // As when its process is killed: the lock goes, the file stays.
        drop(dead);
        let orphan = next(folder.path()).unwrap().unwrap();
        assert_eq!(downloads(&orphan), [1, 2]);
        assert!(next(folder.path()).unwrap().is_none(), "it is taken over");
        orphan.remove().await;
        assert_eq!(files(folder.path()), 1);
    }

    #[tokio::test]
    async fn a_file_that_was_written_anew_is_its_runs() {
        let folder = folder();
        let mut run = journal(folder.path(), 1, &[1, 2, 3]).await;
        let before = run.length();
        run.rewrite(vec![batch(2)]).await.unwrap();
        assert!(run.length() < before);
        run.append(&batch(4)).await.unwrap();
        assert!(next(folder.path()).unwrap().is_none(), "it is still alive");
        drop(run);
        assert_eq!(downloads(&next(folder.path()).unwrap().unwrap()), [2, 4]);
    }

    /// Whoever looks for what dead runs left takes a file that is just being made for one.
    #[tokio::test]
    async fn a_file_that_is_being_made_is_in_nobodys_way() {
        let folder = folder();
        let looking = {
            let folder = folder.path().to_owned();
            std::thread::spawn(move || {
                while folder.exists() {
                    let _ = next(&folder);
                }
            })
        };
        for epoch in 0..300 {
            Journal::open(folder.path(), "n", epoch, 0).unwrap();
        }
        folder.close().unwrap();
        looking.join().unwrap();
    }

    /// Empty ones, half-made ones, and what cannot be read do not keep the others from being found.
    #[tokio::test]
    async fn strange_files_are_in_nobodys_way() {
        let folder = folder();
        for name in ["a-1-0.downloads", "b-1-0.new", "c.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("d.downloads")).unwrap();
        fs::write(folder.path().join("e-1-0.downloads"), "rubbish that is no record").unwrap();
        drop(journal(folder.path(), 1, &[5]).await);
        let orphan = next(folder.path()).unwrap().unwrap();
        assert_eq!(downloads(&orphan), [5]);
        orphan.remove().await;
        assert!(next(folder.path()).unwrap().is_none());
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[tokio::test]
    async fn what_is_too_old_is_kept_for_people() {
        let folder = folder();
        drop(journal(folder.path(), 1, &[1]).await);
        let path = folder.path().join("n-1-0.downloads");
        let old = std::time::SystemTime::now() - DAY * (JOURNAL_DAYS.unsigned_abs() + 1);
        File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(next(folder.path()).unwrap().is_none());
        assert!(path.with_extension(EXPIRED_ENDING).exists() && !path.exists());
    }
}
