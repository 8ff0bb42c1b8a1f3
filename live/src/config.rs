//! Flags and environment of the live gateway. All of it is checked while it is parsed.

use axum::http::HeaderValue;
use cratemill_service::config::{Nats, Process};
use cratemill_store::{Database, objects::ObjectStore};

/// Streams build logs and events to viewers, from any point that is still kept.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cratemill-live", version)]
pub struct Config {
    #[command(flatten)]
    pub process: Process,
    #[command(flatten)]
    pub nats: Nats,
    #[command(flatten)]
    pub database: Database,
    #[command(flatten)]
    pub objects: ObjectStore,
    /// Origins whose pages may read the streams, separated by commas, or `*`. Without it only pages of the same origin may.
    #[arg(long, env = "CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = parse_origin)]
    pub cors_origin: Vec<HeaderValue>,
    /// Viewers at once; one more is answered with 503 and tries another node.
    #[arg(long, env = "MAX_VIEWERS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_viewers: u32,
    /// Seconds of silence after which a viewer gets a comment, so that what stands between knows the connection is used.
    #[arg(long, env = "VIEWER_HEARTBEAT_S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub viewer_heartbeat_s: u64,
}

fn parse_origin(text: &str) -> Result<HeaderValue, String> {
    let text = text.trim();
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@']));
    if text != "*" && !is_origin {
        return Err("expected `*` or `http(s)://host[:port]`".into());
    }
    HeaderValue::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const NEEDED: [&str; 8] = [
        "cratemill-live",
        "--listen=127.0.0.1:0",
        "--nats-url=nats://live:hush@127.0.0.1:4222",
        "--database-url=postgres://u:hush@127.0.0.1/d",
        "--s3-endpoint=http://127.0.0.1:9",
        "--s3-bucket=b",
        "--s3-access-key=a",
        "--s3-secret-key=hush",
    ];

    #[test]
    fn shows_no_secret() {
        let config = Config::try_parse_from(NEEDED).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn origins_are_checked() {
        for good in ["*", "https://a.example", "http://a.example:8080, https://b.example"] {
            let flag = format!("--cors-origin={good}");
            assert!(Config::try_parse_from(NEEDED.iter().chain([&&*flag])).is_ok(), "{good}");
        }
        for bad in ["", "a.example", "https://", "https://a.example/", "https://u@a.example", "ftp://a"] {
            let flag = format!("--cors-origin={bad}");
            assert!(Config::try_parse_from(NEEDED.iter().chain([&&*flag])).is_err(), "{bad}");
        }
        assert!(Config::try_parse_from(NEEDED.iter().chain([&"--max-viewers=0"])).is_err());
    }
}
