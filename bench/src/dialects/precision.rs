//! How late events are that fall due in the same second, and what it costs that many others wait.

use super::{
    farm::Farm,
    people::{Watcher, now_us},
};
use crate::statistics::{Percentiles, hundredths, median};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

const DUE: usize = 1_000;
/// From inserting until they are due.
const AHEAD_S: u64 = 4;
const IDLE: Duration = Duration::from_secs(20);

const INSERT: &str = "
    WITH e AS (
        INSERT INTO events (id, user_id, collection_id, event, timestamp, data)
        SELECT gen_random_uuid(), $1, gen_random_uuid(), 'name-' || n, $2 + n % $3, '{\"n\":' || n || '}'
        FROM generate_series(1, $4) n RETURNING timestamp, seq, id
    )
    INSERT INTO due_events SELECT * FROM e";

pub(super) async fn measure(runs: usize, pending: u32) -> Result<Value> {
    let farm = Farm::start(1).await?;
    // In a year, and over a year.
    let year = 365 * 24 * 3_600;
    let later = i64::try_from(now_us() / 1_000_000)? + year;
    insert(&farm, later, year, i64::from(pending)).await?;
    // So that the database has nothing left to do of its own.
    for after in ["VACUUM ANALYZE events", "VACUUM ANALYZE due_events", "CHECKPOINT"] {
        sqlx::query(after).execute(&farm.pool).await?;
    }
    let (node, others) = (farm.cpu()?, farm.other_cpu()?);
    sleep(IDLE).await;
    let percent = |used: Duration| used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let (node, others) =
        (percent(farm.cpu()?.saturating_sub(node)), percent(farm.other_cpu()?.saturating_sub(others)));
    println!(
        "  while {pending} wait: {node:.2} % of a processor for the node, {others:.2} % for database and bus"
    );
    let (mut p50, mut p99, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let late = Percentiles::of(one(&farm).await?)?;
        println!(
            "  {DUE} of one second: p50 {:.1} ms, p99 {:.1} ms, last {:.1} ms",
            late.at(50),
            late.at(99),
            late.at(100)
        );
        p50.push(late.at(50));
        p99.push(late.at(99));
        last.push(late.at(100));
    }
    farm.stop().await?;
    Ok(json!({
        "schedule_pending": pending,
        "schedule_idle_node_percent": hundredths(node),
        "schedule_idle_database_and_bus_percent": hundredths(others),
        "schedule_late_p50_ms": hundredths(median(p50)),
        "schedule_late_p99_ms": hundredths(median(p99)),
        "schedule_late_last_ms": hundredths(median(last)),
    }))
}

async fn insert(farm: &Farm, at_s: i64, over_s: i64, count: i64) -> Result<()> {
    sqlx::query(INSERT)
        .bind(sqlx::types::Uuid::nil())
        .bind(at_s)
        .bind(over_s)
        .bind(count)
        .execute(&farm.pool)
        .await?;
    Ok(())
}

/// By how much each comes after its second, at a watcher.
async fn one(farm: &Farm) -> Result<Vec<f64>> {
    let mut watcher = Watcher::open(farm.address(0)?).await?;
    let due_s = now_us() / 1_000_000 + AHEAD_S;
    insert(farm, i64::try_from(due_s)?, 1, i64::try_from(DUE)?).await?;
    let mut late = Vec::new();
    while late.len() < DUE {
        let mut came = 0;
        watcher.read(|_| came += 1).await?;
        let now = now_us();
        // What comes before is the sync.
        if now >= due_s * 1_000_000 {
            let ms = Duration::from_micros(now - due_s * 1_000_000).as_secs_f64() * 1e3;
            late.extend(std::iter::repeat_n(ms, came));
        } else {
            ensure!(came <= DUE, "something came before it was due");
        }
    }
    Ok(late)
}
