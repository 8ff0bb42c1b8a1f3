//! Flags and environment of the live gateway. All of it is checked while it is parsed.

use crate::auth::{command, token::Secret};
use axum::http::HeaderValue;
use clap::{CommandFactory, FromArgMatches};
use cratemill_service::config::{Nats, Process};
use cratemill_store::{Database, objects::ObjectStore};

/// More would hardly have anything to do; who has more to do says so.
const MAX_OWN_REACTORS: usize = 4;

/// What the program is asked to do.
#[derive(Debug)]
pub enum Invocation {
    /// Run the service until a signal.
    Serve(Box<Config>),
    /// `token`: print one.
    Token(command::Config),
}

impl Invocation {
    /// Ends the process where the arguments are no good.
    pub fn parse() -> Self {
        Self::try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Printing a token has flags of its own, and needs none of the service's.
    fn try_parse_from<T>(arguments: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<std::ffi::OsString> + Clone,
    {
        let token = command::Config::command();
        let command = Config::command().subcommand(token).subcommand_negates_reqs(true);
        let matches = command.try_get_matches_from(arguments)?;
        match matches.subcommand() {
            Some((_, token)) => Ok(Self::Token(command::Config::from_arg_matches(token)?)),
            None => Ok(Self::Serve(Box::new(Config::from_arg_matches(&matches)?))),
        }
    }
}

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
    /// How many of them may follow logs, or read what is long past: these cost forty kilobytes each, the others a hundred bytes.
    #[arg(long, env = "MAX_FOLLOWERS", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_followers: u32,
    /// Threads that write to viewers; without it, one for each processor, up to four.
    #[arg(long, env = "REACTORS", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub reactors: Option<u8>,
    /// Seconds of silence after which a viewer gets a comment, so that what stands between knows the connection is used.
    #[arg(long, env = "VIEWER_HEARTBEAT_S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub viewer_heartbeat_s: u64,
    /// Signs the tokens of publishers and of followers of private topics; the same on all live nodes, at least 32 bytes.
    /// Without it nobody can publish.
    #[arg(long, env = "LIVE_TOKEN_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub live_token_secret: Option<Secret>,
}

impl Config {
    pub fn reactors(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from).min(MAX_OWN_REACTORS);
        self.reactors.map_or_else(processors, usize::from)
    }
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
        let secret = "--live-token-secret=hush-hush-hush-hush-hush-hush-hush";
        let config = Config::try_parse_from(NEEDED.into_iter().chain([secret])).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn a_token_takes_a_secret_and_nothing_of_the_service() {
        let secret = "--live-token-secret=0123456789abcdef0123456789abcdef";
        let arguments =
            ["cratemill-live", "token", secret, "--publish=topic.a", "--subscribe=topic.private.>"];
        assert!(matches!(Invocation::try_parse_from(arguments), Ok(Invocation::Token(_))));
        assert!(matches!(Invocation::try_parse_from(NEEDED), Ok(Invocation::Serve(_))));
        for bad in ["--publish=queue", "--publish=topic.a*", "--expires-in-s=0", "--live-token-secret=short"]
        {
            assert!(Invocation::try_parse_from(["cratemill-live", "token", secret, bad]).is_err(), "{bad}");
        }
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
