//! Where Mastodon's Redis and database are, by the names that its own server knows.

use super::redis::Source;
use clap::Args;
use cratemill_store::mastodon::{Database, Parts};
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};
use std::{fmt, str::FromStr, time::Duration};

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;
/// As sentinels' own example calls it, and Mastodon.
const SENTINEL_MASTER: &str = "mymaster";

/// Text that shows nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

impl FromStr for Hidden {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// The dialect `mastodon`. The names in the environment are those of Mastodon's server.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Address to serve on, if --listen does not say it: with PORT.
    #[arg(long, env = "BIND", value_name = "ADDRESS")]
    pub bind: Option<String>,
    #[arg(long, env = "PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// Mastodon's database. Without it the one of DB_HOST and so on, or of DATABASE_URL if nothing else is spoken here.
    #[arg(long, env = "MASTODON_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub mastodon_database_url: Option<Hidden>,
    #[arg(long, env = "DB_HOST", value_name = "HOST")]
    pub db_host: Option<String>,
    #[arg(long, env = "DB_PORT", value_name = "PORT")]
    pub db_port: Option<u16>,
    #[arg(long, env = "DB_USER", value_name = "NAME")]
    pub db_user: Option<String>,
    #[arg(long, env = "DB_PASS", value_name = "PASSWORD", hide_env_values = true)]
    pub db_pass: Option<Hidden>,
    #[arg(long, env = "DB_NAME", value_name = "NAME")]
    pub db_name: Option<String>,
    /// Connections to the database.
    #[arg(long, env = "DB_POOL", value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub db_pool: u16,
    /// disable, prefer, require, no-verify, verify-ca or verify-full.
    #[arg(long, env = "DB_SSLMODE", value_name = "MODE")]
    pub db_sslmode: Option<String>,
    /// Mastodon's Redis: `redis://user:password@host:6379/0`, or `rediss:` with TLS. Without it that of REDIS_HOST and so on.
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<Hidden>,
    #[arg(long, env = "REDIS_HOST", value_name = "HOST")]
    pub redis_host: Option<String>,
    #[arg(long, env = "REDIS_PORT", value_name = "PORT")]
    pub redis_port: Option<u16>,
    #[arg(long, env = "REDIS_DB", value_name = "NUMBER")]
    pub redis_db: Option<i64>,
    #[arg(long, env = "REDIS_USER", value_name = "NAME")]
    pub redis_user: Option<String>,
    #[arg(long, env = "REDIS_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub redis_password: Option<Hidden>,
    /// Stands before the names of channels and keys, with a colon: of older Mastodons.
    #[arg(long, env = "REDIS_NAMESPACE", value_name = "NAME")]
    pub redis_namespace: Option<String>,
    /// Sentinels that know where Redis is, `host:port` or `host`, separated by commas.
    #[arg(long, env = "REDIS_SENTINELS", value_name = "HOST", value_delimiter = ',')]
    pub redis_sentinels: Vec<String>,
    #[arg(long, env = "REDIS_SENTINEL_PORT", value_name = "PORT", default_value_t = SENTINEL_PORT)]
    pub redis_sentinel_port: u16,
    /// What they call it.
    #[arg(long, env = "REDIS_SENTINEL_MASTER", value_name = "NAME")]
    pub redis_sentinel_master: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_USERNAME", value_name = "NAME")]
    pub redis_sentinel_username: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub redis_sentinel_password: Option<Hidden>,
    /// Seconds after which what a viewer has blocked, muted and filtered is read again. It is never used for more than a
    /// minute.
    #[arg(long, env = "MASTODON_REFRESH_S", value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=40))]
    pub mastodon_refresh_s: u16,
    /// Seconds that a stream of server-sent events may be away and still get what it missed, by `Last-Event-ID`; 0 for none.
    #[arg(long, env = "MASTODON_REPLAY_S", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(0..=600))]
    pub mastodon_replay_s: u16,
    /// Connections with one access token at once, on this node; any number without it.
    #[arg(long, env = "MAX_CONNECTIONS_PER_TOKEN", value_name = "COUNT")]
    pub max_connections_per_token: Option<u32>,
    /// Connections from one address at once, on this node; any number without it. Behind a load balancer set
    /// --client-address-header too.
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT")]
    pub max_connections_per_address: Option<u32>,
}

