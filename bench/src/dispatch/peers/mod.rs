//! The job queues that people use on Postgres today, doing what `dispatch` does: enqueue, run, complete.
//!
//! Each gets a fresh database of the same server, its best documented settings, and jobs that do nothing. Both run the
//! jobs in this process: no network lies between them and their workers. What is timed ends when the database says that
//! the last job is completed, not when its handler has returned.

mod awa;
mod graphile;
mod observer;
mod runs;

use crate::statistics::Percentiles;
use anyhow::{Context, Result};
use observer::{Observer, OldSnapshot};
use runs::Runs;
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Jobs that are enqueued in one call: both documents speak of batches of this order.
const BATCH: usize = 1_000;
/// Connections of a peer's pool: what graphile_worker opens by default, and awa's own benches.
const CONNECTIONS: u32 = 20;
/// Jobs before those whose wait counts: they open connections and prepare statements.
const WARM_UP: usize = 20;
/// Of whatever takes milliseconds to seconds: installing a schema, a batch, the end of a runtime.
const STEP_TIMEOUT: Duration = Duration::from_mins(1);
/// Of all jobs. The slower peer runs a million in this time; a worker that stalled runs none.
const RUN_TIMEOUT: Duration = Duration::from_mins(2);
/// Adds up to this to a run that takes a second.
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// For throughput: all are enqueued before the first may run.
    pub(crate) jobs: usize,
    /// For latency: one at a time, while the workers wait.
    pub(crate) latency_jobs: usize,
    pub(crate) latency_per_s: f64,
    /// Whether a transaction elsewhere keeps vacuum, and whoever prunes on its own, from every row that dies meanwhile.
    pub(crate) old_snapshot: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// In batches, by one producer.
    pub(crate) enqueued_per_s: f64,
    /// From the start of the workers until the last is durably completed.
    pub(crate) jobs_per_s: f64,
    /// From just before the call that enqueues a job until its handler begins.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// Of enqueue and run. The server's, so nothing else may write meanwhile.
    pub(crate) wal_bytes_per_job: f64,
    /// Row versions of the peer's tables that enqueue and run updated or deleted. Counted as they die, so that vacuum or
    /// a truncation in between hides none: a live count would tell when vacuum came by.
    pub(crate) dead_tuples_per_job: f64,
}

pub(crate) async fn graphile(url: &str, load: &Load) -> Result<Measured> {
    measure::<graphile::Graphile>(url, load).await
}

pub(crate) async fn awa(url: &str, load: &Load) -> Result<Measured> {
    // On the heap: what it keeps between steps is large, and its callers would carry it.
    Box::pin(measure::<awa::Awa>(url, load)).await
}

/// A job that does nothing but say that it began.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    number: usize,
}

/// What a peer's settings are for: neither has one set that is best at both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Throughput,
    Latency,
}

/// A queue with its workers.
trait Peer: Sized {
    const NAME: &'static str;
    /// Where its tables are.
    const SCHEMA: &'static str;

    /// Into an empty database.
    async fn install(url: &str) -> Result<()>;
    /// Everything but the workers, which wait for [`Peer::start`].
    async fn connect(url: &str, goal: Goal, runs: Arc<Runs>) -> Result<Self>;
    async fn enqueue(&self, jobs: Range<usize>) -> Result<()>;
    async fn enqueue_one(&self, job: usize) -> Result<()>;
    async fn start(&mut self) -> Result<()>;
    /// Whether every one of so many jobs, all that ever were, is completed in the database.
    async fn completed(&self, jobs: usize) -> Result<bool>;
    /// Returns when its connections are closed.
    async fn stop(self) -> Result<()>;
}

async fn measure<P: Peer>(url: &str, load: &Load) -> Result<Measured> {
    let run = async {
        within(STEP_TIMEOUT, "the schema", P::install(url)).await?;
        let mut observer = Observer::connect(url, P::SCHEMA).await?;
        let snapshot = if load.old_snapshot { Some(OldSnapshot::hold(url).await?) } else { None };
        let throughput = throughput::<P>(url, load, &mut observer).await?;
        let waits = latency::<P>(url, load).await?;
        if let Some(snapshot) = snapshot {
            snapshot.release().await?;
        }
        measured(&throughput, &waits)
    };
    run.await.map_err(|error: anyhow::Error| error.context(P::NAME))
}

struct Throughput {
    enqueued_per_s: f64,
    jobs_per_s: f64,
    wal_bytes_per_job: f64,
    dead_tuples_per_job: f64,
}

