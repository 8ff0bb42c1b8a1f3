//! Events end to end: HTTP, database, schedule, bus, node, watcher.

use super::{
    farm::Farm,
    people::{Inserter, Watcher, log_in, now_us},
};
use crate::statistics::{Percentiles, count, hundredths, median};
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const INSERTERS: usize = 64;
const LONG: Duration = Duration::from_secs(10);
/// One at a time, for how long it takes.
const ALONE: usize = 200;

struct Run {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    alone_p50_ms: f64,
    node_us: f64,
    other_us: f64,
}

pub(super) async fn measure(runs: usize) -> Result<Value> {
    let mut all = Vec::new();
    for _ in 0..runs {
        let run = one().await?;
        println!(
            "  {:.0} events/s from insert to watcher, p50 {:.1} ms, p99 {:.1} ms; alone {:.1} ms; CPU of each: {:.0} us of the \
             node, {:.0} us of database and bus",
            run.per_s, run.p50_ms, run.p99_ms, run.alone_p50_ms, run.node_us, run.other_us
        );
        all.push(run);
    }
    let of = |field: fn(&Run) -> f64| hundredths(median(all.iter().map(field).collect()));
    Ok(json!({
        "events_per_s": of(|run| run.per_s),
        "events_p50_ms": of(|run| run.p50_ms),
        "events_p99_ms": of(|run| run.p99_ms),
        "events_alone_p50_ms": of(|run| run.alone_p50_ms),
        "events_node_us_each": of(|run| run.node_us),
        "events_database_and_bus_us_each": of(|run| run.other_us),
    }))
}

async fn one() -> Result<Run> {
    let farm = Farm::start(1).await?;
    let address = farm.address(0)?;
    let token = log_in(address).await?;
    let mut watcher = Watcher::open(address).await?;
    let mut alone = Vec::new();
    let mut inserter = Inserter::connect(address, &token).await?;
    while alone.len() < ALONE {
        inserter.insert("alone", 0).await?;
        let before = alone.len();
        while alone.len() == before {
            watcher.read(|data| alone.push(since_ms(data))).await?;
        }
    }
    let (before, other_before) = (farm.cpu()?, farm.other_cpu()?);
    let (stop, so_far) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut inserters = JoinSet::new();
    let began = Instant::now();
    for number in 0..INSERTERS {
        let (token, stop, so_far) = (token.clone(), Arc::clone(&stop), Arc::clone(&so_far));
        inserters.spawn(async move {
            let mut inserter = Inserter::connect(address, &token).await?;
            let name = format!("name-{number}");
            while !stop.load(Ordering::Relaxed) {
                inserter.insert(&name, 0).await?;
                so_far.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    let mut delays = Vec::new();
    while began.elapsed() < LONG {
        watcher.read(|data| delays.push(since_ms(data))).await?;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = inserters.join_next().await {
        ended??;
    }
    // What is still on its way counts, and its time too.
    while delays.len() < so_far.load(Ordering::Relaxed) {
        watcher.read(|data| delays.push(since_ms(data))).await?;
    }
    let (took, events) = (began.elapsed(), delays.len());
    let each = |time: Duration| time.as_secs_f64() * 1e6 / count(events);
    let (node_us, other_us) =
        (each(farm.cpu()?.saturating_sub(before)), each(farm.other_cpu()?.saturating_sub(other_before)));
    let delays = Percentiles::of(delays)?;
    let run = Run {
        per_s: count(events) / took.as_secs_f64(),
        p50_ms: delays.at(50),
        p99_ms: delays.at(99),
        alone_p50_ms: Percentiles::of(alone)?.at(50),
        node_us,
        other_us,
    };
    farm.stop().await?;
    Ok(run)
}

fn since_ms(data: &[u8]) -> f64 {
    let sent = std::str::from_utf8(data).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    Duration::from_micros(now_us().saturating_sub(sent)).as_secs_f64() * 1e3
}
