//! Whether a success is what it claims: signed by its builder, about this job, and over files that are stored.

use cratemill_protocol::{
    CrateName, Features, Kind, Sha256Hex, Target,
    builder::MAX_MANIFEST_BYTES,
    manifest::{self, Manifest},
    sshsig,
};
use cratemill_store::uploads::Upload;

/// What the manifest of an attempt must be about.
#[derive(Debug, Clone)]
pub struct Expected {
    pub krate: CrateName,
    pub version: String,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    pub source_sha256: Sha256Hex,
}

/// A manifest that is good, the key it verified with, and its files in its order.
#[derive(Debug)]
pub struct Verified {
    pub key_id: i64,
    pub files: Vec<Upload>,
}

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the success comes without a signed manifest")]
    NoManifest,
    #[error("the manifest is too long")]
    TooLong,
    #[error("no enabled key of the builder is known")]
    NoKey,
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error("the manifest is about another {0} than the job")]
    Mismatch(&'static str),
    #[error("the manifest names {0}, which was not uploaded")]
    Missing(String),
    #[error("what was uploaded as {0} is not what the manifest says")]
    Different(String),
}

/// `keys` are the builder's enabled ones: (id, public key).
pub fn verify(
    text: Option<&str>,
    signature: Option<&str>,
    keys: &[(i64, String)],
    expected: &Expected,
    uploads: &[Upload],
) -> Result<Verified, Refusal> {
    let (Some(text), Some(signature)) = (text, signature) else { return Err(Refusal::NoManifest) };
    if text.len() > MAX_MANIFEST_BYTES {
        return Err(Refusal::TooLong);
    }
    let (key_id, manifest) = check_signature(text, signature, keys)?;
    check_subject(&manifest, expected)?;
    let files: Result<Vec<Upload>, Refusal> =
        manifest.artifacts.iter().map(|entry| stored(entry, uploads)).collect();
    Ok(Verified { key_id, files: files? })
}

fn check_signature(text: &str, signature: &str, keys: &[(i64, String)]) -> Result<(i64, Manifest), Refusal> {
    let mut refusal = Refusal::NoKey;
    for (id, line) in keys {
        let verified = sshsig::public_key(line)
            .map_err(manifest::Error::from)
            .and_then(|key| Manifest::verify(text, signature, &key));
        match verified {
            Ok(manifest) => return Ok((*id, manifest)),
            Err(error) => refusal = error.into(),
        }
    }
    Err(refusal)
}

fn check_subject(manifest: &Manifest, expected: &Expected) -> Result<(), Refusal> {
    let checks = [
        ("crate", manifest.krate == expected.krate),
        ("version", manifest.version == expected.version),
        ("kind", manifest.kind == expected.kind),
        ("target", manifest.target == expected.target),
        ("feature variant", manifest.features == expected.features),
        ("source", manifest.source_sha256 == expected.source_sha256),
    ];
    match checks.into_iter().find(|(_, good)| !good) {
        Some((what, _)) => Err(Refusal::Mismatch(what)),
        None => Ok(()),
    }
}

fn stored(entry: &manifest::Entry, uploads: &[Upload]) -> Result<Upload, Refusal> {
    let upload = uploads
        .iter()
        .find(|upload| upload.name == entry.name)
        .ok_or_else(|| Refusal::Missing(entry.name.to_string()))?;
    if i64::try_from(entry.size) == Ok(upload.size) && entry.sha256 == upload.sha256 {
        Ok(upload.clone())
    } else {
        Err(Refusal::Different(entry.name.to_string()))
    }
}
