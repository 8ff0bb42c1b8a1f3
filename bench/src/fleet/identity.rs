//! Keys for simulated builders, and their registration through the REST API.

use anyhow::{Context, Result};
use cratemill_protocol::{
    Target,
    builder::{AUTH_NAMESPACE, Challenge},
};
use cratemill_stack::client::Client;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, rand_core::OsRng};

/// Enough to keep a node busy, few enough that none waits for a connection of its pool.
const CONCURRENT_REGISTRATIONS: usize = 16;

/// A registered builder that is not connected.
#[derive(Debug)]
pub(crate) struct Identity {
    key: PrivateKey,
    pub(super) fingerprint: String,
}

impl Identity {
    fn new() -> Result<Self> {
        let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).context("cannot make a key")?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        Ok(Self { key, fingerprint })
    }

    /// Signs for whoever asks: a real builder signs only for the server it dialled, these dial nodes past it.
    pub(super) fn sign(&self, challenge: &Challenge) -> Result<String> {
        let text = challenge.signed_bytes(&self.fingerprint);
        let signature = self.key.sign(AUTH_NAMESPACE, HashAlg::Sha512, &text)?;
        Ok(signature.to_pem(LineEnding::LF)?)
    }
}

/// As many builders as asked for, named `simulated-1` and so on.
pub(crate) async fn register(client: &Client, count: usize, targets: &[Target]) -> Result<Vec<Identity>> {
    let register = async |number: usize| {
        let identity = Identity::new()?;
        let name = format!("simulated-{number}");
        let public_key = identity.key.public_key().to_openssh()?;
        let body = json!({ "name": name, "public_key": public_key, "targets": targets });
        client.post("/api/v1/builders", &body).await?;
        anyhow::Ok(identity)
    };
    stream::iter(1..=count).map(register).buffer_unordered(CONCURRENT_REGISTRATIONS).try_collect().await
}
