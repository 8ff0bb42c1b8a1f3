//! Puts artifacts at the service: streamed, tried again when it is the network's fault.

use super::{
    Context,
    failure::{Failure, size},
    source::chain,
};
use crate::backoff::Backoff;
use cratemill_protocol::{ArtifactName, Sha256Hex, builder::Job, manifest, token::Token};
use reqwest::{Body, StatusCode, header};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::io::ReaderStream;

/// About a minute, and never less than half: a node that restarts is back, the load balancer has found another, and an
/// object store that was restarted takes what is put.
const TRIES: u32 = 11;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const MOST_DELAY: Duration = Duration::from_secs(15);
/// A token expires with the lease; after a reconnect a fresh one comes at once, otherwise with the next heartbeat.
const TOKEN_WAIT: Duration = Duration::from_mins(1);
/// What a refusal says is for people; more of it is not read.
const MAX_REFUSAL_BYTES: usize = 500;

/// A file that the job made.
#[derive(Debug, Clone)]
pub(super) struct Artifact {
    pub(super) entry: manifest::Entry,
    pub(super) path: PathBuf,
}

impl Artifact {
    pub(super) fn of(name: ArtifactName, path: PathBuf) -> io::Result<Self> {
        let mut file = File::open(&path)?;
        let mut hasher = Sha256::new();
        let size = io::copy(&mut file, &mut hasher)?;
        let entry = manifest::Entry { name, size, sha256: Sha256Hex::from_hasher(hasher) };
        Ok(Self { entry, path })
    }
}

enum Error {
    Again(String),
    /// The token is not good any more.
    Token(StatusCode),
    Final(Failure),
}

pub(super) async fn upload(
    context: &Context,
    job: &Job,
    token: &mut watch::Receiver<Token>,
    artifact: &Artifact,
) -> Result<(), Failure> {
    let url = format!("{}/{}", job.upload.trim_end_matches('/'), artifact.entry.name);
    let mut backoff = Backoff::new(FIRST_DELAY, MOST_DELAY);
    let mut tries = 0;
    loop {
        tries += 1;
        let current = token.borrow_and_update().clone();
        match attempt(context, &url, &current, artifact).await {
            Ok(()) => return Ok(()),
            Err(Error::Final(failure)) => return Err(failure),
            Err(Error::Again(why)) if tries == TRIES => {
                return Err(Failure::infrastructure(format!("the upload failed: {why}")));
            }
            Err(Error::Again(why)) => {
                tracing::info!(job = %job.id, %why, "The upload is tried again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(Error::Token(status)) => {
                let renewed = timeout(TOKEN_WAIT, token.changed()).await;
                if tries == TRIES || !matches!(renewed, Ok(Ok(()))) {
                    return Err(Failure::infrastructure(format!("the upload was refused: {status}")));
                }
            }
        }
    }
}

async fn attempt(context: &Context, url: &str, token: &Token, artifact: &Artifact) -> Result<(), Error> {
    let file = open(&artifact.path).await.map_err(|error| Error::Final(error.into()))?;
    let response = context
        .http
        .put(url)
        .bearer_auth(token.secret())
        .header(header::CONTENT_LENGTH, artifact.entry.size)
        .header("x-sha256", artifact.entry.sha256.to_string())
        .body(Body::wrap_stream(ReaderStream::new(file)))
        .send()
        .await
        .map_err(|error| Error::Again(chain(&error.without_url())))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        return Err(Error::Again(format!("the server answered {status}")));
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(Error::Token(status));
    }
    let why = refusal(response).await;
    Err(Error::Final(if status == StatusCode::PAYLOAD_TOO_LARGE {
        let bytes = size(artifact.entry.size);
        Failure::output_too_large(
            format!("the service takes no artifact of {bytes}: {status} {why}").trim_end(),
        )
    } else {
        Failure::infrastructure(format!("the upload was refused: {status} {why}").trim_end())
    }))
}

async fn open(path: &Path) -> io::Result<tokio::fs::File> {
    tokio::fs::File::open(path).await
}

async fn refusal(mut response: reqwest::Response) -> String {
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        text.extend_from_slice(&chunk);
        if text.len() >= MAX_REFUSAL_BYTES {
            text.truncate(MAX_REFUSAL_BYTES);
            break;
        }
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}
