//! Batches that the bus does not take now, in a file of each run of a node.
//!
//! A record is its length, a checksum and an encoded batch. What was appended outlives the process, and the machine too. A
//! file is emptied when the bus has all of it; a run that dies in between leaves it for whoever runs in the same folder
//! ([`super::orphans`]). That some of it is on the bus already does no harm: batches have numbers.
//!
//! Whoever holds a file's lock owns it. It gets its name only when it is locked, so that nobody takes it for a dead run's.

use anyhow::{Context as _, Result};
use bytes::{Buf, Bytes};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};

pub(super) const ENDING: &str = "downloads";
/// Of a file that is about to get its name.
pub(super) const NEW_ENDING: &str = "new";
const HEAD_BYTES: usize = 8;
/// How often a file is made anew whose name somebody takes away.
const TRIES: u32 = 10;
/// A disk that takes longer hangs: downloads go on, and their counts wait in memory.
const PATIENCE: Duration = Duration::from_secs(1);
/// Threads that may be with the disk at once.
static THREADS: Semaphore = Semaphore::const_new(4);

/// This run's file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
}

impl Journal {
    /// `number` tells it from others of the same run, which was given up.
    pub(super) fn open(folder: &Path, node: &str, epoch: i64, number: u32) -> Result<Self> {
        let why = || format!("the folder for counts that wait, {}, cannot be used", folder.display());
        fs::create_dir_all(folder).with_context(why)?;
        let path = path(folder, node, epoch, number);
        let file = create(&path, &[]).with_context(why)?;
        Ok(Self { path, file: Arc::new(file), length: 0 })
    }

    /// With these in it, when others of the same run were given up.
    pub(super) async fn begin(
        folder: &Path,
        node: &str,
        epoch: i64,
        number: u32,
        batches: Vec<Bytes>,
    ) -> io::Result<Self> {
        let path = path(folder, node, epoch, number);
        let (file, length) = create_in_time(path.clone(), batches).await?;
        Ok(Self { path, file: Arc::new(file), length })
    }

    /// Returns when it is on the disk. After an error the file is of no use any more.
    pub(super) async fn append(&mut self, batch: &Bytes) -> io::Result<()> {
        let record = record(batch)?;
        self.length += record.len() as u64;
        let file = Arc::clone(&self.file);
        in_time(move || (&*file).write_all(&record).and_then(|()| file.sync_data())).await
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Keeps only these: what the bus has by now takes no room any more. After an error the file is
    /// of no use any more: another one may have its name.
    pub(super) async fn rewrite(&mut self, batches: Vec<Bytes>) -> io::Result<()> {
        let (file, length) = create_in_time(self.path.clone(), batches).await?;
        (self.file, self.length) = (Arc::new(file), length);
        Ok(())
    }

    /// The bus has all of it. After an error the file is of no use any more: it may be emptied later.
    pub(super) async fn clear(&mut self) -> io::Result<()> {
        if self.length > 0 {
            let file = Arc::clone(&self.file);
            in_time(move || file.set_len(0)).await?;
            self.length = 0;
        }
        Ok(())
    }

    /// Others have what is in it.
    pub(super) async fn remove(self) -> io::Result<()> {
        let path = self.path.clone();
        in_time(move || fs::remove_file(path)).await
    }
}

impl Drop for Journal {
    /// What is in it is for the next run.
    fn drop(&mut self) {
        if self.length == 0
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %self.path.display(), "an empty file stays behind");
        }
    }
}

fn path(folder: &Path, node: &str, epoch: i64, number: u32) -> PathBuf {
    folder.join(format!("{node}-{epoch}-{number}.{ENDING}"))
}

async fn create_in_time(path: PathBuf, batches: Vec<Bytes>) -> io::Result<(File, u64)> {
    in_time(move || {
        let mut records = Vec::new();
        for batch in &batches {
            records.extend(record(batch)?);
        }
        Ok((create(&path, &records)?, records.len() as u64))
    })
    .await
}

/// A file with this in it, locked before it has its name, and on the disk with it.
fn create(path: &Path, records: &[u8]) -> io::Result<File> {
    let new = path.with_extension(NEW_ENDING);
    let mut tries = 1..TRIES;
    let file = loop {
        match name(&new, path, records) {
            // Between its making and its lock, another process took it for what a dead run left.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {}
            named => break named?,
        }
    };
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
    Ok(file)
}

