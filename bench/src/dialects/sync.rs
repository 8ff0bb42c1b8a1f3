//! The latest of each name, for many who come at once, and many names for one.

use super::{farm::Farm, people::Watcher};
use crate::{
    live::usage,
    statistics::{count, hundredths, median},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Instant;
use tokio::task::JoinSet;

const NAMES: usize = 1_000;
const CLIENTS: usize = 1_000;
const MANY: usize = 100_000;

/// As if they had been published before the stream's first message.
const PUBLISHED: &str = "
    WITH e AS (
        INSERT INTO events (id, user_id, collection_id, event, timestamp, data)
        SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'name-' || n, 0, '\"' || repeat('x', 100) || '\"'
        FROM generate_series($1, $2) n RETURNING id, event
    )
    INSERT INTO latest_events SELECT sha256(convert_to(event, 'UTF8')), -substr(event, 6)::bigint, id FROM e";

pub(super) async fn measure(runs: usize) -> Result<Value> {
    let farm = Farm::start(1).await?;
    sqlx::query(PUBLISHED).bind(1_i64).bind(i64::try_from(NAMES)?).execute(&farm.pool).await?;
    let (mut times, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let before = farm.cpu()? + farm.other_cpu()?;
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(whole(farm.address(0)?, NAMES));
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
        cpus.push((farm.cpu()? + farm.other_cpu()?).saturating_sub(before).as_secs_f64() * 1e3);
        println!(
            "  {NAMES} names to {CLIENTS} clients: {:.0} ms, {:.0} ms of CPU but the clients'",
            times[times.len() - 1],
            cpus[cpus.len() - 1]
        );
    }
    farm.stop().await?;
    let (many_took, many_mb) = many().await?;
    println!("  {MANY} names to one: {many_took:.0} ms, the node has {many_mb:.1} MB more");
    let ms = median(times);
    Ok(json!({
        "sync_ms": hundredths(ms),
        "sync_events_per_s": hundredths(count(NAMES * CLIENTS) / ms * 1e3),
        "sync_cpu_ms": hundredths(median(cpus)),
        "sync_many_ms": hundredths(many_took),
        "sync_many_mb": hundredths(many_mb),
    }))
}

/// Milliseconds, and the memory that the node has more.
async fn many() -> Result<(f64, f64)> {
    let farm = Farm::start(1).await?;
    sqlx::query(PUBLISHED).bind(1_i64).bind(i64::try_from(MANY)?).execute(&farm.pool).await?;
    let before = usage::pss(&farm.pids())?;
    let began = Instant::now();
    whole(farm.address(0)?, MANY).await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    let more = usage::pss(&farm.pids())? - before;
    farm.stop().await?;
    Ok((took, more / 1e6))
}

async fn whole(address: std::net::SocketAddr, names: usize) -> Result<()> {
    let mut watcher = Watcher::open(address).await?;
    let mut came = 0;
    while came < names {
        watcher.read(|_| came += 1).await?;
    }
    Ok(())
}
