//! What the processes of a cluster use, as the kernel and Postgres count it.

use crate::{cpu, statistics::count};
use anyhow::{Context, Result};
use cratemill_stack::{Cluster, process::Process, services::Service};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::{
    fs,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// Bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident: f64,
    /// What no file is behind: heaps and stacks.
    pub(super) anonymous: f64,
}

impl Memory {
    pub(super) fn since(self, before: Self) -> Self {
        Self { resident: self.resident - before.resident, anonymous: self.anonymous - before.anonymous }
    }

    pub(super) fn each(self, connections: usize) -> Self {
        let of = count(connections);
        Self { resident: self.resident / of, anonymous: self.anonymous / of }
    }
}

/// In one second, on average.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) api_ms: f64,
    pub(super) dispatcher_ms: f64,
    pub(super) postgres_ms: f64,
    pub(super) nats_ms: f64,
    /// Each statement of an idle cluster is one of its own.
    pub(super) transactions: f64,
}

impl Usage {
    pub(super) fn json(&self) -> Value {
        let round = |value: f64| (value * 100.0).round() / 100.0;
        json!({
            "api_cpu_ms": round(self.api_ms),
            "dispatcher_cpu_ms": round(self.dispatcher_ms),
            "postgres_cpu_ms": round(self.postgres_ms),
            "nats_cpu_ms": round(self.nats_ms),
            "transactions": round(self.transactions),
        })
    }
}

pub(super) struct Observer {
    api: Vec<u32>,
    dispatcher: Vec<u32>,
    postgres: Vec<u32>,
    nats: Vec<u32>,
    database: PgConnection,
}

/// Totals since the processes began.
#[derive(Clone, Copy)]
struct Totals {
    at: Instant,
    api: f64,
    dispatcher: f64,
    postgres: f64,
    nats: f64,
    transactions: f64,
}

impl Observer {
    pub(super) async fn connect(cluster: &Cluster) -> Result<Self> {
        let of = |process: Option<&Process>| process.map(Process::pid).context("a process is not running");
        let services =
            |services: &[Service]| services.iter().map(|it| of(it.process())).collect::<Result<_>>();
        Ok(Self {
            api: services(&cluster.api)?,
            dispatcher: services(&cluster.dispatchers)?,
            postgres: vec![of(cluster.postgres.process())?],
            nats: cluster.nats.processes().map(Process::pid).collect(),
            database: PgConnection::connect(&cluster.postgres.url()).await?,
        })
    }

    pub(super) async fn watch(&mut self, time: Duration) -> Result<Usage> {
        let before = self.totals().await?;
        sleep(time).await;
        let after = self.totals().await?;
        let seconds = (after.at - before.at).as_secs_f64();
        let per_s = |of: fn(&Totals) -> f64| (of(&after) - of(&before)) / seconds;
        Ok(Usage {
            api_ms: per_s(|totals| totals.api),
            dispatcher_ms: per_s(|totals| totals.dispatcher),
            postgres_ms: per_s(|totals| totals.postgres),
            nats_ms: per_s(|totals| totals.nats),
            transactions: per_s(|totals| totals.transactions),
        })
    }

    /// Of all API nodes.
    pub(super) fn memory(&self) -> Result<Memory> {
        let mut sum = Memory { resident: 0.0, anonymous: 0.0 };
        for pid in &self.api {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum.resident += field(&rollup, "Rss:")?;
            sum.anonymous += field(&rollup, "Anonymous:")?;
        }
        Ok(sum)
    }

    async fn totals(&mut self) -> Result<Totals> {
        let transactions: i64 = sqlx::query_scalar(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()",
        )
        .fetch_one(&mut self.database)
        .await?;
        let sum = |pids: &[u32]| pids.iter().map(|pid| cpu::of(*pid)).sum::<Result<Duration>>().map(ms);
        Ok(Totals {
            at: Instant::now(),
            api: sum(&self.api)?,
            dispatcher: sum(&self.dispatcher)?,
            // A server process for each connection.
            postgres: ms(cpu::of_tree(self.postgres[0])?),
            nats: sum(&self.nats)?,
            transactions: count(usize::try_from(transactions)?),
        })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// A line such as `Rss:    1234 kB`, in bytes.
fn field(rollup: &str, name: &str) -> Result<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
    kib.map(|kib| f64::from(kib) * 1_024.0).with_context(|| format!("smaps_rollup has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes() {
        let rollup = "55-7ff ---p 00000000 00:00 0 [rollup]\nRss:                  12 kB\nAnonymous:             8 kB\n";
        assert!((field(rollup, "Rss:").unwrap() - 12_288.0).abs() < 0.5);
        assert!(field(rollup, "Swap:").is_err());
    }
}
