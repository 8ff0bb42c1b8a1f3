//! The queue alone: enqueue, lease and completion by the statements of the dispatcher, without bus, nodes and builders.
//!
//! One connection leases in rounds and another ends what was leased, as a dispatcher's assignment and its outcomes do.

use super::{
    corpus,
    costs::{Costs, Totals, old_snapshot},
    server::Server,
};
use crate::statistics::{each_us, per_s};
use anyhow::{Context, Result, bail, ensure};
use cratemill_protocol::{
    Attempt, BuilderId, FailureClass, JobId, Outcome, Target, builder::JobRef, bus::BuildRequest,
    job::Timings,
};
use cratemill_store::{
    database, faults,
    nodes::{self, Run},
    queue,
    queue::{End, Ended, Ending},
    sessions::{self, Gone},
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Builders that wait, as many jobs as that each.
const BUILDERS: usize = 1_000;
const SLOTS: u16 = 16;
const MAX_WAITING: i64 = 128;
/// Jobs in a round, and in a statement that ends some.
const BATCH: i64 = 512;
/// Rounds that are leased and not ended.
const ROUNDS_AHEAD: usize = 4;
const NODE: &str = "node";
const LEASE_S: i32 = 60;
/// Of the whole run; it takes seconds.
const TIMEOUT: Duration = Duration::from_mins(5);

#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) enqueued_per_s: f64,
    pub(super) jobs_per_s: f64,
    /// Of the database, for each job from lease to completion.
    pub(super) cpu_us: f64,
    pub(super) costs: Costs,
}

#[derive(Debug, Clone, Copy)]
struct Leased {
    job: JobId,
    attempt: Attempt,
    builder: BuilderId,
}

/// On a fresh database of the server.
pub(super) async fn measure(server: &Server, jobs: usize, keep_snapshot: bool) -> Result<Measured> {
    let url = server.database().await?;
    let url = url.as_str();
    let pool = PgPoolOptions::new().max_connections(4).connect(url).await?;
    database::migrate(&pool).await?;
    let target = Target::parse("x86_64-unknown-linux-gnu")?;
    let builders = builders(&pool, &target).await?;
    let todo = corpus::fill(&pool, "q", jobs).await?;
    let old = if keep_snapshot { Some(old_snapshot(&pool).await?) } else { None };
    let before = Totals::read(&pool).await?;

    let started = Instant::now();
    for batch in todo.chunks(1_000) {
        let mut tx = pool.begin().await?;
        queue::enqueue_all(&mut tx, batch).await?;
        tx.commit().await?;
    }
    let enqueued_per_s = per_s(jobs, started.elapsed());
    // Nodes that say nothing for a while are taken for dead.
    nodes::mark(&mut *pool.acquire().await?, &Run { name: NODE.into(), epoch: 1 }).await?;
    let cpu = server.cpu()?;

    let started = Instant::now();
    let queue = database::for_queue(&pool);
    let (sender, receiver) = mpsc::channel(ROUNDS_AHEAD);
    let both = async { tokio::try_join!(lease(&queue, jobs, &builders, sender), complete(&queue, receiver)) };
    let ((), ended) = tokio::time::timeout(TIMEOUT, both).await.context("the queue stalls")??;
    ensure!(ended == jobs, "{ended} of {jobs} jobs ended");
    let jobs_per_s = per_s(jobs, started.elapsed());
    let cpu = each_us(server.cpu()?.saturating_sub(cpu), jobs);
    let finished: i64 = sqlx::query_scalar("SELECT count(*) FROM finished_jobs").fetch_one(&pool).await?;
    ensure!(usize::try_from(finished)? == jobs, "{finished} of {jobs} jobs are finished");

    // A connection that closes tells what it has counted.
    drop(old);
    pool.close().await;
    queue.close().await;
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
    let costs = Totals::read(&pool).await?.since(before, jobs);
    Ok(Measured { enqueued_per_s, jobs_per_s, cpu_us: cpu, costs })
}

async fn builders(pool: &PgPool, target: &Target) -> Result<Vec<BuilderId>> {
    let mut conn = pool.acquire().await?;
    let ids: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO builders (name) SELECT 'simulated-' || n FROM generate_series(1, $1) n RETURNING id",
    )
    .bind(i64::try_from(BUILDERS)?)
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<_> = ids.into_iter().map(BuilderId).collect();
    let run = Run { name: NODE.into(), epoch: 1 };
    nodes::register(&mut conn, &run).await?;
    for id in &ids {
        sessions::open(&mut conn, *id, &connection(*id), &run, std::slice::from_ref(target)).await?;
    }
    let requests: Vec<_> = ids.iter().map(|id| request(*id, 1, Vec::new())).collect();
    sessions::requests(&mut conn, &requests).await?;
    Ok(ids)
}

