//! The manifest of an attempt's artifacts, signed by the builder that made them.

use crate::{ArtifactName, CrateName, Features, Kind, Sha256Hex, Target, sshsig};
use serde::{Deserialize, Serialize};
use ssh_key::PublicKey;

/// The namespace of a manifest's signature: `ssh-keygen -Y verify -n` wants it.
pub const NAMESPACE: &str = "cratemill-artifact@v1";
/// The most files one job may produce.
pub const MAX_ARTIFACTS: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(rename = "crate")]
    pub krate: CrateName,
    pub version: String,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    /// What built it, as `rustc --version` says.
    pub toolchain: String,
    /// Of the `.crate` file it was built from.
    pub source_sha256: Sha256Hex,
    pub artifacts: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: ArtifactName,
    pub size: u64,
    pub sha256: Sha256Hex,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the manifest is not JSON of the right shape: {0}")]
    Parse(#[from] serde_json::Error),
    #[error("the manifest's signature is not good: {0}")]
    Signature(#[from] sshsig::Error),
    #[error("the manifest names {0} artifacts, from 1 to {MAX_ARTIFACTS} are allowed, each once")]
    Artifacts(usize),
}

impl Manifest {
    /// The text that is signed, kept and served: JSON with a last newline.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest has only text keys");
        text.push('\n');
        text
    }

    /// Checks the signature over the exact text, then reads it.
    pub fn verify(text: &str, signature: &str, key: &PublicKey) -> Result<Self, Error> {
        sshsig::verify(key, NAMESPACE, text.as_bytes(), signature)?;
        Self::parse(text)
    }

    pub fn parse(text: &str) -> Result<Self, Error> {
        let manifest: Self = serde_json::from_str(text)?;
        let mut names: Vec<_> = manifest.artifacts.iter().map(|entry| &entry.name).collect();
        names.sort();
        names.dedup();
        let count = manifest.artifacts.len();
        if count == 0 || count > MAX_ARTIFACTS || names.len() != count {
            return Err(Error::Artifacts(count));
        }
        Ok(manifest)
    }
}
