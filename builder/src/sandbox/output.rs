//! How much a job has written to disk.

use super::Breach;
use crate::load::free_disk;
use std::{
    collections::HashSet,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// Large workspaces make some ten thousand files; more than this exhausts inodes, not bytes.
const MAX_FILES: u64 = 1_000_000;
/// The kernel opens no path of more than 4,096 bytes, and entries have names of 255.
const MAX_PATH_BYTES: usize = 3_800;

/// What to look at while a sandbox runs.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) written: Vec<PathBuf>,
    pub(super) max_bytes: u64,
    pub(super) cache: Option<(PathBuf, u64)>,
    /// Some folder of the disk that is written to.
    pub(super) disk: PathBuf,
    pub(super) reserve_bytes: u64,
}

impl Watched {
    /// What is too much of it by now.
    pub(super) fn breach(&self) -> Option<Breach> {
        let written = measure(&self.written, self.max_bytes);
        if written.hidden {
            return Some(Breach::Hidden);
        }
        if written.exceeds(self.max_bytes) {
            return Some(Breach::Output);
        }
        // What stands in the cache is cargo's, so what cannot be read there hides nothing.
        if let Some((cache, max_bytes)) = &self.cache
            && measure(std::slice::from_ref(cache), *max_bytes).exceeds(*max_bytes)
        {
            return Some(Breach::Cache);
        }
        // Files that have no name any more take room that no walk finds.
        free_disk(&self.disk).is_some_and(|free| free < self.reserve_bytes).then_some(Breach::Disk)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) files: u64,
    /// There is a folder that cannot be looked into: whatever may be in it.
    pub(super) hidden: bool,
}

impl Written {
    pub(super) fn exceeds(self, max_bytes: u64) -> bool {
        self.bytes >= max_bytes || self.files >= MAX_FILES
    }
}

/// Adds up everything below `folders`, a file with several names once; follows no link. Stops when it is too much.
pub(super) fn measure(folders: &[PathBuf], max_bytes: u64) -> Written {
    let mut written = Written::default();
    let mut seen = HashSet::new();
    let mut todo = folders.to_vec();
    while let Some(folder) = todo.pop() {
        if add(&folder, &mut written, &mut seen, &mut todo).is_err() {
            written.hidden = true;
        }
        if written.hidden || written.exceeds(max_bytes) {
            break;
        }
    }
    written
}

/// Adds up one folder, and puts those in it on the list.
fn add(
    folder: &Path,
    written: &mut Written,
    seen: &mut HashSet<(u64, u64)>,
    todo: &mut Vec<PathBuf>,
) -> io::Result<()> {
    if folder.as_os_str().as_bytes().len() > MAX_PATH_BYTES {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let entries = match fs::read_dir(folder) {
        // What vanished meanwhile takes no room.
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if is_gone(&error) => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            todo.push(entry.path());
        }
        if metadata.is_dir() || metadata.nlink() < 2 || seen.insert((metadata.dev(), metadata.ino())) {
            written.files += 1;
            written.bytes = written.bytes.saturating_add(metadata.len().max(metadata.blocks() * 512));
        }
    }
    Ok(())
}

/// Not there any more, or a file in its place, which its folder counts.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_counts_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("c")).unwrap();
        let written = measure(&[dir.path().to_owned()], u64::MAX);
        assert_eq!(written.files, 2);
        assert!((100_000..200_000).contains(&written.bytes), "{written:?}");
        assert!(measure(&[dir.path().to_owned()], 1_000).exceeds(1_000));
    }
    /// Root looks into every folder, and a builder is seldom root.
    fn measure_as_nobody(folder: &Path) -> Written {
        let folders = vec![folder.to_owned()];
        let measuring = move || {
            // Of this thread alone; without the right to, nothing changes.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            measure(&folders, u64::MAX)
        };
        std::thread::spawn(measuring).join().unwrap()
    }

    #[test]
    fn what_cannot_be_measured_is_too_much() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("big"), vec![1; 100_000]).unwrap();
        for folder in [dir.path(), &closed] {
            // Only root can, and only root needs it.
            drop(std::os::unix::fs::chown(folder, Some(65_534), None));
        }
        assert!(!measure_as_nobody(dir.path()).hidden);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o300)).unwrap();
        assert!(measure_as_nobody(dir.path()).hidden);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();

        let name = "x".repeat(250);
        let mut deep = dir.path().to_owned();
        while deep.as_os_str().len() + name.len() < 4_050 {
            deep.push(&name);
        }
        fs::create_dir_all(&deep).unwrap();
        assert!(measure(&[dir.path().to_owned()], u64::MAX).hidden);
        assert!(!measure(&[dir.path().join("gone")], u64::MAX).hidden);
    }

    #[test]
    fn the_reserve_of_the_disk_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join("big"), vec![1; 100_000]).unwrap();
        let watched = |max_cache, reserve_bytes| Watched {
            written: vec![dir.path().join("none")],
            max_bytes: u64::MAX,
            cache: Some((cache.clone(), max_cache)),
            disk: dir.path().to_owned(),
            reserve_bytes,
        };
        assert_eq!(watched(u64::MAX, 0).breach(), None);
        assert_eq!(watched(u64::MAX, u64::MAX).breach(), Some(Breach::Disk));
        assert_eq!(watched(100_000, 0).breach(), Some(Breach::Cache));
    }
}
