//! Flags and environment of the live gateway. All of it is checked while it is parsed.

use crate::{
    auth::{command, token::Secret},
    mastodon::config::{Flags, Hidden, MastodonConfig},
};
use axum::http::{HeaderName, HeaderValue};
use clap::{ArgMatches, CommandFactory, FromArgMatches, parser::ValueSource};
use cratemill_service::config::{Nats, Process};
use cratemill_store::{database::DatabaseUrl, objects::ObjectStore};
use std::{
    ffi::{OsStr, OsString},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// More would hardly have anything to do; who has more to do says so.
const MAX_OWN_REACTORS: usize = 4;

/// What is required of every process has a default here, or is required only where logs are shown: see [`Config::checked`].
/// What is empty in the environment is not said there.
fn command() -> clap::Command {
    let command = ["s3_endpoint", "s3_bucket", "s3_access_key", "s3_secret_key", "nats_url"]
        .into_iter()
        .fold(Config::command(), |command, name| command.mut_arg(name, |arg| arg.required(false)))
        .mut_arg("listen", |arg| arg.required(false).default_value(LISTEN));
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let empty: Vec<clap::Id> = command
        .get_arguments()
        .filter(|arg| arg.get_env().is_some_and(is_empty))
        .map(|arg| arg.get_id().clone())
        .collect();
    without_env(command, empty.iter().map(clap::Id::as_str))
}

fn without_env<'a>(command: clap::Command, names: impl IntoIterator<Item = &'a str>) -> clap::Command {
    names
        .into_iter()
        .fold(command, |command, name| command.mut_arg(name, |arg| arg.env(None::<&'static str>)))
}

/// Where builds' logs are, by names that others use in their environments too.
const OBJECT_STORE: [&str; 5] = ["s3_endpoint", "s3_bucket", "s3_region", "s3_access_key", "s3_secret_key"];

/// What the arguments say. The environment of a Mastodon names an object store of its own, and it may name half of one.
fn matches_of<T>(
    command: &clap::Command,
    arguments: impl IntoIterator<Item = T>,
) -> Result<ArgMatches, clap::Error>
where
    T: Into<OsString> + Clone,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let matches = without_env(command.clone(), OBJECT_STORE).try_get_matches_from(&arguments);
    let Ok(matches) = matches else { return command.clone().try_get_matches_from(&arguments) };
    let speaks_native = matches.subcommand().is_none()
        && matches
            .get_many::<DialectName>("dialects")
            .is_some_and(|mut all| all.any(|one| *one == DialectName::Native));
    if speaks_native { command.clone().try_get_matches_from(&arguments) } else { Ok(matches) }
}

/// For who tries it.
const LISTEN: &str = "127.0.0.1:8080";
/// Where Mastodon's server listens.
const MASTODON_PORT: u16 = 4000;

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
        let command = command().subcommand(token).subcommand_negates_reqs(true);
        let matches = matches_of(&command, arguments)?;
        match matches.subcommand() {
            Some((_, token)) => Ok(Self::Token(command::Config::from_arg_matches(token)?)),
            None => Ok(Self::Serve(Box::new(Config::parsed(&matches)?))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DialectName {
    /// Events, logs and user topics, over SSE and WebSocket.
    Native,
    /// The zero-code event API.
    Events,
    /// Publish and subscribe in CBOR over WebSocket.
    Cbor,
    /// Mastodon's streaming API, in place of Mastodon's own server.
    Mastodon,
}

/// The native dialect.
#[derive(Debug, Clone, clap::Args)]
pub struct NativeConfig {
    /// Where archived logs are. The native dialect needs it.
    #[command(flatten)]
    pub objects: Option<ObjectStore>,
    /// Origins whose pages may read the streams, separated by commas, or `*`. Without it only pages of the same origin may.
    #[arg(long, env = "CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = parse_origin)]
    pub cors_origin: Vec<HeaderValue>,
}

/// The dialect `events`.
#[derive(Debug, Clone, clap::Args)]
pub struct EventApiConfig {
    /// The one origin whose pages may use the event API: `https://page.example`.
    #[arg(long = "origin", env = "EVENTS_ORIGIN", value_name = "ORIGIN", value_parser = parse_one_origin)]
    pub origin: Option<HeaderValue>,
    /// How long a login is good for, in seconds.
    #[arg(long = "expiry", env = "EVENTS_EXPIRY_S", value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(1..))]
    pub expiry_s: u32,
    /// Signs the tokens of users, at least 32 bytes, the same on all nodes. To change it name two: the first signs, both are
    /// good.
    #[arg(
        long = "secret",
        env = "EVENTS_SECRET",
        value_name = "SECRET",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub secrets: Vec<Secret>,
    /// Events that one user may insert.
    #[arg(long, env = "MAX_EVENTS_PER_USER", value_name = "COUNT", default_value_t = 1_000_000)]
    pub max_events_per_user: u32,
    /// The header in which the load balancer writes down its client's address, such as `x-forwarded-for`: sign-ups and logins
    /// are limited by address. Without it the address is the peer's.
    #[arg(long, env = "CLIENT_ADDRESS_HEADER", value_name = "NAME")]
    pub client_address_header: Option<HeaderName>,
    /// Publish what falls due from this process too, if no other one does. A gateway that does not speak `native` does so;
    /// the others leave it to dispatchers.
    #[arg(long, env = "SCHEDULE", value_name = "BOOL")]
    pub schedule: Option<bool>,
    /// Copies that the bus keeps of each message, where this process makes the streams: one that does not speak `native`.
    #[arg(long, env = "NATS_REPLICAS", value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub nats_replicas: u8,
}

/// The dialect `cbor`.
#[derive(Debug, Clone, clap::Args)]
pub struct CborConfig {
    /// Bytes of a publication. The bus has to take messages that are a little longer.
    #[arg(long, env = "MAX_PUBLICATION_BYTES", value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=8 << 20))]
    pub max_publication_bytes: u32,
    /// How long a member of a group may take for a publication, in seconds; then another one gets it.
    #[arg(long, env = "ACK_WAIT_S", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub ack_wait_s: u32,
    /// Refuse sessions without a token whose id is not random (no UUID of version 4).
    #[arg(long, env = "REQUIRE_V4_SESSIONS")]
    pub require_v4_sessions: bool,
    /// Days after which a session that nobody came back to is forgotten, with its subscriptions.
    #[arg(long, env = "SESSION_DAYS", value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub session_days: u32,
}

/// Streams build logs and events to viewers, from any point that is still kept.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cratemill-live", version)]
pub struct Config {
    #[command(flatten)]
    pub process: Process,
    /// Every dialect but `mastodon` needs it.
    #[command(flatten)]
    pub nats: Option<Nats>,
    /// Postgres: `postgres://user:password@host/database`. Ours, or Mastodon's where only `mastodon` is spoken.
    #[arg(long, alias = "database", env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<Hidden>,
    /// The same, checked: ours.
    #[arg(skip)]
    pub database: Option<DatabaseUrl>,
    /// What this node speaks, separated by commas.
    #[arg(long, env = "DIALECTS", value_name = "NAME", value_delimiter = ',', default_value = "native")]
    pub dialects: Vec<DialectName>,
    #[command(flatten)]
    pub native: NativeConfig,
    #[command(flatten)]
    pub event_api: EventApiConfig,
    #[command(flatten)]
    pub cbor: CborConfig,
    #[command(flatten)]
    mastodon_flags: Flags,
    /// The same, checked.
    #[arg(skip)]
    pub mastodon: Option<MastodonConfig>,
    /// Signs the tokens of publishers and of followers of private topics, and of who has a session over CBOR; the same on
    /// all live nodes, at least 32 bytes. Without it nobody can publish to a topic.
    #[arg(long, env = "LIVE_TOKEN_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub live_token_secret: Option<Secret>,
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
}

impl Config {
    /// As the program's arguments say: `["cratemill-live", "--dialects=events", ...]`.
    pub fn try_parse_from<T>(arguments: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<std::ffi::OsString> + Clone,
    {
        Self::parsed(&matches_of(&command(), arguments)?)
    }

    fn parsed(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut config = Self::from_arg_matches(matches)?;
        if matches.value_source("listen") == Some(ValueSource::DefaultValue) {
            config.listen_as_mastodon()?;
        }
        config.checked()
    }

    /// Where BIND and PORT say, and where Mastodon's server would if nothing else is spoken.
    fn listen_as_mastodon(&mut self) -> Result<(), clap::Error> {
        let Flags { bind, port, .. } = &self.mastodon_flags;
        let is_said = bind.is_some() || port.is_some();
        if !self.speaks(DialectName::Mastodon) || (self.needs_the_bus() && !is_said) {
            return Ok(());
        }
        let address = match bind.as_deref() {
            None | Some("" | "localhost") => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Some(bind) => bind.parse(),
        };
        let address = address.map_err(|_| {
            command().error(clap::error::ErrorKind::InvalidValue, "BIND is no address: 0.0.0.0, or ::")
        })?;
        self.process.listen = SocketAddr::new(address, port.unwrap_or(MASTODON_PORT));
        Ok(())
    }

    /// What each dialect needs beside what is right for itself.
    fn checked(mut self) -> Result<Self, clap::Error> {
        let wrong = |what: String| command().error(clap::error::ErrorKind::InvalidValue, what);
        let missing = |what: &str| {
            Err(command().error(clap::error::ErrorKind::MissingRequiredArgument, what.to_owned()))
        };
        if self.speaks(DialectName::Native) && self.native.objects.is_none() {
            return missing(
                "the dialect `native` needs an object store: --s3-endpoint, --s3-bucket, --s3-access-key, --s3-secret-key",
            );
        }
        if self.speaks(DialectName::Events) && self.event_api.secrets.is_empty() {
            return missing("the dialect `events` needs --secret");
        }
        if self.needs_the_bus() {
            if self.nats.is_none() {
                return missing("--nats-url is needed by every dialect but `mastodon`");
            }
            let Some(Hidden(url)) = &self.database_url else {
                return missing("--database-url is needed by every dialect but `mastodon`");
            };
            self.database = Some(url.parse().map_err(wrong)?);
        }
        if self.speaks(DialectName::Mastodon) {
            let url = self.database_url.as_ref().filter(|_| !self.needs_the_bus());
            let checked = MastodonConfig::checked(self.mastodon_flags.clone(), url).map_err(wrong)?;
            self.mastodon = Some(checked);
        }
        Ok(self)
    }

    /// Whether anything is spoken that is not only Mastodon's.
    pub fn needs_the_bus(&self) -> bool {
        self.dialects.iter().any(|dialect| *dialect != DialectName::Mastodon)
    }

    pub fn speaks(&self, dialect: DialectName) -> bool {
        self.dialects.contains(&dialect)
    }

    /// Whether this process may publish what falls due.
    pub fn schedules(&self) -> bool {
        self.speaks(DialectName::Events)
            && self.event_api.schedule.unwrap_or(!self.speaks(DialectName::Native))
    }

    pub fn reactors(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from).min(MAX_OWN_REACTORS);
        self.reactors.map_or_else(processors, usize::from)
    }
}

fn parse_one_origin(text: &str) -> Result<HeaderValue, String> {
    if text.trim() == "*" {
        return Err("expected one origin: its pages may send credentials".into());
    }
    parse_origin(text)
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
