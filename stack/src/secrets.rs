//! The passwords, keys and tokens of one stack: random, kept in its folder so that a second start finds its own data.

use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub struct Secrets {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl Secrets {
    pub fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("secrets");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let values = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(Self { path, values })
    }

    /// The secret of this name; made and stored when first asked for.
    pub fn get(&mut self, name: &str) -> Result<String> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        // Starts with a letter: nats-server reads a variable that starts with a digit as a number.
        let value = format!("k{}", hex::encode(rand::random::<[u8; 20]>()));
        let mut options = fs::File::options();
        let file = options.create(true).append(true).mode(0o600).open(&self.path);
        let mut file = file.with_context(|| format!("cannot write {}", self.path.display()))?;
        writeln!(file, "{name}={value}")?;
        self.values.insert(name.to_owned(), value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn they_are_private_and_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut secrets = Secrets::open(dir.path()).unwrap();
        let (a, b) = (secrets.get("a").unwrap(), secrets.get("b").unwrap());
        assert_ne!(a, b);
        assert_eq!(Secrets::open(dir.path()).unwrap().get("a").unwrap(), a);
        assert_eq!(fs::metadata(dir.path().join("secrets")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
