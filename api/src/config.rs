//! The configuration of an API node: flags or environment, checked before any port is bound.

use crate::downloads::Waiting;
use axum::http::Uri;
use cratemill_protocol::subjects::is_node_name;
use cratemill_service::config::{Nats, Process};
use cratemill_store::{Database, objects::ObjectStore};
use std::{fmt, path::PathBuf, str::FromStr};

/// A secret shorter than this can be guessed.
const MIN_SECRET_BYTES: usize = 16;
/// Room for the suffix in a node name that is made from a host name.
const MAX_HOST_CHARS: usize = 48;

#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cratemill-api", version, about = "Cratemill's API node: REST, builders, upload, download.")]
pub struct Config {
    #[command(flatten)]
    pub process: Process,
    #[command(flatten)]
    pub database: Database,
    #[command(flatten)]
    pub nats: Nats,
    #[command(flatten)]
    pub objects: ObjectStore,
    /// Where clients and builders reach the service: the load balancer's URL. Builders sign their login for it.
    #[arg(long, env = "PUBLIC_URL", value_name = "URL")]
    pub public_url: PublicUrl,
    /// Name of this node, unlike any other's: letters, digits, '-' and '_'.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value_t = default_node(), value_parser = node_name,
          hide_default_value = true)]
    pub node: String,
    /// Bearer token of the operator routes, at least 16 bytes.
    #[arg(long, env = "ADMIN_TOKEN", value_name = "SECRET", hide_env_values = true)]
    pub admin_token: Secret,
    /// Signs job tokens; the same on all API nodes, at least 16 bytes.
    #[arg(long, env = "TOKEN_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub token_secret: Secret,
    /// How artifacts reach a client: through this node, or from the object store by a redirect.
    #[arg(long, env = "DOWNLOADS", value_enum, default_value_t = Downloads::Stream)]
    pub downloads: Downloads,
    /// Folder for counts of downloads that the bus does not take now: whoever starts in it next tells the bus. Without it
    /// they wait in memory, and are lost if this process is killed before the bus is back.
    #[arg(long, env = "JOURNAL_DIR", value_name = "PATH")]
    pub journal_dir: Option<PathBuf>,
    /// How many bytes of such counts may wait; downloads beyond that are answered and not counted. One takes 20 to 30, less
    /// where many are of the same file.
    #[arg(long, env = "JOURNAL_BYTES", value_name = "BYTES", default_value_t = 64 << 20,
          value_parser = clap::value_parser!(u64).range(1 << 10..=1 << 32))]
    pub journal_bytes: u64,
    /// The largest file a builder may upload, in bytes.
    #[arg(long, env = "MAX_ARTIFACT_BYTES", value_name = "BYTES", default_value_t = 2 << 30,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub max_artifact_bytes: u64,
    /// How often builders are to send a heartbeat, in seconds.
    #[arg(long, env = "HEARTBEAT_S", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub heartbeat_s: u32,
    /// How long a job stays a builder's without a heartbeat, in seconds.
    #[arg(long, env = "LEASE_S", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub lease_s: u32,
    /// How long a builder may take to log in, in seconds.
    #[arg(long, env = "LOGIN_TIMEOUT_S", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=300))]
    pub login_timeout_s: u32,
    /// Token for a private registry: this node fetches sources for builders with it.
    #[arg(long, env = "REGISTRY_TOKEN", value_name = "SECRET", hide_env_values = true)]
    pub registry_token: Option<RegistryToken>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Downloads {
    Stream,
    Redirect,
}

impl Config {
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting { folder: self.journal_dir.clone(), max_bytes: self.journal_bytes }
    }

    /// What no single flag can say.
    pub fn check(&self) -> Result<(), String> {
        if self.lease_s <= self.heartbeat_s {
            return Err(format!(
                "LEASE_S ({}) must be longer than HEARTBEAT_S ({}), or every lease runs out",
                self.lease_s, self.heartbeat_s
            ));
        }
        Ok(())
    }
}

/// `http` or `https`, a host, perhaps a port, and nothing else: without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PublicUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("expected http://host[:port] or https://host[:port]".into());
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err("expected a URL without user, path and query".into());
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

/// Text that shows in no log; long enough not to be guessed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() < MIN_SECRET_BYTES {
            return Err(format!(
                "a secret has at least {MIN_SECRET_BYTES} bytes, this one has {}",
                text.len()
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Somebody else made it, so its length is not ours to judge; it must fit into a header.
#[derive(Clone)]
pub struct RegistryToken(String);

impl RegistryToken {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RegistryToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryToken(..)")
    }
}

impl FromStr for RegistryToken {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err("a registry token is printable ASCII".into());
        }
        Ok(Self(text.to_owned()))
    }
}

fn node_name(text: &str) -> Result<String, String> {
    if is_node_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a node name is 1 to 64 letters, digits, '-' or '_', and not \"all\"".into())
    }
}

/// The host's name, so that people recognise it, and a random part, so that two nodes on one host differ.
fn default_node() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(MAX_HOST_CHARS)
        .collect();
    let host = if host.is_empty() { "api" } else { &host };
    format!("{host}-{:06x}", rand::random_range(0..1_u32 << 24))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const GOOD: [&str; 11] = [
        "cratemill-api",
        "--listen=127.0.0.1:0",
        "--database-url=postgres://u:p@h/d",
        "--nats-url=nats://u:p@h:4222",
        "--s3-endpoint=http://h",
        "--s3-bucket=b",
        "--s3-access-key=a",
        "--s3-secret-key=hidden-s3-secret",
        "--public-url=http://cratemill.test:8080/",
        "--admin-token=0123456789abcdef",
        "--token-secret=fedcba9876543210",
    ];

    fn parse(more: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(GOOD.iter().chain(more))
    }

    #[test]
    fn a_good_one_has_its_defaults() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.public_url.as_str(), "http://cratemill.test:8080");
        assert!(is_node_name(&config.node), "{}", config.node);
        assert_eq!((config.heartbeat_s, config.lease_s, config.downloads), (10, 60, Downloads::Stream));
        assert!(config.check().is_ok());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (flag, expected) in [
            ("--node=a.b", "a node name is"),
            ("--node=all", "a node name is"),
            ("--heartbeat-s=0", "0 is not in 1.."),
            ("--max-artifact-bytes=0", "0 is not in 1.."),
            ("--registry-token=a\nb", "printable ASCII"),
            ("--downloads=pigeon", "possible values: stream, redirect"),
        ] {
            let error = parse(&[flag]).unwrap_err().to_string();
            assert!(error.contains(expected), "{flag}: {error}");
        }
        for bad in ["ftp://h", "http://h/path", "http://h?q", "http://u:p@h", "h", "", "http://"] {
            assert!(bad.parse::<PublicUrl>().is_err(), "{bad}");
        }
        assert!("short".parse::<Secret>().unwrap_err().contains("16 bytes"));
        assert!(parse(&["--lease-s=5"]).unwrap().check().unwrap_err().contains("LEASE_S (5)"));
    }

    #[test]
    fn secrets_do_not_show() {
        let shown = format!("{:?}", parse(&["--registry-token=registry-secret"]).unwrap());
        for secret in ["0123456789abcdef", "fedcba9876543210", "registry-secret", "hidden-s3", "u:p"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}
