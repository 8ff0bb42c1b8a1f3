//! graphile_worker: workers fetch into a local queue and delete what is completed, in batches.

use super::{CONNECTIONS, Goal, Job, Peer, observer::APPLICATION, runs::Runs};
use anyhow::{Context, Result};
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, RefetchDelayConfig, TaskHandler, Worker,
    WorkerContext, WorkerOptions, WorkerUtils,
};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{ops::Range, sync::Arc, time::Duration};
use tokio::task::JoinSet;

const SCHEMA: &str = "graphile_worker";
/// As its documentation and its benches recommend.
const RELEASE_DELAY: Duration = Duration::from_millis(5);
/// Jobs fetched and not begun go back after this. With its default of five minutes a worker now and then stood still
/// beside jobs it had fetched.
const LOCAL_TTL: Duration = Duration::from_secs(1);

pub(super) struct Graphile {
    pool: PgPool,
    utils: WorkerUtils,
    worker: Arc<Worker>,
    running: JoinSet<Result<()>>,
}

impl Peer for Graphile {
    const NAME: &'static str = "graphile_worker";
    const SCHEMA: &'static str = SCHEMA;

    async fn install(url: &str) -> Result<()> {
        let pool = connect(url).await?;
        WorkerUtils::new(&pool, SCHEMA).migrate().await?;
        pool.close().await;
        Ok(())
    }

    async fn connect(url: &str, goal: Goal, runs: Arc<Runs>) -> Result<Self> {
        let pool = connect(url).await?;
        let options = options(goal).schema(SCHEMA).pg_pool(pool.clone()).listen_os_shutdown_signals(false);
        let worker = options.add_extension(runs).define_job::<Job>().init().await?;
        let utils = worker.create_utils();
        Ok(Self { pool, utils, worker: Arc::new(worker), running: JoinSet::new() })
    }

    async fn enqueue(&self, jobs: Range<usize>) -> Result<()> {
        let specs: Result<Vec<_>> = jobs.map(raw).collect();
        self.utils.add_raw_jobs(&specs?).await?;
        Ok(())
    }

    async fn enqueue_one(&self, job: usize) -> Result<()> {
        self.utils.add_job(Job { number: job }, JobSpec::default()).await?;
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        let worker = self.worker.clone();
        self.running.spawn(async move { worker.run().await.context("the worker ended") });
        Ok(())
    }

    async fn completed(&self, _jobs: usize) -> Result<bool> {
        let none_left = sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM graphile_worker._private_jobs)");
        Ok(none_left.fetch_one(&self.pool).await?)
    }

    async fn stop(mut self) -> Result<()> {
        self.worker.request_shutdown();
        while let Some(ended) = self.running.join_next().await {
            ended??;
        }
        self.pool.close().await;
        Ok(())
    }
}

impl TaskHandler for Job {
    const IDENTIFIER: &'static str = "job";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let runs = context.get_ext::<Arc<Runs>>().ok_or("the worker knows of no runs")?;
        runs.begin(self.number);
        Ok::<(), &str>(())
    }
}

fn options(goal: Goal) -> WorkerOptions {
    let options =
        WorkerOptions::default().complete_job_batch_delay(RELEASE_DELAY).fail_job_batch_delay(RELEASE_DELAY);
    let local = LocalQueueConfig::default().with_ttl(LOCAL_TTL);
    match goal {
        // Its own throughput bench.
        Goal::Throughput => options
            .concurrency(500)
            .poll_interval(Duration::from_millis(5))
            .local_queue(local.with_size(5_000)),
        // The first notification ends the delay after a fetch that found little.
        Goal::Latency => {
            let delay = RefetchDelayConfig::default().with_duration(Duration::from_millis(100));
            let local = local.with_size(1_000).with_refetch_delay(delay.with_max_abort_threshold(1));
            options.concurrency(16).poll_interval(Duration::from_millis(500)).local_queue(local)
        }
    }
}

fn raw(number: usize) -> Result<RawJobSpec> {
    let payload = serde_json::to_value(Job { number })?;
    Ok(RawJobSpec { identifier: Job::IDENTIFIER.to_owned(), payload, spec: JobSpec::default() })
}

async fn connect(url: &str) -> Result<PgPool> {
    let options: PgConnectOptions = url.parse()?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
    Ok(pool.connect_with(options.application_name(APPLICATION)).await?)
}