async fn throughput<P: Peer>(url: &str, load: &Load, observer: &mut Observer) -> Result<Throughput> {
    let jobs = f64::from(u32::try_from(load.jobs).context("too many jobs")?);
    let dead_before = observer.dead_row_versions().await?;
    let runs = Arc::new(Runs::new(load.jobs));
    let mut peer = P::connect(url, Goal::Throughput, runs.clone()).await?;
    let wal_before = observer.wal_bytes().await?;
    let timed = async {
        let enqueue = enqueue_all(&peer, load.jobs).await?;
        let run = run_all(&mut peer, &runs, load.jobs).await?;
        Ok((enqueue, run, observer.wal_bytes().await?))
    };
    let timed = timed.await;
    let (enqueue, run, wal_after) = stopped(peer, timed).await?;
    Ok(Throughput {
        enqueued_per_s: jobs / enqueue.as_secs_f64(),
        jobs_per_s: jobs / run.as_secs_f64(),
        wal_bytes_per_job: (wal_after - wal_before) / jobs,
        dead_tuples_per_job: (observer.dead_row_versions().await? - dead_before) / jobs,
    })
}

async fn enqueue_all<P: Peer>(peer: &P, jobs: usize) -> Result<Duration> {
    let started = Instant::now();
    for first in (0..jobs).step_by(BATCH) {
        let batch = first..(first + BATCH).min(jobs);
        within(STEP_TIMEOUT, "a batch to be enqueued", peer.enqueue(batch)).await?;
    }
    Ok(started.elapsed())
}

async fn run_all<P: Peer>(peer: &mut P, runs: &Runs, jobs: usize) -> Result<Duration> {
    let started = Instant::now();
    within(STEP_TIMEOUT, "the workers to start", peer.start()).await?;
    all_begin(runs, RUN_TIMEOUT).await?;
    let completed = async {
        while !peer.completed(jobs).await? {
            sleep(POLL).await;
        }
        Ok(())
    };
    within(STEP_TIMEOUT, "the last completion, although every job ran", completed).await?;
    Ok(started.elapsed())
}

async fn latency<P: Peer>(url: &str, load: &Load) -> Result<Vec<Duration>> {
    let pause = Duration::try_from_secs_f64(1.0 / load.latency_per_s).context("not a rate of jobs")?;
    let jobs = load.latency_jobs + WARM_UP;
    let runs = Arc::new(Runs::new(jobs));
    let mut peer = P::connect(url, Goal::Latency, runs.clone()).await?;
    let timed = async {
        within(STEP_TIMEOUT, "the workers to start", peer.start()).await?;
        let mut due = interval(pause);
        // The rate is kept even if a call takes longer than the pause: nobody waits for the queue to recover.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut enqueued = Vec::with_capacity(jobs);
        for job in 0..jobs {
            due.tick().await;
            enqueued.push(Instant::now());
            within(STEP_TIMEOUT, "a job to be enqueued", peer.enqueue_one(job)).await?;
        }
        all_begin(&runs, STEP_TIMEOUT).await?;
        Ok(enqueued)
    };
    let timed = timed.await;
    let enqueued = stopped(peer, timed).await?;
    let waits = enqueued.iter().zip(runs.began()).skip(WARM_UP);
    Ok(waits.filter_map(|(enqueued, began)| Some(began?.duration_since(*enqueued))).collect())
}

/// Stops the peer whatever came of it: one that stalled must not work on while the next is measured.
async fn stopped<P: Peer, T>(peer: P, outcome: Result<T>) -> Result<T> {
    let stop = within(STEP_TIMEOUT, "the workers to stop", peer.stop()).await;
    match (outcome, stop) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
        (Err(error), Err(stop)) => Err(error.context(format!("{stop:#}"))),
    }
}

async fn all_begin(runs: &Runs, limit: Duration) -> Result<()> {
    let all = timeout(limit, runs.all()).await;
    all.with_context(|| format!("stalled: {runs} after {limit:?}"))
}

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.with_context(|| format!("stalled: waited {limit:?} for {what}"))?
}

fn measured(throughput: &Throughput, waits: &[Duration]) -> Result<Measured> {
    let waits = Percentiles::of(waits.iter().map(|wait| wait.as_secs_f64() * 1_000.0).collect())?;
    Ok(Measured {
        enqueued_per_s: throughput.enqueued_per_s,
        jobs_per_s: throughput.jobs_per_s,
        p50_ms: waits.at(50),
        p99_ms: waits.at(99),
        max_ms: waits.at(100),
        wal_bytes_per_job: throughput.wal_bytes_per_job,
        dead_tuples_per_job: throughput.dead_tuples_per_job,
    })
}
