//! Connections for statements that carry thousands of rows: deadpool and tokio-postgres, which send arrays in binary and
//! several statements in one go.
//!
//! They go to the same database in the same way as sqlx's: one URL configures both.

mod held;
mod tls;

use crate::database::DatabaseUrl;
use deadpool_postgres::{Manager, ManagerConfig, PoolConfig, RecyclingMethod, Runtime, Timeouts};
use sqlx::{ConnectOptions, PgPool, postgres::PgConnectOptions, postgres::PgSslMode};
use std::time::Duration;
use tokio_postgres::{
    Config, NoTls, Socket,
    config::SslMode,
    tls::{MakeTlsConnect, TlsConnect},
};

pub use deadpool_postgres::{Object as Connection, Pool, PoolError, Transaction};
pub use held::Held;
pub use tokio_postgres::Error;

/// One for the transaction in hand, one for a probe or a lookup meanwhile.
const MAX_CONNECTIONS: usize = 3;
/// As for sqlx's connections.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the server does too, see `database`: no answer for fifteen seconds means that its machine or the network is gone.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVES: u32 = 3;
const NO_ANSWER: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("client certificates for Postgres (sslcert, sslkey) do not work here: use a password")]
    ClientCertificate,
    #[error("the certificates that Postgres is to be checked with cannot be used: {0}")]
    Roots(String),
    #[error("the connections to Postgres cannot be set up: {0}")]
    Pool(String),
}

/// A pool that connects when first used.
pub fn connect(url: &DatabaseUrl, name: &str) -> Result<Pool, SetupError> {
    pool(&url.options().clone().application_name(name), MAX_CONNECTIONS)
}

/// To the database of another pool.
pub fn beside(pool: &PgPool) -> Result<Pool, SetupError> {
    self::pool(&pool.connect_options(), MAX_CONNECTIONS)
}

pub(crate) fn pool(options: &PgConnectOptions, connections: usize) -> Result<Pool, SetupError> {
    let url = options.to_url_lossy();
    let parameter =
        |name| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    if parameter("sslcert").is_some() || parameter("sslkey").is_some() {
        return Err(SetupError::ClientCertificate);
    }
    let mut config = settings(options);
    // The URL has it encoded; everything else is asked of the options.
    if let Some(text) = url.password() {
        config.password(percent_encoding::percent_decode_str(text).collect::<Vec<u8>>());
    }
    let checks = options.get_ssl_mode();
    if matches!(checks, PgSslMode::Disable) {
        return build(config.ssl_mode(SslMode::Disable), NoTls, connections);
    }
    let if_it_can = matches!(checks, PgSslMode::Allow | PgSslMode::Prefer);
    config.ssl_mode(if if_it_can { SslMode::Prefer } else { SslMode::Require });
    build(&config, tls::connector(checks, parameter("sslrootcert").as_deref())?, connections)
}

fn build<T>(config: &Config, tls: T, connections: usize) -> Result<Pool, SetupError>
where
    T: MakeTlsConnect<Socket> + Clone + Sync + Send + 'static,
    T::Stream: Sync + Send,
    T::TlsConnect: Sync + Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Verified };
    let timeouts = Timeouts { wait: Some(TIMEOUT), create: Some(TIMEOUT), recycle: Some(TIMEOUT) };
    let pool = PoolConfig { max_size: connections, timeouts, ..PoolConfig::default() };
    let manager = Manager::from_config(config.clone(), tls, recycling);
    let pool = Pool::builder(manager).config(pool).runtime(Runtime::Tokio1).build();
    pool.map_err(|error| SetupError::Pool(error.to_string()))
}

fn settings(options: &PgConnectOptions) -> Config {
    let mut config = Config::new();
    match options.get_socket() {
        Some(folder) => config.host_path(folder),
        None => config.host(options.get_host()),
    };
    config.port(options.get_port());
    config.user(options.get_username());
    config.dbname(options.get_database().unwrap_or(options.get_username()));
    if let Some(name) = options.get_application_name() {
        config.application_name(name);
    }
    if let Some(settings) = options.get_options() {
        config.options(settings);
    }
    config.connect_timeout(TIMEOUT).tcp_user_timeout(NO_ANSWER);
    config.keepalives(true).keepalives_idle(KEEPALIVE).keepalives_interval(KEEPALIVE);
    config.keepalives_retries(KEEPALIVES);
    config
}

/// For `/readyz`.
pub async fn check(pool: &Pool) -> Result<(), String> {
    let conn = pool.get().await.map_err(|error| error.to_string())?;
    conn.simple_query("SELECT 1").await.map(drop).map_err(|error| error.to_string())
}
