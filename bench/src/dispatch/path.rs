//! The whole path: enqueue, commit, dispatcher, bus, API node, WebSocket, a simulated builder that accepts and ends the
//! job at once, bus, dispatcher, commit.

use super::{
    Arguments, corpus,
    costs::{Costs, Totals, old_snapshot},
};
use crate::{
    fleet::{self, Fleet, now_us},
    statistics::{Percentiles, hundredths, median, per_s},
    usage::{Each, Usage},
};
use anyhow::{Context, Result, ensure};
use cratemill_protocol::{JobId, Target};
use cratemill_stack::{
    Cluster, Options, Role,
    fixtures::{Registry, registry},
    services::Service,
};
use cratemill_store::{
    database,
    queue::{self, NewJob},
};
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

#[derive(Debug, Clone)]
pub(super) struct Measured {
    enqueued_per_s: f64,
    /// From the first enqueue to the last completion.
    jobs_per_s: f64,
    cpu: Each,
    costs: Costs,
    /// From before the enqueue to the builder's accept, in milliseconds.
    latency: Percentiles,
    /// Of jobs that come one by one.
    latency_cpu: Each,
}

/// The medians of all runs.
pub(super) fn json(runs: &[Measured]) -> Value {
    let of = |field: fn(&Measured) -> f64| median(runs.iter().map(field).collect());
    let cpu =
        |field: fn(&Measured) -> &Each| Each::medians(&runs.iter().map(field).collect::<Vec<_>>()).json();
    json!({
        "enqueued_per_s": of(|run| run.enqueued_per_s).round(),
        "jobs_per_s": of(|run| run.jobs_per_s).round(),
        "p50_ms": hundredths(of(|run| run.latency.at(50))),
        "p99_ms": hundredths(of(|run| run.latency.at(99))),
        "max_ms": hundredths(of(|run| run.latency.at(100))),
        "wal_bytes_per_job": of(|run| run.costs.wal_bytes).round(),
        "dead_tuples_per_job": hundredths(of(|run| run.costs.dead_tuples)),
        "cpu_us_per_job": cpu(|run| &run.cpu),
        "cpu_us_per_single_job": cpu(|run| &run.latency_cpu),
    })
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
    let used = Usage::read(cluster)?;
    let (enqueued_per_s, jobs_per_s) = throughput(&pool, &fleet, &jobs).await?;
    settled(&pool).await?;
    // With all that follows a job's end: what is put off is not saved.
    let cpu = Usage::read(cluster)?.since(&used, jobs.len());
    sleep(STATISTICS).await;
    let costs = Totals::read(&pool).await?.since(before, jobs.len());

    let jobs = corpus::fill(&pool, "single", arguments.latency_jobs).await?;
    let used = Usage::read(cluster)?;
    let latency = latency(&database::for_queue(&pool), &fleet, &jobs, arguments.latency_per_s).await?;
    let latency_cpu = Usage::read(cluster)?.since(&used, jobs.len());
    fleet.check()?;
    if let Some(old) = old {
        old.commit().await.context("the old snapshot was lost")?;
    }
    Ok(Measured { enqueued_per_s, jobs_per_s, cpu, costs, latency, latency_cpu })
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

/// Until what follows a job's end is done too: its log is archived, and the bus has its events.
async fn settled(pool: &PgPool) -> Result<()> {
    let all = async {
        loop {
            let left: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM outbox)
                        OR EXISTS (SELECT FROM finished_jobs WHERE log_object IS NULL AND builder_id IS NOT NULL)",
            )
            .fetch_one(pool)
            .await?;
            if !left {
                return anyhow::Ok(());
            }
            sleep(POLL).await;
        }
    };
    timeout(TIMEOUT, all).await.context("what follows the jobs does not end")?
}

async fn latency(pool: &PgPool, fleet: &Fleet, jobs: &[NewJob], per_s: f64) -> Result<Percentiles> {
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
    let mut accepted: HashMap<JobId, i64> = HashMap::new();
    let all = async {
        while !enqueued.keys().all(|job| accepted.contains_key(job)) {
            fleet.accepts.some().await;
            for accept in fleet.accepts.take() {
                // A job that is given out again has reached a builder before.
                accepted.entry(accept.job).or_insert(accept.at_us);
            }
        }
    };
    timeout(TIMEOUT, all).await.context("some jobs reach no builder")?;
    let wait_us = |(job, at_us): (&JobId, &i64)| i32::try_from(accepted.get(job)? - at_us).ok();
    let waits: Vec<f64> = enqueued.iter().filter_map(wait_us).map(|us| f64::from(us) / 1_000.0).collect();
    ensure!(waits.len() == jobs.len(), "{} of {} jobs were timed", waits.len(), jobs.len());
    Percentiles::of(waits)
}
