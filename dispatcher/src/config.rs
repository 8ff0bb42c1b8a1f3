//! Flags and environment of the dispatcher. All of it is checked while it is parsed: nothing starts with bad values.

use crate::{
    audit,
    registry::{IndexUrl, Token},
};
use clap::{CommandFactory, FromArgMatches};
use cratemill_protocol::{CrateName, Limits, Target};
use cratemill_service::config::{Nats, Process};
use cratemill_store::{Database, objects::ObjectStore};
use std::time::Duration;

/// What the program is asked to do.
#[derive(Debug)]
pub enum Invocation {
    /// Run the service until a signal.
    Serve(Box<Config>),
    /// `audit`: look at everything once.
    Audit(Box<audit::config::Config>),
}

impl Invocation {
    /// Ends the process where the arguments are no good.
    pub fn parse() -> Self {
        Self::try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// An audit has flags of its own, and needs none of the service's.
    fn try_parse_from<T>(arguments: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<std::ffi::OsString> + Clone,
    {
        let audit = audit::config::Config::command();
        let command = Config::command().subcommand(audit).subcommand_negates_reqs(true);
        let matches = command.try_get_matches_from(arguments)?;
        match matches.subcommand() {
            Some((_, audit)) => Ok(Self::Audit(Box::new(audit::config::Config::from_arg_matches(audit)?))),
            None => Ok(Self::Serve(Box::new(Config::from_arg_matches(&matches)?))),
        }
    }
}

/// Watches the registry, assigns jobs to builders, takes their outcomes, and repairs what got lost.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cratemill-dispatcher", version)]
pub struct Config {
    #[command(flatten)]
    pub process: Process,
    #[command(flatten)]
    pub nats: Nats,
    #[command(flatten)]
    pub database: Database,
    #[command(flatten)]
    pub objects: ObjectStore,
    #[command(flatten)]
    pub registry: Registry,
    #[command(flatten)]
    pub limits: JobLimits,
    /// Target triples to build for, separated by commas. They are enabled at the first start that names them.
    #[arg(long, env = "TARGETS", value_name = "TRIPLE", value_delimiter = ',', value_parser = parse_target)]
    pub targets: Vec<Target>,
    /// Copies that the bus keeps of each message: 1, or 3 with a cluster of three or more servers.
    #[arg(long, env = "NATS_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub nats_replicas: u8,
    /// How long an accepted job stays its builder's without a heartbeat, in seconds; the same as the API nodes'.
    #[arg(long, env = "LEASE_S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=3600))]
    pub lease_s: u32,
    /// How long builders may catch up after the database or all dispatchers were away, before their leases count as run
    /// out, in seconds; several heartbeats.
    #[arg(long, env = "CATCH_UP_S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub catch_up_s: u32,
}

impl Config {
    pub fn catch_up(&self) -> Duration {
        Duration::from_secs(u64::from(self.catch_up_s))
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Registry {
    /// The registry's index: `default` for cargo's own, or `sparse+http(s)://...`.
    #[arg(long = "index", env = "REGISTRY_INDEX", value_name = "URL", default_value = "default")]
    pub index: IndexUrl,
    /// Token of a private registry, sent as its Authorization header where the registry asks for it.
    #[arg(long, env = "REGISTRY_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub registry_token: Option<Token>,
    /// Crates to watch for new versions, separated by commas.
    #[arg(long, env = "WATCH_CRATES", value_name = "NAME", value_delimiter = ',', value_parser = parse_crate)]
    pub crates: Vec<CrateName>,
    /// A list of more crates to watch, read again each time: plain text, a name a line, or RSS or Atom.
    #[arg(long = "feed", env = "WATCH_FEED", value_name = "URL", value_parser = parse_http_url)]
    pub feed: Option<reqwest::Url>,
    /// Seconds from one look at the watched crates to the next.
    #[arg(long, env = "WATCH_INTERVAL_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch_interval_s: u64,
}

/// What a job may use on a builder.
#[derive(Debug, Clone, clap::Args)]
pub struct JobLimits {
    /// Wall-clock seconds of a whole job.
    #[arg(long, env = "JOB_WALL_S", default_value_t = Limits::default().wall_s, value_parser = clap::value_parser!(u32).range(1..))]
    pub job_wall_s: u32,
    /// Memory of a job, in MiB.
    #[arg(long, env = "JOB_MEMORY_MIB", default_value_t = mib(Limits::default().memory_bytes), value_parser = clap::value_parser!(u64).range(1..MAX_MIB))]
    pub job_memory_mib: u64,
    /// Processes and threads of a job.
    #[arg(long, env = "JOB_PROCESSES", default_value_t = Limits::default().processes, value_parser = clap::value_parser!(u32).range(1..))]
    pub job_processes: u32,
    /// Cores of a job.
    #[arg(long, env = "JOB_CPUS", default_value_t = Limits::default().cpus, value_parser = clap::value_parser!(u16).range(1..))]
    pub job_cpus: u16,
    /// All files that a job writes, in MiB.
    #[arg(long, env = "JOB_OUTPUT_MIB", default_value_t = mib(Limits::default().output_bytes), value_parser = clap::value_parser!(u64).range(1..MAX_MIB))]
    pub job_output_mib: u64,
    /// Output of a job that becomes its log, in MiB.
    #[arg(long, env = "JOB_LOG_MIB", default_value_t = mib(Limits::default().log_bytes), value_parser = clap::value_parser!(u64).range(1..=MAX_LOG_MIB))]
    pub job_log_mib: u64,
    /// The .crate file, in MiB.
    #[arg(long, env = "JOB_SOURCE_MIB", default_value_t = mib(Limits::default().source_bytes), value_parser = clap::value_parser!(u64).range(1..MAX_MIB))]
    pub job_source_mib: u64,
    /// What the .crate file unpacks to, in MiB.
    #[arg(long, env = "JOB_UNPACKED_MIB", default_value_t = mib(Limits::default().unpacked_bytes), value_parser = clap::value_parser!(u64).range(1..MAX_MIB))]
    pub job_unpacked_mib: u64,
}

/// As text this is up to three times as long, and an API node takes no more than 160 MiB of an attempt's log.
const MAX_LOG_MIB: u64 = 48;
/// A byte count of so many MiB still fits 64 bits.
const MAX_MIB: u64 = 1 << 40;

const fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

impl JobLimits {
    pub fn limits(&self) -> Limits {
        Limits {
            wall_s: self.job_wall_s,
            memory_bytes: self.job_memory_mib << 20,
            processes: self.job_processes,
            cpus: self.job_cpus,
            output_bytes: self.job_output_mib << 20,
            log_bytes: self.job_log_mib << 20,
            source_bytes: self.job_source_mib << 20,
            unpacked_bytes: self.job_unpacked_mib << 20,
        }
    }
}

fn parse_target(text: &str) -> Result<Target, String> {
    let target = Target::parse(text.trim()).map_err(|error| error.to_string())?;
    if target.is_any() { Err("`any` is not a target triple".into()) } else { Ok(target) }
}

fn parse_crate(text: &str) -> Result<CrateName, String> {
    CrateName::parse(text.trim()).map_err(|error| error.to_string())
}

fn parse_http_url(text: &str) -> Result<reqwest::Url, String> {
    let url: reqwest::Url = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    if matches!(url.scheme(), "http" | "https") { Ok(url) } else { Err("expected http or https".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const NEEDED: [&str; 11] = [
        "cratemill-dispatcher",
        "--listen=127.0.0.1:0",
        "--nats-url=nats://dispatcher:x@127.0.0.1:4222",
        "--database-url=postgres://u:p@127.0.0.1/d",
        "--s3-endpoint=http://127.0.0.1:9",
        "--s3-bucket=b",
        "--s3-access-key=a",
        "--s3-secret-key=s",
        "--targets=x86_64-unknown-linux-gnu,aarch64-unknown-linux-gnu",
        "--crates=hexyl,bat",
        "--registry-token=hush",
    ];

    #[test]
    fn defaults_are_the_protocols() {
        let config = Config::try_parse_from(NEEDED).unwrap();
        assert_eq!(config.limits.limits(), Limits::default());
        assert_eq!((config.targets.len(), config.registry.crates.len()), (2, 2));
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn an_audit_needs_no_service() {
        let of_both = NEEDED[2..8].iter().copied();
        let parsed = |arguments: &[&'static str]| {
            Invocation::try_parse_from(
                ["x", "audit"].into_iter().chain(of_both.clone()).chain(arguments.iter().copied()),
            )
        };
        let Invocation::Audit(audit) = parsed(&["--at-rest", "--job=7", "--json"]).unwrap() else {
            panic!("an audit")
        };
        assert!(audit.demands.at_rest && audit.json && audit.demands.job.is_some());
        assert!(parsed(&["--since=2026-01-01T00:00:00Z"]).is_ok());
        for bad in ["--since=yesterday", "--job=x", "--settle-s=-1", "--listen=127.0.0.1:0"] {
            assert!(parsed(&[bad]).is_err(), "{bad}");
        }
        assert!(matches!(Invocation::try_parse_from(NEEDED).unwrap(), Invocation::Serve(_)));
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            "--targets=any",
            "--targets=X86",
            "--crates=a/b",
            "--index=ftp://x/",
            "--index=http://x/",
            "--feed=file:///etc/passwd",
            "--watch-interval-s=0",
            "--nats-replicas=9",
            "--job-log-mib=0",
            "--job-log-mib=49",
            "--lease-s=1",
        ] {
            assert!(Config::try_parse_from(NEEDED.iter().chain([&bad])).is_err(), "{bad}");
        }
    }
}