fn name(new: &Path, path: &Path, records: &[u8]) -> io::Result<File> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().append(true).create_new(true).open(new)?;
    file.lock()?;
    file.write_all(records)?;
    file.sync_data()?;
    fs::rename(new, path)?;
    Ok(file)
}

fn record(batch: &Bytes) -> io::Result<Vec<u8>> {
    let length = u32::try_from(batch.len()).map_err(io::Error::other)?;
    let mut record = Vec::with_capacity(HEAD_BYTES + batch.len());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&crc32fast::hash(batch).to_le_bytes());
    record.extend_from_slice(batch);
    Ok(record)
}

/// All whole records, and how many bytes are left over.
pub(super) fn records(mut bytes: Bytes) -> (Vec<Bytes>, usize) {
    let mut records = Vec::new();
    while bytes.len() >= HEAD_BYTES {
        let mut head = bytes.slice(..HEAD_BYTES);
        let (length, sum) = (head.get_u32_le() as usize, head.get_u32_le());
        let Some(end) = HEAD_BYTES.checked_add(length).filter(|end| *end <= bytes.len()) else { break };
        let batch = bytes.slice(HEAD_BYTES..end);
        if crc32fast::hash(&batch) != sum {
            break;
        }
        records.push(batch);
        bytes.advance(end);
    }
    (records, bytes.len())
}

/// For whoever must not wait for a disk that hangs.
pub(super) async fn in_time<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let too_long = || io::Error::new(io::ErrorKind::TimedOut, "the disk takes too long");
    // What hangs keeps its thread, and there are not threads without end.
    let permit = THREADS.try_acquire().map_err(|_| too_long())?;
    let work = move || {
        let _permit = permit;
        work()
    };
    match timeout(PATIENCE, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => Err(too_long()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// In memory where there is a file system of it: a disk that is slow is given up, which is another matter.
    pub(in super::super) fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    #[tokio::test]
    async fn a_run_that_leaves_nothing_leaves_no_file() {
        let folder = folder();
        let mut run = Journal::open(folder.path(), "n", 1, 0).unwrap();
        run.append(&"a".into()).await.unwrap();
        run.clear().await.unwrap();
        drop(run);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_torn_end_costs_nothing_before_it() {
        let folder = folder();
        let mut run = Journal::open(folder.path(), "n", 1, 0).unwrap();
        for batch in ["first", "second"] {
            run.append(&batch.into()).await.unwrap();
        }
        let whole = fs::read(&run.path).unwrap();
        let first_end = HEAD_BYTES + "first".len();
        for end in 0..whole.len() {
            let (batches, torn) = records(whole[..end].to_vec().into());
            let expected = usize::from(end >= first_end);
            assert_eq!((batches.len(), torn), (expected, end - expected * first_end), "{end}");
        }
        for position in 0..whole.len() {
            let mut broken = whole.clone();
            broken[position] ^= 0x40;
            let (batches, _) = records(broken.into());
            assert!(batches.len() <= 1 && batches.iter().all(|batch| batch == "first"), "{position}");
        }
    }

    /// What hangs is not waited for, keeps few threads, and is forgotten once it goes on.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_hangs_is_left_alone() {
        let (hang, waits_for) = std::sync::mpsc::channel::<()>();
        let waits_for = Arc::new(std::sync::Mutex::new(waits_for));
        let waits: Vec<_> = (0..9)
            .map(|_| {
                let waits_for = Arc::clone(&waits_for);
                tokio::spawn(in_time(move || waits_for.lock().unwrap().recv().map_err(io::Error::other)))
            })
            .collect();
        for wait in waits {
            assert_eq!(wait.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(THREADS.available_permits(), 0);
        drop(hang);
        let all = THREADS.acquire_many(4).await.unwrap();
        drop(all);
        in_time(|| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_is_named() {
        let folder = folder();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = format!("{:#}", Journal::open(&file, "n", 1, 0).unwrap_err());
        assert!(error.contains("file, cannot be used"), "{error}");
    }
}
