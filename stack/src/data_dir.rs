//! The folder of a stack: its lock, its logs, and a place that the user `postgres` can reach.

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::{Uid, User},
};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Postgres refuses to run as root; Debian's package makes this user.
pub const POSTGRES_USER: &str = "postgres";

#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    // The kernel gives the lock back when this process ends: it is never stale.
    lock: Flock<fs::File>,
    // Only a stack without a folder of its own has one; removed with it.
    temporary: Option<tempfile::TempDir>,
}

impl DataDir {
    /// Opens, or makes, the folder of a stack that is kept.
    pub fn open(path: &Path) -> Result<Self> {
        Self::lock(path, None)
    }

    /// A folder that goes away with the stack.
    pub fn temporary() -> Result<Self> {
        Self::temporary_in(&std::env::temp_dir())
    }

    fn temporary_in(parent: &Path) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("cratemill-").tempdir_in(parent)?;
        // Others may pass through, not list: the user `postgres` has its folder inside.
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o711))?;
        let path = temporary.path().to_owned();
        Self::lock(&path, Some(temporary))
    }

    fn lock(path: &Path, temporary: Option<tempfile::TempDir>) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        let path = path.canonicalize()?;
        let lock = lock(&path.join("lock"))?;
        fs::create_dir_all(path.join("log"))?;
        Ok(Self { path, lock, temporary })
    }

    /// Whether it is still there after its stack.
    pub fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where Postgres keeps its data, and who it runs as.
    pub fn for_postgres(&self) -> Result<(PathBuf, Option<String>)> {
        if !Uid::effective().is_root() {
            return Ok((own_folder(self.path.join("postgres"), None)?, None));
        }
        let Some(user) = User::from_name(POSTGRES_USER)? else {
            bail!("there is no user {POSTGRES_USER:?} for Postgres to run as: install Debian's postgresql");
        };
        let inside = self.path.join("postgres");
        let path = if inside.is_symlink() || !others_can_reach(&self.path) {
            self.outside(&inside, &user)?
        } else {
            own_folder(inside, Some(&user))?
        };
        Ok((path, Some(user.name)))
    }

    /// The place of Postgres' data when its user cannot reach this folder; `link` in the folder leads there.
    fn outside(&self, link: &Path, user: &User) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        self.path.hash(&mut hasher);
        let path = PathBuf::from(format!("/var/tmp/cratemill-{:016x}", hasher.finish()));
        let path = own_folder(path, Some(user))?;
        if link.is_symlink() {
            return Ok(path);
        }
        tracing::info!(
            path = %path.display(),
            "Postgres keeps its data here: its user cannot reach {}",
            self.path.display()
        );
        // Without the link the data are of a folder of this name that was deleted, and its password with it.
        fs::remove_dir_all(&path)?;
        let path = own_folder(path, Some(user))?;
        std::os::unix::fs::symlink(&path, link)
            .with_context(|| format!("cannot make the link {}", link.display()))?;
        Ok(path)
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Whoever opens the file next should not read of a process that is gone.
        let _ = self.lock.set_len(0);
        if let (Some(_), Ok(outside)) = (&self.temporary, fs::read_link(self.path.join("postgres"))) {
            // As with the folder itself: what cannot be removed is no reason to fail.
            let _ = fs::remove_dir_all(outside);
        }
    }
}

fn lock(path: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::options().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.with_context(|| format!("cannot open the lock {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            bail!(
                "a stack already runs in {}, in the process {holder}: stop that one first (kill {holder})",
                path.parent().unwrap_or(path).display()
            );
        }
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Whether a user who is neither owner nor in the group can pass through the folder and all above it.
fn others_can_reach(path: &Path) -> bool {
    path.ancestors().all(|folder| fs::metadata(folder).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

/// A private folder of `user`. One that is there already and somebody else's is refused: it may be a trap.
fn own_folder(path: PathBuf, user: Option<&User>) -> Result<PathBuf> {
    let uid = user.map_or_else(Uid::effective, |user| user.uid);
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {
            if let Some(user) = user {
                std::os::unix::fs::chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(&path)?;
            if !meta.is_dir() || meta.uid() != uid.as_raw() {
                bail!("{} belongs to another user: remove it, or use another folder", path.display());
            }
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that no other user can pass through.
    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    #[test]
    fn a_second_stack_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn what_postgres_keeps_outside_goes_with_a_temporary_folder() {
        if !Uid::effective().is_root() {
            // Only a root's Postgres runs as somebody else.
            return;
        }
        let private = private();
        let stack = DataDir::temporary_in(private.path()).unwrap();
        let (outside, _) = stack.for_postgres().unwrap();
        assert!(outside.is_dir() && !outside.starts_with(private.path()), "{}", outside.display());
        drop(stack);
        assert!(!outside.exists());
    }

    #[test]
    fn what_postgres_keeps_outside_is_found_again_until_its_folder_is_deleted() {
        if !Uid::effective().is_root() {
            return;
        }
        let private = private();
        let path = private.path().join("kept");
        let data = || DataDir::open(&path).unwrap().for_postgres().unwrap().0.join("data");
        fs::write(data(), "").unwrap();
        assert!(data().exists() && !data().starts_with(private.path()));
        fs::remove_dir_all(&path).unwrap();
        assert!(!data().exists());
        fs::remove_dir_all(data().parent().unwrap()).unwrap();
    }

    #[test]
    fn a_private_parent_hides_what_is_inside() {
        let dir = private();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        assert!(!others_can_reach(&inner));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert!(others_can_reach(&inner));
    }
}
