//! What a job's rows ask of the database, and its events of the bus: CPU time of both, beside which everything else has to
//! run.

use super::tables;
use crate::{cpu, dispatch::server::Server, statistics::each_us};
use anyhow::{Context, Result};
use cratemill_service::{bus::Bus, config::NatsUrl, streams};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::postgres::PgPoolOptions;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const BATCH: usize = 512;
/// Messages that wait for the bus at once.
const WINDOW: usize = 512;
/// Queued, assigned, running, ended.
const EVENTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(10);

/// Each row and event once, in batches: queued, leased, accepted, ended, and its events published.
pub(in crate::dispatch) async fn postgres_us(server: &Server, jobs: usize) -> Result<f64> {
    let url = server.database().await?;
    let pool = PgPoolOptions::new().max_connections(1).connect(&url).await?;
    tables::make(&pool).await?;
    let cpu = server.cpu()?;
    for first in (1..=jobs).step_by(BATCH) {
        let count = BATCH.min(jobs + 1 - first);
        let (from, to) = (i64::try_from(first)?, i64::try_from(first + count)? - 1);
        let mut tx = pool.begin().await?;
        tables::insert(&mut tx, first, count).await?;
        tables::say(&mut tx, count).await?;
        tx.commit().await?;
        for step in [
            "UPDATE bare SET attempt = attempt + 1, builder = 1, lease_until = now() WHERE id BETWEEN $1 AND $2",
            "UPDATE bare SET lease_until = now() + interval '1 min' WHERE id BETWEEN $1 AND $2",
            "WITH gone AS (DELETE FROM bare WHERE id BETWEEN $1 AND $2 RETURNING id, attempt, builder, lease_until)
             INSERT INTO ended (id, attempt, builder, lease_until, result) SELECT *, 'failed' FROM gone",
        ] {
            let mut tx = pool.begin().await?;
            sqlx::query(step).bind(from).bind(to).execute(&mut *tx).await?;
            tables::say(&mut tx, count).await?;
            tx.commit().await?;
        }
        let said: Vec<(i64, Vec<String>, Vec<Vec<u8>>)> =
            sqlx::query_as("SELECT id, subjects, payloads FROM said ORDER BY id").fetch_all(&pool).await?;
        let ids: Vec<i64> = said.into_iter().map(|(id, ..)| id).collect();
        sqlx::query("DELETE FROM said WHERE id = ANY($1)").bind(ids).execute(&pool).await?;
    }
    let used = server.cpu()?.saturating_sub(cpu);
    pool.close().await;
    Ok(each_us(used, jobs))
}

/// Four events of each job stored by the real streams, and acknowledged. A relay that is far behind publishes fewer.
pub(in crate::dispatch) async fn nats_us(jobs: usize) -> Result<f64> {
    let data_dir = DataDir::temporary()?;
    let mut nats = Nats::start(&data_dir, &mut Secrets::open(data_dir.path())?).await?;
    let url: NatsUrl =
        nats.url("dispatcher")?.parse().map_err(|why| anyhow::anyhow!("the bus's URL: {why}"))?;
    let bus = Bus::connect(&url, "dispatcher").await?;
    streams::ensure(&bus, 1, &CancellationToken::new()).await?;
    let pid = nats.processes().next().context("the bus is not running")?.pid();
    let before = cpu::of(pid)?;
    let bus = &bus;
    stream::iter(0..jobs * EVENTS)
        .map(async |n| {
            let (job, step) = (n / EVENTS, n % EVENTS);
            let (subject, id) = (tables::subject(job)?, format!("o{step}.{job}"));
            bus.store(&subject, &id, tables::event(job).into(), PATIENCE).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(WINDOW)
        .try_collect::<()>()
        .await?;
    let used = cpu::of(pid)?.saturating_sub(before);
    nats.stop().await?;
    Ok(each_us(used, jobs))
}
