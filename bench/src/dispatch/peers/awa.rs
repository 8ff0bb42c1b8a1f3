//! awa: append-only partitions that are rotated and truncated, so that hardly a row is updated.

use super::{CONNECTIONS, Goal, Job, Peer, observer::APPLICATION, runs::Runs};
use anyhow::{Result, anyhow};
use awa::{
    Client, InsertOpts, InsertParams, JobArgs, JobResult, PartitionedQueue, QueueConfig, QueueStorage,
    QueueStorageConfig, model::insert::params_with,
};
use sqlx_of_awa::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{ops::Range, sync::Arc, time::Duration};

const QUEUE: &str = "bench";
/// Where `QueueStorage::queue_counts` looks for what ended: batches of the fast path, single rows of the others, and both
/// once their partition was truncated. It looks at much else besides, for seconds, which would count as time of the run.
const COMPLETED: &str = "SELECT (
        (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)
        + (SELECT count(*) FROM awa.done_entries)
        + (SELECT coalesce(sum(pruned_completed_count), 0) FROM awa.queue_terminal_rollups)
    )::bigint";
/// Of a worker that has nothing left to do.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Awa {
    pool: PgPool,
    storage: QueueStorage,
    queue: PartitionedQueue,
    client: Client,
}

impl Peer for Awa {
    const NAME: &'static str = "awa";
    const SCHEMA: &'static str = "awa";

    async fn install(url: &str) -> Result<()> {
        let pool = connect(url).await?;
        awa::migrations::run(&pool).await?;
        QueueStorage::new(QueueStorageConfig::default())?.install(&pool).await?;
        pool.close().await;
        Ok(())
    }

    async fn connect(url: &str, goal: Goal, runs: Arc<Runs>) -> Result<Self> {
        let pool = connect(url).await?;
        let (queue, config) = settings(goal)?;
        let client = Client::builder(pool.clone()).partitioned_queue(&queue, config);
        let client = client.register::<Job, _, _>(move |job, _| {
            runs.begin(job.number);
            async { Ok(JobResult::Completed) }
        });
        let storage = QueueStorage::new(QueueStorageConfig::default())?;
        Ok(Self { pool, storage, queue, client: client.build()? })
    }

    async fn enqueue(&self, jobs: Range<usize>) -> Result<()> {
        let params: Result<Vec<InsertParams>> = jobs.map(|job| self.params(job)).collect();
        self.storage.enqueue_params_copy(&self.pool, &params?).await?;
        Ok(())
    }

    async fn enqueue_one(&self, job: usize) -> Result<()> {
        let opts = self.queue.route_opts_by_index(InsertOpts::default(), job);
        awa::insert_with(&self.pool, &Job { number: job }, opts).await?;
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        Ok(self.client.start().await?)
    }

    async fn completed(&self, jobs: usize) -> Result<bool> {
        let completed: i64 = sqlx_of_awa::query_scalar(COMPLETED).fetch_one(&self.pool).await?;
        Ok(usize::try_from(completed)? == jobs)
    }

    async fn stop(self) -> Result<()> {
        self.client.shutdown(DRAIN_TIMEOUT).await;
        self.pool.close().await;
        Ok(())
    }
}

impl Awa {
    fn params(&self, number: usize) -> Result<InsertParams> {
        let opts = self.queue.route_opts_by_index(InsertOpts::default(), number);
        Ok(params_with(&Job { number }, opts)?)
    }
}

impl JobArgs for Job {
    fn kind() -> &'static str {
        "job"
    }
}

/// Without a deadline a job takes the path on which no row is updated.
fn settings(goal: Goal) -> Result<(PartitionedQueue, QueueConfig)> {
    let (partitions, max_workers, claim_batch_size) = match goal {
        Goal::Throughput => (2, 512, 512),
        Goal::Latency => (1, 50, 16),
    };
    let queue = PartitionedQueue::new(QUEUE, partitions).map_err(|error| anyhow!(error))?;
    let config = QueueConfig {
        max_workers,
        claim_batch_size,
        deadline_duration: Duration::ZERO,
        ..QueueConfig::default()
    };
    Ok((queue, config))
}

async fn connect(url: &str) -> Result<PgPool> {
    let options: PgConnectOptions = url.parse()?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
    Ok(pool.connect_with(options.application_name(APPLICATION)).await?)
}
