//! Gets the `.crate` file: bounded, checked, and tried again when the network is at fault.

use super::{Context, failure::Failure, failure::size};
use crate::backoff::Backoff;
use cratemill_protocol::{Sha256Hex, builder::Job, token::Token};
use futures_util::StreamExt;
use reqwest::StatusCode;
use sha2::{Digest, Sha256};
use std::{path::Path, time::Duration};
use tokio::io::AsyncWriteExt;

/// Within the job: a longer outage is for the queue, which tries again later, perhaps on another builder.
const TRIES: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const MOST_DELAY: Duration = Duration::from_secs(5);
/// A transfer can be damaged on its way once; twice the same way, it is what the registry serves.
const WRONG_CHECKSUMS: u32 = 2;

enum Error {
    /// Trying again may help.
    Again(String),
    WrongChecksum(Sha256Hex),
    Final(Failure),
}

/// Downloads the job's source to `path` and checks its digest.
pub(super) async fn download(
    context: &Context,
    job: &Job,
    max_bytes: u64,
    path: &Path,
) -> Result<u64, Failure> {
    let mut backoff = Backoff::new(FIRST_DELAY, MOST_DELAY);
    let mut wrong_checksums = 0;
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt(context, job, max_bytes, path).await {
            Ok(bytes) => return Ok(bytes),
            Err(Error::Final(failure)) => return Err(failure),
            Err(Error::WrongChecksum(found)) => {
                wrong_checksums += 1;
                if wrong_checksums == WRONG_CHECKSUMS {
                    return Err(wrong_checksum(job, found));
                }
            }
            Err(Error::Again(why)) if tries == TRIES => {
                return Err(Failure::infrastructure(format!("the source cannot be downloaded: {why}")));
            }
            Err(Error::Again(why)) => {
                tracing::info!(job = %job.id, %why, "The download is tried again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Class `build`, final: index and file disagree for every builder and at every try, and somebody has to look at it.
/// As a failure of ours it would be fetched, and refused, over and over.
fn wrong_checksum(job: &Job, found: Sha256Hex) -> Failure {
    Failure::build(format!(
        "wrong checksum: the registry's index says {}, the file it serves has {found}",
        job.sha256
    ))
}

async fn attempt(context: &Context, job: &Job, max_bytes: u64, path: &Path) -> Result<u64, Error> {
    let response = request(context, &job.source, &job.token).send().await.map_err(again)?;
    check_status(response.status())?;
    let too_large = || {
        Error::Final(Failure::output_too_large(format!("the crate file is larger than {}", size(max_bytes))))
    };
    if response.content_length().is_some_and(|length| length > max_bytes) {
        return Err(too_large());
    }
    let disk = |error: std::io::Error| Error::Final(error.into());
    let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(again)?;
        bytes += chunk.len() as u64;
        if bytes > max_bytes {
            return Err(too_large());
        }
        hasher.update(&chunk);
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)?;
    let found = Sha256Hex::from_hasher(hasher);
    if found == job.sha256 { Ok(bytes) } else { Err(Error::WrongChecksum(found)) }
}

/// The job's token goes to the service alone, never to a registry.
fn request(context: &Context, url: &str, token: &Token) -> reqwest::RequestBuilder {
    let request = context.http.get(url);
    if context.server.is_origin_of(url) { request.bearer_auth(token.secret()) } else { request }
}

fn check_status(status: StatusCode) -> Result<(), Error> {
    if status == StatusCode::OK {
        Ok(())
    } else if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        Err(Error::Again(format!("the server answered {status}")))
    } else if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
        Err(Error::Final(Failure::build(format!("the registry does not have the crate's file: {status}"))))
    } else {
        Err(Error::Final(Failure::infrastructure(format!("the source cannot be downloaded: {status}"))))
    }
}

fn again(error: reqwest::Error) -> Error {
    // The address may hold what is nobody's business.
    Error::Again(chain(&error.without_url()))
}

/// An error with what caused it: reqwest's own text stops at "error sending request".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
