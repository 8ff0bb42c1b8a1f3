//! The whole path: enqueue, commit, dispatcher, bus, API node, WebSocket, a simulated builder that accepts and ends the
//! job at once, bus, dispatcher, commit.

use super::{
    Arguments, corpus,
    costs::{Costs, Totals, old_snapshot},
    hundredths, per_s,
};
use crate::fleet::{self, Fleet, now_us};
use anyhow::{Context, Result, ensure};
use cratemill_protocol::{JobId, Target};
use cratemill_stack::{
    Cluster, Options, Role,
    fixtures::{Registry, registry},
    services::Service,
};
use cratemill_store::queue::{self, NewJob};
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::time::{interval, sleep, timeout};

/// Jobs in one transaction, as whoever follows a registry enqueues them.
const ENQUEUE_BATCH: usize = 1_000;
/// Of a run that takes seconds.
const TIMEOUT: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(100);
/// Sessions that idle tell after ten seconds what they have counted.
const STATISTICS: Duration = Duration::from_secs(11);

#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) enqueued_per_s: f64,
    /// From the first enqueue to the last completion.
    pub(super) jobs_per_s: f64,
    pub(super) latency: Latency,
    pub(super) costs: Costs,
}

/// From before the enqueue to the builder's accept, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Measured {
    pub(super) fn json(&self) -> Value {
        json!({
            "enqueued_per_s": self.enqueued_per_s.round(),
            "jobs_per_s": self.jobs_per_s.round(),
            "p50_ms": self.latency.p50,
            "p99_ms": self.latency.p99,
            "max_ms": self.latency.max,
            "wal_bytes_per_job": self.costs.wal_bytes.round(),
            "dead_tuples_per_job": hundredths(self.costs.dead_tuples),
        })
    }
}

pub(super) async fn measure(arguments: &Arguments, keep_snapshot: bool) -> Result<Measured> {
    let registry = Registry::start(registry::Options::default()).await?;
    let options = Options {
        api: arguments.api,
        builder: 0,
        durable: true,
        index: registry.index_url(),
        ..Options::default()
    };
    // Once is enough: looking at the registry is no part of this.
    let cluster = Cluster::start(options.with_env(Role::Dispatcher, "WATCH_INTERVAL_S", "3600")).await?;
    let measured = on(&cluster, arguments, keep_snapshot).await;
    cluster.stop().await?;
    measured
}

async fn on(cluster: &Cluster, arguments: &Arguments, keep_snapshot: bool) -> Result<Measured> {
    let pool = PgPoolOptions::new().max_connections(4).connect(&cluster.postgres.url()).await?;
    let nodes = cluster.api.iter().filter_map(Service::url).collect();
    let targets = cluster.targets().iter().map(Target::parse).collect::<Result<Vec<_>, _>>()?;
    let identities = fleet::register(&cluster.client(), arguments.builders, &targets).await?;
    let options = fleet::Options { nodes, targets, slots: arguments.slots };
    let fleet = Fleet::start(identities, &options).await?;

    let jobs = corpus::fill(&pool, "whole", arguments.jobs).await?;
    let old = if keep_snapshot { Some(old_snapshot(&pool).await?) } else { None };
    let before = Totals::read(&pool).await?;
    let (enqueued_per_s, jobs_per_s) = throughput(&pool, &fleet, &jobs).await?;
    sleep(STATISTICS).await;
    let costs = Totals::read(&pool).await?.since(before, jobs.len());

    let jobs = corpus::fill(&pool, "single", arguments.latency_jobs).await?;
    let latency = latency(&pool, &fleet, &jobs, arguments.latency_per_s).await?;
    fleet.check()?;
    if let Some(old) = old {
        old.commit().await.context("the old snapshot was lost")?;
    }
    Ok(Measured { enqueued_per_s, jobs_per_s, latency, costs })
}

async fn throughput(pool: &PgPool, fleet: &Fleet, jobs: &[NewJob]) -> Result<(f64, f64)> {
    let started_us = now_us();
    let started = Instant::now();
    for batch in jobs.chunks(ENQUEUE_BATCH) {
        let mut tx = pool.begin().await?;
        queue::enqueue_all(&mut tx, batch).await?;
        tx.commit().await?;
    }
    let enqueued_per_s = per_s(jobs.len(), started.elapsed());
    let finished = timeout(TIMEOUT, finished(pool, fleet, jobs.len())).await.context("the path stalls")??;
    Ok((enqueued_per_s, per_s(jobs.len(), Duration::from_micros(u64::try_from(finished - started_us)?))))
}

/// When the last job was finished, in Unix microseconds.
async fn finished(pool: &PgPool, fleet: &Fleet, jobs: usize) -> Result<i64> {
    loop {
        fleet.check()?;
        let (count, last): (i64, Option<i64>) = sqlx::query_as(
            "SELECT count(*), (extract(epoch FROM max(finished_at)) * 1000000)::bigint FROM finished_jobs",
        )
        .fetch_one(pool)
        .await?;
        if let Some(last) = last.filter(|_| usize::try_from(count).is_ok_and(|count| count >= jobs)) {
            return Ok(last);
        }
        sleep(POLL).await;
    }
}

async fn latency(pool: &PgPool, fleet: &Fleet, jobs: &[NewJob], per_s: f64) -> Result<Latency> {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / per_s));
    fleet.accepts.take();
    let mut enqueued: HashMap<JobId, i64> = HashMap::new();
    for job in jobs {
        ticks.tick().await;
        let now = now_us();
        let mut tx = pool.begin().await?;
        let job = queue::enqueue(&mut tx, job).await?.id();
        tx.commit().await?;
        enqueued.insert(job, now);
    }
    let mut waits = Vec::new();
    let all = async {
        while waits.len() < enqueued.len() {
            fleet.accepts.some().await;
            let accepts = fleet.accepts.take();
            waits.extend(accepts.iter().filter_map(|of| Some(of.at_us - enqueued.get(&of.job)?)));
        }
    };
    timeout(TIMEOUT, all).await.context("some jobs reach no builder")?;
    ensure!(!waits.is_empty(), "no job was enqueued");
    waits.sort_unstable();
    let at = |percent: usize| {
        let us = waits[(waits.len() * percent / 100).min(waits.len() - 1)];
        hundredths(f64::from(u32::try_from(us).unwrap_or(u32::MAX)) / 1_000.0)
    };
    Ok(Latency { p50: at(50), p99: at(99), max: at(100) })
}
