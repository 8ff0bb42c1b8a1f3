//! Where a local stack keeps its data, and the file that tells others where it is.

use anyhow::{Context, Result};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The folder of this workspace. Cargo says so when it runs us; else it is where we were built.
pub(crate) fn workspace() -> Result<PathBuf> {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let parent = Path::new(&manifest).parent().context("xtask is in no workspace")?;
    Ok(parent.to_owned())
}

pub(crate) fn folder() -> Result<PathBuf> {
    Ok(workspace()?.join(".dev"))
}

/// `.dev/env`, there only while the stack it describes is ready.
#[derive(Debug)]
pub(crate) struct EnvFile(PathBuf);

impl EnvFile {
    pub(crate) fn write(folder: &Path, pairs: &[(&str, String)]) -> Result<Self> {
        let (path, unfinished) = (folder.join("env"), folder.join("env.new"));
        remove(&unfinished)?;
        // It holds passwords.
        let file = fs::File::options().create_new(true).write(true).mode(0o600).open(&unfinished);
        let mut file = file.with_context(|| format!("cannot write {}", unfinished.display()))?;
        for (key, value) in pairs {
            writeln!(file, "{key}={value}")?;
        }
        fs::rename(&unfinished, &path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes what a killed predecessor left: whoever waits for the file waits for this start.
    pub(crate) fn clear(folder: &Path) -> Result<()> {
        remove(&folder.join("env"))
    }
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        // The next start removes it, if this fails.
        let _ = fs::remove_file(&self.0);
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_whole_and_there_only_while_it_is_true() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("env"), "API_URL=http://old\n").unwrap();
        EnvFile::clear(dir.path()).unwrap();
        assert!(!dir.path().join("env").exists());
        let file = EnvFile::write(dir.path(), &[("A", "1".into()), ("B", "x=y".into())]).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "A=1\nB=x=y\n");
        drop(file);
        assert!(!dir.path().join("env").exists());
    }
}
