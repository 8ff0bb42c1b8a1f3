//! How much a job has written to disk.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt, path::PathBuf};

/// Large workspaces make some ten thousand files; more than this exhausts inodes, not bytes.
const MAX_FILES: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) files: u64,
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
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // What vanished meanwhile takes no room.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                todo.push(entry.path());
            }
            if metadata.is_dir() || metadata.nlink() < 2 || seen.insert((metadata.dev(), metadata.ino())) {
                written.files += 1;
                written.bytes += metadata.len().max(metadata.blocks() * 512);
            }
        }
        if written.exceeds(max_bytes) {
            break;
        }
    }
    written
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
}
