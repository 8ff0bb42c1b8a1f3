//! Flags and environment of the builder, checked before anything is dialled.

use crate::identity;
use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use cratemill_protocol::{Limits, Target, builder::MAX_SLOTS};
use reqwest::Url;
use std::{path::PathBuf, time::Duration};

/// Builds crates for a Cratemill service in a sandbox and uploads what comes out.
#[derive(Debug, Parser)]
#[command(name = "cratemill-builder", version)]
pub struct Args {
    /// The service's URL, as its operator gave it to you.
    #[arg(long, env = "SERVER")]
    pub server: String,
    /// What the server calls itself when it asks for a signature, if that is not the origin of --server.
    #[arg(long, env = "SERVER_NAME")]
    pub server_name: Option<String>,
    /// The OpenSSH private key that the operator registered for this builder.
    #[arg(
        long = "key",
        env = "KEY_FILE",
        value_name = "FILE",
        required_unless_present = "agent",
        conflicts_with = "agent"
    )]
    pub key: Option<PathBuf>,
    /// The file with the passphrase of an encrypted key; else KEY_PASSPHRASE, else it is asked for on a terminal.
    #[arg(long, env = "PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Sign with a key of the ssh-agent at SSH_AUTH_SOCK.
    #[arg(long)]
    pub agent: bool,
    /// Which key of the ssh-agent: `SHA256:...`, as `ssh-add -l` prints it. Needed if it holds more than one.
    #[arg(long, env = "FINGERPRINT", requires = "agent")]
    pub fingerprint: Option<String>,
    /// Jobs to run at the same time.
    #[arg(long, env = "SLOTS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SLOTS)))]
    pub slots: u16,
    /// A target triple to build for; repeat it for more. Default: the toolchain's host.
    #[arg(long = "target", env = "TARGETS", value_delimiter = ',', value_name = "TRIPLE")]
    pub targets: Vec<Target>,
    /// Where jobs and the download cache live. Default: a folder of its own in the user's cache folder.
    #[arg(long, env = "WORK_DIR", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// The Rust toolchain's folder (with bin/cargo). Default: that of the `rustc` on PATH.
    #[arg(long, env = "TOOLCHAIN", value_name = "DIR")]
    pub toolchain: Option<PathBuf>,
    /// Disk space in MiB that jobs leave free: below it, running jobs are killed, and below twice as much no new one is
    /// taken.
    #[arg(long, env = "MIN_FREE_DISK_MIB", default_value_t = 1_024)]
    pub min_free_disk_mib: u64,
    #[command(flatten)]
    pub caps: CapArgs,
    /// Seconds to finish running jobs after SIGTERM.
    #[arg(long, env = "DRAIN_S", default_value_t = 30)]
    pub drain_s: u64,
    /// How the builder's own messages on standard error look.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
}

/// What the owner allows a job at most, whatever the service says.
#[derive(Debug, clap::Args)]
pub struct CapArgs {
    /// Memory of one job in MiB.
    #[arg(long, env = "MAX_MEMORY_MIB")]
    pub max_memory_mib: Option<u64>,
    /// Processes and threads of one job.
    #[arg(long, env = "MAX_PROCESSES")]
    pub max_processes: Option<u32>,
    /// Cores of one job.
    #[arg(long, env = "MAX_CPUS")]
    pub max_cpus: Option<u16>,
    /// Seconds that one job may take.
    #[arg(long, env = "MAX_WALL_S")]
    pub max_wall_s: Option<u32>,
    /// Files that one job may write, in MiB.
    #[arg(long, env = "MAX_OUTPUT_MIB")]
    pub max_output_mib: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Lines for people.
    Text,
    /// An object a line, for machines.
    Json,
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    pub server: Server,
    pub key: identity::Source,
    pub slots: u16,
    /// Empty: the toolchain's host.
    pub targets: Vec<Target>,
    pub work_dir: PathBuf,
    pub toolchain: Option<PathBuf>,
    /// Disk space that jobs leave free.
    pub reserve_bytes: u64,
    pub caps: Caps,
    pub drain: Duration,
}

/// The service that we work for.
#[derive(Debug, Clone)]
pub struct Server {
    url: Url,
    name: Option<String>,
}

/// Upper bounds on a job's [`Limits`].
#[derive(Debug, Clone, Default)]
pub struct Caps {
    pub memory_bytes: Option<u64>,
    pub processes: Option<u32>,
    pub cpus: Option<u16>,
    pub wall_s: Option<u32>,
    pub output_bytes: Option<u64>,
}

impl Args {
    pub fn check(self) -> anyhow::Result<Config> {
        let server = Server::new(&self.server, self.server_name)?;
        let key = match self.key {
            Some(path) => identity::Source::File { path, passphrase_file: self.passphrase_file },
            None => identity::Source::Agent { fingerprint: self.fingerprint },
        };
        let work_dir = match self.work_dir {
            Some(dir) => dir,
            None => default_work_dir().context("neither XDG_CACHE_HOME nor HOME is set: give --work-dir")?,
        };
        Ok(Config {
            server,
            key,
            slots: self.slots,
            targets: self.targets,
            work_dir,
            toolchain: self.toolchain,
            reserve_bytes: self.min_free_disk_mib.saturating_mul(MIB),
            caps: self.caps.check()?,
            drain: Duration::from_secs(self.drain_s),
        })
    }
}