fn connection(builder: BuilderId) -> String {
    format!("connection-{builder}")
}

fn request(builder: BuilderId, serial: u64, answered: Vec<JobRef>) -> BuildRequest {
    BuildRequest {
        builder,
        connection: connection(builder),
        node: NODE.into(),
        targets: Vec::new(),
        serial,
        slots: SLOTS,
        answered,
    }
}

/// Rounds as the dispatcher's, until all is leased. That builders have taken what they were given and wait for more is
/// recorded now and then, when none waits any more.
async fn lease(
    pool: &PgPool,
    jobs: usize,
    builders: &[BuilderId],
    sender: mpsc::Sender<Vec<Leased>>,
) -> Result<()> {
    let mut conn = pool.acquire().await?;
    let (mut done, mut serial) = (0, 1);
    let mut given: HashMap<BuilderId, Vec<JobRef>> = HashMap::new();
    while done < jobs {
        let mut tx = sqlx::Connection::begin(&mut *conn).await?;
        let waiting = sessions::waiting(&mut tx, MAX_WAITING, &[]).await?;
        if waiting.is_empty() {
            drop(tx);
            ensure!(!given.is_empty(), "no builder waits, and none has a job");
            nodes::mark(&mut conn, &Run { name: NODE.into(), epoch: 1 }).await?;
            serial += 1;
            let requests: Vec<_> = builders
                .iter()
                .map(|of| request(*of, serial, given.remove(of).unwrap_or_default()))
                .collect();
            sessions::requests(&mut conn, &requests).await?;
            continue;
        }
        let candidates = queue::candidates(&mut tx, &waiting[0].targets, BATCH).await?;
        if candidates.is_empty() {
            bail!("{done} of {jobs} jobs were leased, and nothing waits");
        }
        let mut slots: Vec<_> = waiting.iter().map(|of| (of.builder, of.slots)).collect();
        let mut pairs = Vec::with_capacity(candidates.len());
        for (n, candidate) in candidates.iter().enumerate() {
            let count = slots.len();
            let (builder, left) = &mut slots[n % count];
            if *left > 0 {
                *left -= 1;
                pairs.push((candidate, *builder));
            }
        }
        let leased = queue::assign(&mut tx, &pairs, LEASE_S).await?;
        tx.commit().await?;
        let leased: Vec<_> = pairs
            .iter()
            .filter(|(job, _)| leased.contains(&job.id))
            .map(|(job, builder)| Leased {
                job: job.id,
                attempt: Attempt(job.attempt.0 + 1),
                builder: *builder,
            })
            .collect();
        done += leased.len();
        for of in &leased {
            given.entry(of.builder).or_default().push(JobRef { job: of.job, attempt: of.attempt });
        }
        if sender.send(leased).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn complete(pool: &PgPool, mut receiver: mpsc::Receiver<Vec<Leased>>) -> Result<usize> {
    let outcome = Outcome::Failed {
        class: FailureClass::Build,
        message: "simulated".into(),
        stage: None,
        timings: Timings::default(),
    };
    let mut done = 0;
    while let Some(leased) = receiver.recv().await {
        let end = End::Failed { class: FailureClass::Build, message: "simulated" };
        let endings: Vec<_> = leased
            .iter()
            .map(|of| Ending {
                job: of.job,
                attempt: of.attempt,
                builder: of.builder,
                end: end.clone(),
                ended: Ended { outcome: &outcome, last_seq: Some(0) },
            })
            .collect();
        let gone: Vec<_> = leased
            .iter()
            .map(|of| Gone { builder: of.builder, job: of.job, attempt: of.attempt, accepted: true })
            .collect();
        let of: Vec<_> = leased.iter().map(|of| of.builder).collect();
        let mut tx = pool.begin().await?;
        done += queue::end_all(&mut tx, &endings, false).await?.len();
        sessions::give_back(&mut tx, &gone).await?;
        faults::forget(&mut tx, &of).await?;
        tx.commit().await?;
    }
    Ok(done)
}
