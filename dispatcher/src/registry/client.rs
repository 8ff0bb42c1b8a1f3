//! The registry over HTTP: every answer is bounded in time and size, and told apart by what follows from it.

use super::{Error, IndexUrl, Token, template::IndexConfig};
use crate::metrics;
use bytes::Bytes;
use cratemill_protocol::CrateName;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{
        AUTHORIZATION, ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
        RETRY_AFTER,
    },
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A whole answer; the largest index entries take a second on a slow line.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest entries of the public registry have a few MiB.
const MAX_ENTRY_BYTES: usize = 32 << 20;
const MAX_CONFIG_BYTES: usize = 64 << 10;
const MAX_FEED_BYTES: usize = 8 << 20;
/// Where "busy" comes without a time.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(30);
/// No registry makes us wait longer than this.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(10);
/// A validator that is longer is not worth keeping.
const MAX_VALIDATOR_CHARS: usize = 256;

/// What tells the registry which answer we have already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// An answer to a conditional request.
#[derive(Debug)]
pub enum Answer {
    Unchanged,
    Body { bytes: Bytes, validators: Validators },
}

#[derive(Debug)]
pub struct Registry {
    http: Client,
    index: IndexUrl,
    token: Option<Token>,
    config: Mutex<Option<Arc<IndexConfig>>>,
    /// Held by the one that reads `config.json`.
    fetching: tokio::sync::Mutex<()>,
}

impl Registry {
    pub fn new(index: IndexUrl, token: Option<Token>) -> anyhow::Result<Self> {
        let http = Client::builder()
            .user_agent(concat!("cratemill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(5))
            .build()?;
        Ok(Self { http, index, token, config: Mutex::default(), fetching: tokio::sync::Mutex::default() })
    }

    pub fn index(&self) -> &IndexUrl {
        &self.index
    }

    /// The index's `config.json`; once read it is always there, if old, and nobody waits for it.
    pub async fn config(&self) -> Result<Arc<IndexConfig>, Error> {
        if let Some(config) = self.cached() {
            return Ok(config);
        }
        let fetching = self.fetching.lock().await;
        // Whoever was fetching has it.
        match self.cached() {
            Some(config) => Ok(config),
            None => self.fetch(&fetching).await,
        }
    }

    /// Reads `config.json` again; what was read before serves on until then, and after a failure.
    pub async fn renew_config(&self) -> Result<(), Error> {
        let fetching = self.fetching.lock().await;
        self.fetch(&fetching).await.map(drop)
    }

    fn cached(&self) -> Option<Arc<IndexConfig>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn fetch(&self, _alone: &tokio::sync::MutexGuard<'_, ()>) -> Result<Arc<IndexConfig>, Error> {
        let config = Arc::new(self.fetch_config().await?);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&config));
        Ok(config)
    }

    /// Asks without the token first, as cargo does: only a registry that wants it gets it.
    async fn fetch_config(&self) -> Result<IndexConfig, Error> {
        let url = self.url("config.json")?;
        let mut response = self.send(url.clone(), &Validators::default(), false).await?;
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && self.token.is_some()
        {
            response = self.send(url, &Validators::default(), true).await?;
        }
        let bytes = body(check(response)?, MAX_CONFIG_BYTES).await?;
        let config: IndexConfig = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Unavailable(format!("its config.json cannot be read: {error}")))?;
        match config.dl.split_once("://") {
            Some(("http" | "https", _)) => Ok(config),
            _ => Err(Error::Unavailable("the dl of its config.json is no http URL".into())),
        }
    }

    /// The index entry of a crate, if it is another than the one that `known` came with.
    pub async fn entry(&self, krate: &CrateName, known: &Validators) -> Result<Answer, Error> {
        let result = self.fetch_entry(krate, known).await;
        metrics::registry_request(match &result {
            Ok(Answer::Body { .. }) => "fresh",
            Ok(Answer::Unchanged) => "unchanged",
            Err(Error::NotFound) => "not_found",
            Err(Error::Busy(_)) => "busy",
            Err(Error::Unavailable(_)) => "unavailable",
        });
        result
    }

    async fn fetch_entry(&self, krate: &CrateName, known: &Validators) -> Result<Answer, Error> {
        let auth_required = self.config().await?.auth_required;
        let response = self.send(self.url(&krate.index_path())?, known, auth_required).await?;
        answer(response, MAX_ENTRY_BYTES).await
    }

    /// A list of crates. It may be anywhere, so it never gets the token.
    pub async fn feed(&self, url: &Url, known: &Validators) -> Result<Answer, Error> {
        answer(self.send(url.clone(), known, false).await?, MAX_FEED_BYTES).await
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        self.index.base.join(path).map_err(|error| Error::Unavailable(error.to_string()))
    }

    async fn send(&self, url: Url, known: &Validators, with_token: bool) -> Result<Response, Error> {
        let mut request = self.http.get(url);
        if let (true, Some(Token(token))) = (with_token, &self.token) {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(etag) = &known.etag {
            request = request.header(IF_NONE_MATCH, etag);
        } else if let Some(last_modified) = &known.last_modified {
            request = request.header(IF_MODIFIED_SINCE, last_modified);
        }
        request.send().await.map_err(unavailable)
    }
}

async fn answer(response: Response, most: usize) -> Result<Answer, Error> {
    if response.status() == StatusCode::NOT_MODIFIED {
        return Ok(Answer::Unchanged);
    }
    let response = check(response)?;
    let validators = Validators {
        etag: validator(response.headers(), &ETAG),
        last_modified: validator(response.headers(), &LAST_MODIFIED),
    };
    Ok(Answer::Body { bytes: body(response, most).await?, validators })
}

fn validator(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= MAX_VALIDATOR_CHARS).then(|| value.to_owned())
}

fn check(response: Response) -> Result<Response, Error> {
    match response.status() {
        StatusCode::OK => Ok(response),
        // The last is how an index says that a crate was taken down.
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS => {
            Err(Error::NotFound)
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let value = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            Err(Error::Busy(retry_after(value, OffsetDateTime::now_utc())))
        }
        status => Err(Error::Unavailable(format!("it answers {status}"))),
    }
}

/// Seconds, or a date.
fn retry_after(value: Option<&str>, now: OffsetDateTime) -> Duration {
    let Some(value) = value.map(str::trim) else { return DEFAULT_RETRY_AFTER };
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => match OffsetDateTime::parse(value, &Rfc2822) {
            Ok(date) => (date - now).try_into().unwrap_or(Duration::ZERO),
            Err(_) => DEFAULT_RETRY_AFTER,
        },
    };
    wait.min(MAX_RETRY_AFTER)
}

async fn body(mut response: Response, most: usize) -> Result<Bytes, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
        if bytes.len() + chunk.len() > most {
            return Err(Error::Unavailable(format!("its answer is longer than {most} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// With its causes, and without the URL, which may hold a secret.
fn unavailable(error: reqwest::Error) -> Error {
    Error::Unavailable(format!("{:#}", anyhow::Error::new(error.without_url())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn retry_after_has_two_forms_and_a_bound() {
        let now = datetime!(2026-11-20 10:00:00 UTC);
        for (value, seconds) in [
            (None, 30),
            (Some("7"), 7),
            (Some("999999"), 600),
            (Some("Fri, 20 Nov 2026 10:01:00 GMT"), 60),
            (Some("Fri, 20 Nov 2026 09:00:00 GMT"), 0),
            (Some("soon"), 30),
        ] {
            assert_eq!(retry_after(value, now), Duration::from_secs(seconds), "{value:?}");
        }
    }
}
