//! What is read of the database of a Mastodon: never written, and none of its tables are ours.
//!
//! Statements have no names and go out in one piece, so that a pooler between may give each to another connection.

mod rules;
mod tokens;

pub use rules::{Filter, Rules, rules};
pub use tokens::{Token, good_tokens, owns_list, settings, token};

use crate::bulk::{self, Pool, SetupError};
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::time::Duration;

/// A database that says nothing for so long is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where it is.
#[derive(Clone)]
pub struct Database(PgConnectOptions);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection: {0}")]
    Pool(#[from] bulk::PoolError),
    #[error(transparent)]
    Database(#[from] bulk::Error),
    #[error("no answer for {} s", PATIENCE.as_secs())]
    Silent,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({}:{})", self.0.get_host(), self.0.get_port())
    }
}

/// As Mastodon's environment has it, one by one.
#[derive(Clone, Default)]
pub struct Parts {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub name: Option<String>,
    pub ssl_mode: Option<String>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("host", &self.host).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Database {
    /// `postgres://...`, with `sslmode` as libpq or Mastodon's server knows it; the password, if it has none.
    pub fn of_url(url: &str, password: Option<&str>) -> Result<Self, String> {
        // It encrypts and checks nothing: libpq calls that so.
        let url = url.replace("sslmode=no-verify", "sslmode=require");
        let mut options: PgConnectOptions =
            url.parse().map_err(|error| format!("not a Postgres URL: {error}"))?;
        let has_one = options.to_url_lossy().password().is_some();
        if let Some(password) = password.filter(|_| !has_one) {
            options = options.password(password);
        }
        Ok(Self(options))
    }

    /// What is not said is as Mastodon has it in production.
    pub fn of_parts(parts: &Parts) -> Result<Self, String> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(parts.port.unwrap_or(5432))
            .username(parts.user.as_deref().unwrap_or("mastodon"))
            .database(parts.name.as_deref().unwrap_or("mastodon_production"));
        if let Some(password) = &parts.password {
            options = options.password(password);
        }
        // A folder is where the server's socket is.
        options = match parts.host.as_deref().unwrap_or("localhost") {
            folder if folder.starts_with('/') => options.socket(folder),
            host => options.host(host),
        };
        let mode = match parts.ssl_mode.as_deref().unwrap_or("prefer") {
            "disable" | "false" => PgSslMode::Disable,
            "allow" | "prefer" => PgSslMode::Prefer,
            "no-verify" | "require" | "true" => PgSslMode::Require,
            "verify-ca" => PgSslMode::VerifyCa,
            "verify-full" => PgSslMode::VerifyFull,
            other => return Err(format!("`{other}` is no mode of TLS")),
        };
        Ok(Self(options.ssl_mode(mode)))
    }

    /// Connects when first used.
    pub fn connect(&self, connections: usize) -> Result<Pool, SetupError> {
        bulk::pool(&self.0.clone().application_name("cratemill-live"), connections)
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(Error::Silent))
}