/// The same, checked.
#[derive(Debug, Clone)]
pub struct MastodonConfig {
    pub flags: Flags,
    pub database: Database,
    pub redis: Source,
}

impl MastodonConfig {
    /// `database_url` is DATABASE_URL, where that is not somebody else's.
    pub fn checked(flags: Flags, database_url: Option<&Hidden>) -> Result<Self, String> {
        let url = flags.mastodon_database_url.as_ref().or(database_url);
        let password = flags.db_pass.as_ref().map(|hidden| hidden.0.as_str());
        let database = match url {
            Some(Hidden(url)) => Database::of_url(url, password)?,
            None if flags.db_host.is_none() && flags.db_name.is_none() => {
                return Err("the dialect `mastodon` needs Mastodon's database: MASTODON_DATABASE_URL, or DB_HOST, DB_NAME, DB_USER, DB_PASS".into());
            }
            None => Database::of_parts(&Parts {
                host: flags.db_host.clone(),
                port: flags.db_port,
                user: flags.db_user.clone(),
                password: password.map(str::to_owned),
                name: flags.db_name.clone(),
                ssl_mode: flags.db_sslmode.clone(),
            })?,
        };
        let redis = source(&flags).map_err(|error| format!("Redis: {error}"))?;
        Ok(Self { flags, database, redis })
    }

    /// Before the names of channels and keys.
    pub fn prefix(&self) -> String {
        self.flags.redis_namespace.as_deref().map_or_else(String::new, |namespace| format!("{namespace}:"))
    }

    pub fn replay(&self) -> Duration {
        Duration::from_secs(self.flags.mastodon_replay_s.into())
    }
}

fn source(flags: &Flags) -> redis::RedisResult<Source> {
    if flags.redis_sentinels.iter().any(|text| !text.trim().is_empty()) {
        return sentinels(flags, flags.redis_sentinel_master.as_deref().unwrap_or(SENTINEL_MASTER));
    }
    let info = if let Some(Hidden(url)) = &flags.redis_url {
        url.as_str().into_connection_info()?
    } else {
        let host = flags.redis_host.clone().unwrap_or_else(|| "localhost".into());
        let address = ConnectionAddr::Tcp(host, flags.redis_port.unwrap_or(REDIS_PORT));
        address.into_connection_info()?.set_redis_settings(settings(flags))
    };
    Ok(Source::Server(Box::new(Client::open(info)?)))
}

fn settings(flags: &Flags) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default().set_db(flags.redis_db.unwrap_or(0));
    if let Some(user) = &flags.redis_user {
        settings = settings.set_username(user);
    }
    if let Some(Hidden(password)) = &flags.redis_password {
        settings = settings.set_password(password);
    }
    settings
}

fn sentinels(flags: &Flags, master: &str) -> redis::RedisResult<Source> {
    let address = |text: &String| {
        let text = text.trim();
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = parts.unwrap_or((text, flags.redis_sentinel_port));
        ConnectionAddr::Tcp(host.to_owned(), port)
    };
    let named = flags.redis_sentinels.iter().filter(|text| !text.trim().is_empty());
    let addresses: Vec<ConnectionAddr> = named.map(address).collect();
    let kind = SentinelServerType::Master;
    let mut builder = SentinelClientBuilder::new(addresses, master, kind)?
        .set_client_to_redis_db(flags.redis_db.unwrap_or(0));
    if let Some(user) = &flags.redis_user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(Hidden(password)) = &flags.redis_password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = &flags.redis_sentinel_username {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(Hidden(password)) = &flags.redis_sentinel_password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    builder.build().map(Source::sentinels)
}