fn default_work_dir() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("cratemill-builder"))
}

const MIB: u64 = 1 << 20;

impl CapArgs {
    fn check(self) -> anyhow::Result<Caps> {
        let bytes = |mib: Option<u64>| mib.map(|mib| mib.saturating_mul(MIB));
        let caps = Caps {
            memory_bytes: bytes(self.max_memory_mib),
            processes: self.max_processes,
            cpus: self.max_cpus,
            wall_s: self.max_wall_s,
            output_bytes: bytes(self.max_output_mib),
        };
        let Caps { memory_bytes, processes, cpus, wall_s, output_bytes } = &caps;
        if [*memory_bytes, *output_bytes].contains(&Some(0))
            || [*processes, *wall_s].contains(&Some(0))
            || *cpus == Some(0)
        {
            bail!("a limit of 0 would let no job run");
        }
        Ok(caps)
    }
}

impl Caps {
    pub fn apply(&self, limits: &Limits) -> Limits {
        fn least<T: Ord + Copy>(wanted: T, cap: Option<T>) -> T {
            cap.map_or(wanted, |cap| wanted.min(cap))
        }
        Limits {
            memory_bytes: least(limits.memory_bytes, self.memory_bytes),
            processes: least(limits.processes, self.processes),
            cpus: least(limits.cpus, self.cpus),
            wall_s: least(limits.wall_s, self.wall_s),
            output_bytes: least(limits.output_bytes, self.output_bytes),
            ..*limits
        }
    }
}

impl Server {
    pub fn new(url: &str, name: Option<String>) -> anyhow::Result<Self> {
        let url = Url::parse(url).with_context(|| format!("--server {url:?} is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            bail!("--server is an http:// or https:// URL, not {url}");
        }
        if !url.username().is_empty() || url.password().is_some() {
            bail!("--server holds no user or password: a builder logs in with its key");
        }
        Ok(Self { url, name })
    }

    /// Where the builder's WebSocket is.
    pub fn socket_url(&self) -> String {
        let scheme = if self.url.scheme() == "https" { "wss" } else { "ws" };
        let rest = &self.url.as_str()[self.url.scheme().len()..];
        format!("{scheme}{}/api/v1/builder", rest.trim_end_matches('/'))
    }

    /// Whether a challenge in this name is one that we answer. Signing for anybody else would let them log in as us.
    pub fn is_called(&self, name: &str) -> bool {
        match &self.name {
            Some(expected) => expected.trim_end_matches('/') == name.trim_end_matches('/'),
            None => self.is_origin_of(name),
        }
    }

    /// Whether a URL is on this service, so that a job's token may go there.
    pub fn is_origin_of(&self, url: &str) -> bool {
        let same = |ours: &Url| Url::parse(url).is_ok_and(|url| url.origin() == ours.origin());
        same(&self.url)
            || self.name.as_deref().and_then(|name| Url::parse(name).ok()).is_some_and(|n| same(&n))
    }

    pub fn expected_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.url.origin().ascii_serialization())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dialled_server_gets_a_signature() {
        let server = Server::new("http://mill.test:8080/", None).unwrap();
        assert_eq!(server.socket_url(), "ws://mill.test:8080/api/v1/builder");
        for good in ["http://mill.test:8080", "http://mill.test:8080/", "http://MILL.test:8080/x"] {
            assert!(server.is_called(good), "{good}");
        }
        for bad in
            ["https://mill.test:8080", "http://mill.test", "http://mill.test:8080@evil.test/", "", "mill"]
        {
            assert!(!server.is_called(bad), "{bad}");
        }
        let renamed = Server::new("https://10.0.0.1/sub/", Some("https://mill.test".into())).unwrap();
        assert_eq!(renamed.socket_url(), "wss://10.0.0.1/sub/api/v1/builder");
        assert!(renamed.is_called("https://mill.test/") && !renamed.is_called("https://10.0.0.1"));
        assert!(
            renamed.is_origin_of("https://mill.test/api/v1/x")
                && !renamed.is_origin_of("https://mill.test.evil")
        );
    }

    #[test]
    fn what_is_not_a_server_is_refused() {
        for bad in ["", "mill.test", "ftp://mill.test", "ws://mill.test", "http://user:secret@mill.test"] {
            assert!(Server::new(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_owner_can_only_lower_limits() {
        let caps = Caps { wall_s: Some(10), processes: Some(1 << 30), ..Caps::default() };
        let limits = caps.apply(&Limits::default());
        assert_eq!((limits.wall_s, limits.processes), (10, Limits::default().processes));
    }

    #[test]
    fn a_key_or_an_agent_and_not_both() {
        let parse = |extra: &[&str]| {
            Args::try_parse_from(["cratemill-builder", "--server", "http://x"].iter().chain(extra))
        };
        assert!(parse(&["--key", "k"]).is_ok() && parse(&["--agent"]).is_ok());
        assert!(parse(&["--key", "k", "--agent"]).is_err());
        assert!(parse(&["--key", "k", "--slots", "0"]).is_err());
        assert!(parse(&["--key", "k", "--target", "NOT A TARGET"]).is_err());
    }
    #[test]
    fn every_flag_is_explained() {
        let command = <Args as clap::CommandFactory>::command();
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
    }
}
