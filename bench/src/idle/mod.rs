//! Thousands of builders that wait: what each costs an API node in memory, what all of them cost every process in CPU
//! and the database in transactions, and how soon one of them has a new job.

mod latency;
mod usage;

use crate::{
    fleet::{self, Fleet},
    statistics::{Percentiles, count, hundredths},
};
use anyhow::{Result, ensure};
use cratemill_protocol::Target;
use cratemill_stack::{
    Cluster, Options, Role,
    fixtures::{Registry, crates, registry},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;
use usage::{Memory, Observer, Usage};

/// Logins leave work behind: requests to be recorded, events on their way, statistics to be told.
const SETTLE: Duration = Duration::from_secs(15);
/// Before anybody is connected; what changes by the minute is not of interest there.
const WITHOUT: Duration = Duration::from_secs(15);
/// Transactions a second that waiting builders may add, however many: what measures them, and what their logins left
/// behind, makes fewer. Ten thousand that were asked for once a minute would add more than a hundred.
const MOST_MORE_TRANSACTIONS: f64 = 5.0;
/// A process of this kind of machine may have 20,000 files open, and each connection is one of them.
const MAX_BUILDERS: usize = 19_000;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Builders that are logged in and wait.
    #[arg(long, default_value_t = 10_000)]
    builders: usize,
    /// API nodes that hold their connections.
    #[arg(long, default_value_t = 3)]
    api: usize,
    /// Jobs that each builder waits for.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    slots: u16,
    /// How long to look at them, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Jobs to enqueue afterwards, one after the other.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    jobs: u32,
}

struct Measured {
    login_per_s: f64,
    /// Of one connection.
    memory: Memory,
    without: Usage,
    idle: Usage,
    /// In milliseconds.
    latency: Percentiles,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!((1..=MAX_BUILDERS).contains(&arguments.builders), "1 to {MAX_BUILDERS} builders");
    ensure!((1..=8).contains(&arguments.api), "1 to 8 API nodes");
    let registry = Registry::start(registry::Options::default()).await?;
    registry.publish(&crates::hello_bin("1.0.0")?)?;
    let options =
        Options { api: arguments.api, builder: 0, index: registry.index_url(), ..Options::default() };
    // Once is enough: looking at the registry is no part of waiting.
    let cluster = Cluster::start(options.with_env(Role::Dispatcher, "WATCH_INTERVAL_S", "3600")).await?;
    let measured = measure(&cluster, &arguments).await;
    cluster.stop().await?;
    let measured = measured?;
    print(&arguments, &measured);
    println!("{}", json(&arguments, &measured));
    let more = measured.idle.transactions - measured.without.transactions;
    ensure!(
        more <= MOST_MORE_TRANSACTIONS,
        "builders that wait cost the database {more:.1} transactions a second, and {MOST_MORE_TRANSACTIONS} are allowed"
    );
    Ok(())
}

async fn measure(cluster: &Cluster, arguments: &Arguments) -> Result<Measured> {
    let nodes: Vec<String> = cluster.api.iter().filter_map(cratemill_stack::services::Service::url).collect();
    let targets = cluster.targets().iter().map(Target::parse).collect::<Result<Vec<_>, _>>()?;
    let identities = fleet::register(&cluster.client(), arguments.builders, &targets).await?;
    println!("{} builders are registered", identities.len());
    let mut observer = Observer::connect(cluster).await?;
    sleep(SETTLE).await;
    let without = observer.watch(WITHOUT).await?;

    let before = observer.memory()?;
    let options = fleet::Options { nodes, targets, slots: arguments.slots };
    let fleet = Fleet::start(identities, &options).await?;
    println!("all are logged in after {:.1} s", fleet.login.as_secs_f64());
    sleep(SETTLE).await;
    let idle = observer.watch(Duration::from_secs(arguments.seconds)).await?;
    let memory = observer.memory()?.since(before).each(arguments.builders);
    fleet.check()?;

    let latency = latency::measure(cluster, &fleet, arguments.jobs).await?;
    fleet.check()?;
    let login_per_s = count(arguments.builders) / fleet.login.as_secs_f64();
    Ok(Measured { login_per_s, memory, without, idle, latency })
}

fn print(arguments: &Arguments, measured: &Measured) {
    let Measured { login_per_s, memory, without, idle, latency } = measured;
    println!("{} builders wait on {} API nodes", arguments.builders, arguments.api);
    println!("  logins                {login_per_s:>9.0} a second");
    println!(
        "  memory each           {:>9.0} bytes anonymous, {:.0} resident",
        memory.anonymous, memory.resident
    );
    println!("  in a second                  waiting   without builders");
    for (name, with, without) in [
        ("API nodes, CPU ms", idle.api_ms, without.api_ms),
        ("dispatcher, CPU ms", idle.dispatcher_ms, without.dispatcher_ms),
        ("Postgres, CPU ms", idle.postgres_ms, without.postgres_ms),
        ("NATS, CPU ms", idle.nats_ms, without.nats_ms),
        ("transactions", idle.transactions, without.transactions),
    ] {
        println!("  {name:<22}{with:>13.2}{without:>14.2}");
    }
    println!(
        "  enqueue to accept     {:>9.2} ms median, {:.2} p99, {:.2} at most",
        hundredths(latency.at(50)),
        hundredths(latency.at(99)),
        hundredths(latency.at(100))
    );
}

fn json(arguments: &Arguments, measured: &Measured) -> Value {
    let Measured { login_per_s, memory, without, idle, latency } = measured;
    json!({
        "bench": "idle",
        "builders": arguments.builders,
        "api_nodes": arguments.api,
        "seconds": arguments.seconds,
        "login_per_s": login_per_s.round(),
        "anonymous_bytes_per_connection": memory.anonymous.round(),
        "resident_bytes_per_connection": memory.resident.round(),
        "per_s": idle.json(),
        "per_s_without_builders": without.json(),
        "jobs": arguments.jobs,
        "p50_ms": hundredths(latency.at(50)),
        "p99_ms": hundredths(latency.at(99)),
        "max_ms": hundredths(latency.at(100)),
    })
}
