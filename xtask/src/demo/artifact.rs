//! What anyone can do with an artifact: download it, check its digest and its builder's signature, run what is in it.

use super::text;
use crate::say;
use anyhow::{Context, Result, bail, ensure};
use cratemill_protocol::{
    Sha256Hex,
    manifest::{self, Manifest},
    sshsig,
};
use cratemill_stack::{client::Client, process::Command};
use flate2::read::GzDecoder;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// What we read into memory here; the builder's own limit on output is larger.
const MAX_TARBALL_BYTES: usize = 512 << 20;
/// `--version` prints a line.
const RUN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn download_verify_run(
    client: &Client,
    job: &Value,
    artifact: &Value,
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let url = text(artifact, "url")?;
    let tarball = get(client, url).await?;
    let digest = Sha256Hex::of(&tarball).to_string();
    let published = String::from_utf8(get(client, &format!("{url}.sha256")).await?)?;
    ensure!(
        published.split_whitespace().next() == Some(digest.as_str()),
        "the download's sha256 is {digest}, published is {published}: do not use it, and download it again"
    );
    say::line(&format!("downloaded {} ({} bytes), sha256 is good", text(artifact, "name")?, tarball.len()));

    let manifest = String::from_utf8(get(client, &format!("{url}.manifest")).await?)?;
    let signature = String::from_utf8(get(client, &format!("{url}.sig")).await?)?;
    let key = builder_key(client, job).await?;
    let public_key = sshsig::public_key(&key)?;
    let verified =
        Manifest::verify(&manifest, &signature, &public_key).context("do not use this download")?;
    ensure!(
        verified.artifacts.iter().any(|entry| entry.sha256.to_string() == digest),
        "the builder signed something else than this download: do not use it"
    );
    let by = ssh_keygen_verifies(folder, &manifest, &signature, &key).await?;
    say::line(&format!("the builder's signature over it is good ({by})"));

    let unpacked = folder.join("unpacked");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    tar::Archive::new(GzDecoder::new(tarball.as_slice())).unpack(&unpacked).context("cannot unpack it")?;
    run(&unpacked, text(job, "crate")?, folder).await
}

async fn get(client: &Client, url: &str) -> Result<Vec<u8>> {
    let response = client.http().get(url).send().await.and_then(reqwest::Response::error_for_status);
    let mut response = response.with_context(|| format!("cannot download {url}"))?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.with_context(|| format!("{url} broke off"))? {
        ensure!(bytes.len() + chunk.len() <= MAX_TARBALL_BYTES, "{url} is larger than the demo takes");
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The public key of the builder whose attempt succeeded.
async fn builder_key(client: &Client, job: &Value) -> Result<String> {
    let attempts = job["attempts"].as_array().context("the job has no attempts")?;
    let builder = &attempts.last().context("the job has no attempt")?["builder"]["id"];
    let builders = client.list("/api/v1/builders").await?;
    let builder = builders.iter().find(|candidate| &candidate["id"] == builder);
    Ok(text(builder.context("the builder of the job is not listed")?, "public_key")?.to_owned())
}

/// Checks the same with OpenSSH's own program, where it is installed; tells what checked it.
async fn ssh_keygen_verifies(
    folder: &Path,
    manifest: &str,
    signature: &str,
    key: &str,
) -> Result<&'static str> {
    let write = |name: &str, content: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, content)?;
        Ok(path)
    };
    let signers = write("allowed_signers", &format!("builder {key}\n"))?;
    let signature = write("manifest.sig", signature)?;
    let manifest = fs::File::open(write("manifest", manifest)?)?;
    let mut command = tokio::process::Command::new("ssh-keygen");
    command.args(["-Y", "verify", "-I", "builder", "-n", manifest::NAMESPACE, "-f"]).arg(&signers);
    command.arg("-s").arg(&signature).stdin(manifest).stdout(Stdio::null()).kill_on_drop(true);
    match command.output().await {
        Ok(output) if output.status.success() => Ok("ssh-keygen -Y verify"),
        Ok(output) => bail!("ssh-keygen refuses the signature: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("no ssh-keygen here to ask as well"),
        Err(error) => Err(error).context("cannot run ssh-keygen"),
    }
}

/// Runs `--version` of the crate's binary, or of its first.
async fn run(unpacked: &Path, krate: &str, folder: &Path) -> Result<()> {
    let mut programs = Vec::new();
    for root in fs::read_dir(unpacked)? {
        for entry in fs::read_dir(root?.path())? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
                programs.push(entry.path());
            }
        }
    }
    programs.sort();
    let program = programs.iter().find(|path| path.file_name().is_some_and(|name| name == krate));
    let program = program.or(programs.first()).context("there is no program in the tarball")?;
    let mut command = Command::new("version", program, folder).args(["--version"]);
    let log = folder.join("version.log");
    if log.exists() {
        fs::remove_file(&log)?;
    }
    command.last_signal = cratemill_stack::process::Signal::SIGKILL;
    command.run(RUN_TIMEOUT).await.context("the program is good and does not know --version")?;
    let output = fs::read_to_string(&log).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().display();
    say::line(&format!("{name} --version: {}", output.lines().next().unwrap_or_default()));
    Ok(())
}
