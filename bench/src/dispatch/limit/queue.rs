//! The ladder of the queue alone: from few statements that a durable queue gets by with, to more of what this one promises.

use super::tables;
use crate::{
    dispatch::{
        costs::{Costs, Totals},
        server::Server,
    },
    statistics::{each_us, per_s},
};
use anyhow::{Result, ensure};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use std::time::Instant;
use tokio::sync::mpsc;

const BATCH: usize = 512;
/// Batches that are leased and not ended.
const AHEAD: usize = 4;

/// Each writes what the one before writes, and something more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::dispatch) enum Promise {
    /// A row is changed once and deleted.
    Bare,
    /// What has ended is still known.
    History,
    /// Each step is an event that is published whatever happens.
    Events,
    /// Jobs go to builders that have slots left, which are locked and counted down.
    Slots,
}

impl Promise {
    pub(in crate::dispatch) const ALL: [Self; 4] = [Self::Bare, Self::History, Self::Events, Self::Slots];

    pub(in crate::dispatch) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::History => "and history",
            Self::Events => "and events",
            Self::Slots => "and slots",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(in crate::dispatch) struct Measured {
    pub(in crate::dispatch) jobs_per_s: f64,
    pub(in crate::dispatch) cpu_us: f64,
    pub(in crate::dispatch) costs: Costs,
}

/// On a fresh database of the server.
pub(in crate::dispatch) async fn measure(server: &Server, promise: Promise, jobs: usize) -> Result<Measured> {
    let url = server.database().await?;
    let pool = PgPoolOptions::new().max_connections(3).connect(&url).await?;
    tables::make(&pool).await?;
    let before = Totals::read(&pool).await?;
    tables::fill(&pool, jobs).await?;
    let cpu = server.cpu()?;

    let started = Instant::now();
    let (sender, receiver) = mpsc::channel(AHEAD);
    let ((), ended) =
        tokio::try_join!(lease(&pool, promise, jobs, sender), complete(&pool, promise, receiver))?;
    let elapsed = started.elapsed();
    ensure!(ended == jobs, "{ended} of {jobs} jobs ended");

    let cpu_us = each_us(server.cpu()?.saturating_sub(cpu), jobs);
    // A connection that closes tells what it has counted.
    pool.close().await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&url).await?;
    let costs = Totals::read(&pool).await?.since(before, jobs);
    Ok(Measured { jobs_per_s: per_s(jobs, elapsed), cpu_us, costs })
}

async fn lease(pool: &PgPool, promise: Promise, jobs: usize, sender: mpsc::Sender<Vec<i64>>) -> Result<()> {
    let mut last = 0_i64;
    let mut done = 0;
    while done < jobs {
        let mut tx = pool.begin().await?;
        // From where the last batch ended: nothing looks past what is dead.
        let leased: Vec<i64> = sqlx::query_scalar(
            "WITH next AS (SELECT id FROM bare WHERE id > $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)
             UPDATE bare b SET attempt = attempt + 1, builder = 1, lease_until = now() + interval '1 min'
             FROM next WHERE b.id = next.id
             RETURNING b.id",
        )
        .bind(last)
        .bind(i64::try_from(BATCH)?)
        .fetch_all(&mut *tx)
        .await?;
        ensure!(!leased.is_empty(), "{done} of {jobs} jobs were leased, and nothing waits");
        if promise >= Promise::Slots {
            take_slots(&mut tx).await?;
        }
        if promise >= Promise::Events {
            tables::say(&mut tx, leased.len()).await?;
        }
        tx.commit().await?;
        done += leased.len();
        last = leased.iter().copied().max().unwrap_or(last);
        if sender.send(leased).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn complete(pool: &PgPool, promise: Promise, mut receiver: mpsc::Receiver<Vec<i64>>) -> Result<usize> {
    let mut done = 0;
    while let Some(leased) = receiver.recv().await {
        let mut tx = pool.begin().await?;
        let ended = match promise {
            Promise::Bare => "DELETE FROM bare WHERE id = ANY($1)",
            _ => {
                "WITH gone AS (DELETE FROM bare WHERE id = ANY($1) RETURNING id, attempt, builder, lease_until)
                 INSERT INTO ended (id, attempt, builder, lease_until, result) SELECT *, 'failed' FROM gone"
            }
        };
        let count = leased.len();
        let ended = sqlx::query(ended).bind(leased).execute(&mut *tx).await?;
        done += usize::try_from(ended.rows_affected())?;
        if promise >= Promise::Events {
            tables::say(&mut tx, count).await?;
        }
        tx.commit().await?;
    }
    Ok(done)
}

/// As many builders as a round serves, held until it is committed.
async fn take_slots(conn: &mut PgConnection) -> Result<()> {
    sqlx::query(
        "WITH next AS (SELECT id FROM builder WHERE slots > 0 ORDER BY asked LIMIT 128 FOR UPDATE SKIP LOCKED)
         UPDATE builder b SET slots = slots - 4 FROM next WHERE b.id = next.id",
    )
    .execute(conn)
    .await?;
    Ok(())
}
