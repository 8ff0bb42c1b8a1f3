//! Removes what a job left: as deep and wide and with as odd permissions as the crate liked.
//!
//! The standard library goes down level by level and holds a descriptor at each: some thousand folders in each other are
//! more than a process may open, and some ten thousand more than its stack. Here every folder is moved up to one beside
//! all others before it is looked into, so that there is one open at a time and no path grows.

use rand::Rng;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Removes a file or folder with all that is in it; follows no link. What cannot be removed stays, the rest goes.
pub(super) fn remove_tree(tree: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(tree) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return fs::remove_file(tree);
    }
    make_accessible(tree)?;
    let flat = tree.join(hex::encode(rand::rng().random::<[u8; 8]>()));
    fs::create_dir(&flat)?;
    let mut removal = Removal { flat, moved: 0, todo: Vec::new(), failed: None };
    removal.empty(tree);
    while let Some(folder) = removal.todo.pop() {
        removal.empty(&folder);
        removal.note(fs::remove_dir(&folder));
    }
    removal.note(fs::remove_dir(&removal.flat));
    removal.note(fs::remove_dir(tree));
    removal.failed.map_or(Ok(()), Err)
}

struct Removal {
    /// Where all folders are moved to, under numbers.
    flat: PathBuf,
    moved: u64,
    todo: Vec<PathBuf>,
    /// What went wrong first.
    failed: Option<io::Error>,
}

impl Removal {
    /// Removes a folder's files and puts its folders on the list.
    fn empty(&mut self, folder: &Path) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.note(Err(error)),
        };
        for entry in entries {
            let done = entry.and_then(|entry| self.take(&entry));
            self.note(done);
        }
    }

    fn take(&mut self, entry: &fs::DirEntry) -> io::Result<()> {
        let path = entry.path();
        if !entry.file_type()?.is_dir() {
            return fs::remove_file(path);
        }
        if path == self.flat {
            return Ok(());
        }
        make_accessible(&path)?;
        let to = self.flat.join(self.moved.to_string());
        fs::rename(path, &to)?;
        self.moved += 1;
        self.todo.push(to);
        Ok(())
    }

    fn note(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }
}

/// A build may leave folders that their owner cannot look into.
fn make_accessible(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many folders in each other: made from the inside out, since no path leads to the innermost.
    fn nest(parent: &Path, depth: usize) {
        let (inner, outer) = (parent.join("inner"), parent.join("outer"));
        fs::create_dir(&inner).unwrap();
        for _ in 1..depth {
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("inner")).unwrap();
            fs::rename(&outer, &inner).unwrap();
        }
    }

    #[test]
    fn folders_in_folders_without_end_go() {
        // In memory, where there is such a folder: on some disks each of them takes milliseconds.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        nest(&tree, 20_000);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn closed_folders_go_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "x").unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&other, tree.join("a/link")).unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && other.join("file").exists());
    }
}
