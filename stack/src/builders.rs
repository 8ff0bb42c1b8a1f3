//! Builders of a stack: each has a key of its own, made here and registered with the API before it starts.

use crate::{client::Client, process::Process};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Its login takes milliseconds; what it waits for is a node that is up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Key {
    pub path: PathBuf,
    /// One line, as `ssh-keygen` writes it.
    pub public: String,
    pub fingerprint: String,
}

impl Key {
    /// The key in this file; made if there is none.
    pub fn open(path: PathBuf) -> Result<Self> {
        let key = match fs::read(&path) {
            Ok(bytes) => PrivateKey::from_openssh(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = PrivateKey::random(&mut ssh_key::rand_core::OsRng, Algorithm::Ed25519)?;
                // Writes it with mode 0600.
                key.write_openssh_file(&path, LineEnding::LF)?;
                Ok(key)
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let key = key.with_context(|| format!("{} is not an OpenSSH key", path.display()))?;
        Ok(Self {
            public: key.public_key().to_openssh()?,
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
            path,
        })
    }
}

/// Registers a builder with its key, unless it is registered from an earlier run.
pub async fn register(client: &Client, name: &str, key: &Key, targets: &[String]) -> Result<()> {
    if find(client, &key.fingerprint).await?.is_some() {
        return Ok(());
    }
    let body = json!({ "name": name, "public_key": key.public, "targets": targets });
    client.post("/api/v1/builders", &body).await.with_context(|| format!("cannot register {name}"))?;
    Ok(())
}

/// Waits until the service knows the builder as connected.
pub async fn connected(client: &Client, process: &Process, key: &Key) -> Result<()> {
    let probe = async || match find(client, &key.fingerprint).await? {
        Some(builder) if builder["connected"] == true => Ok(()),
        Some(_) => bail!("it has not logged in"),
        None => bail!("it is not registered"),
    };
    process.ready(CONNECT_TIMEOUT, probe).await
}

async fn find(client: &Client, fingerprint: &str) -> Result<Option<Value>> {
    let builders = client.list("/api/v1/builders").await?;
    let has_key = |builder: &Value| {
        builder["fingerprints"].as_array().is_some_and(|keys| keys.iter().any(|key| key == fingerprint))
    };
    Ok(builders.into_iter().find(has_key))
}

/// Where the key of builder `number` is kept.
pub fn key_path(data_dir: &Path, number: usize) -> PathBuf {
    data_dir.join(format!("builder-{number}.key"))
}
