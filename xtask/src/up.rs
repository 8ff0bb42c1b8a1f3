//! A local Cratemill that stays until it is told to stop.

use crate::{
    binaries,
    dev::{self, EnvFile},
    interrupted, say,
};
use anyhow::{Result, bail};
use cratemill_stack::{Cluster, Options, data_dir::DataDir, programs};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How soon a process that died on its own is noticed.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// API nodes.
    #[arg(long, default_value_t = 2)]
    api: usize,
    /// Live nodes.
    #[arg(long, default_value_t = 1)]
    live: usize,
    /// Dispatchers, side by side.
    #[arg(long, default_value_t = 1)]
    dispatcher: usize,
    /// Counters of downloads.
    #[arg(long, default_value_t = 1)]
    counter: usize,
    /// Builders, for this machine's target.
    #[arg(long, default_value_t = 1)]
    builder: usize,
    /// NATS servers: 1, or 3 for a cluster that keeps three copies of each message. Neither sees the messages of the
    /// other: what was under way is done again.
    #[arg(long, default_value = "1", value_parser = nats_servers)]
    nats: usize,
    /// Start a Redis too.
    #[arg(long)]
    redis: bool,
    /// Optimised programs.
    #[arg(long)]
    release: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Running> {
    let data_dir = open()?;
    let mut wanted = programs::BASE.to_vec();
    wanted.extend(arguments.redis.then_some(programs::REDIS_SERVER));
    programs::install_missing(&wanted, say::line)?;
    let options = Options {
        api: arguments.api,
        live: arguments.live,
        dispatcher: arguments.dispatcher,
        counter: arguments.counter,
        builder: arguments.builder,
        nats: arguments.nats,
        redis: arguments.redis,
        bin_dir: Some(binaries::build(arguments.release).await?),
        ..Options::default()
    };
    let cluster = start(data_dir, options).await?;
    let file = EnvFile::write(cluster.data_dir(), &cluster.env()?)?;
    say::line(&format!(
        "Cratemill is ready: {}\n  for your shell: set -a; . {}; set +a\n  logs: {}\n  Ctrl-C stops it",
        cluster.lb_url(),
        file.path().display(),
        cluster.data_dir().join("log").display()
    ));
    Ok(Running { cluster, file: Some(file) })
}

fn nats_servers(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("NATS runs with 1 server or with 3".into()),
    }
}

/// Locks `.dev`, or says who has it; what a killed predecessor wrote there is no longer true.
pub(crate) fn open() -> Result<DataDir> {
    let folder = dev::folder()?;
    let data_dir = DataDir::open(&folder)?;
    EnvFile::clear(&folder)?;
    Ok(data_dir)
}

pub(crate) async fn start(data_dir: DataDir, options: Options) -> Result<Cluster> {
    say::line("starting Postgres, NATS, S3, HAProxy and the services");
    let started = Instant::now();
    let cluster = Cluster::start_in(data_dir, options).await?;
    say::line(&format!("  all ready after {:.1} s", started.elapsed().as_secs_f32()));
    Ok(cluster)
}

/// A stack that is ready.
pub(crate) struct Running {
    pub(crate) cluster: Cluster,
    /// Tells others where it is, if they are to know.
    pub(crate) file: Option<EnvFile>,
}

impl Running {
    /// Keeps it until a signal, or until a part of it dies; then lets it drain. A second signal ends it at once.
    pub(crate) async fn stay(self) -> Result<()> {
        let end = tokio::select! {
            result = interrupted() => result,
            result = first_death(&self.cluster) => result,
        };
        drop(self.file);
        say::line("stopping");
        tokio::select! {
            stopped = self.cluster.stop() => stopped?,
            result = interrupted() => result?,
        }
        end
    }
}

async fn first_death(cluster: &Cluster) -> Result<()> {
    loop {
        for process in cluster.processes() {
            if let Some(status) = process.exited()? {
                bail!("{} ended ({status}){}", process.name(), process.log_tail());
            }
        }
        sleep(WATCH_INTERVAL).await;
    }
}
