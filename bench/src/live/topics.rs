//! Ten thousand topics with ten viewers each, and events that go to each topic in turn.

use super::{
    crowd::{Crowd, Plan, brief},
    servers::ours::{CRATE_PATH, Ours},
    usage,
};
use crate::statistics::{count, hundredths, median};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const TOPICS: usize = 10_000;
const VIEWERS_EACH: usize = 10;
/// As few as have open files for all of them, which is 16,667 for each.
const NODES: usize = 6;
/// Of all topics together. Each node gets all of them, for about two of its viewers each.
const PER_S: u32 = 2_000;
const WARM_UP: Duration = Duration::from_secs(6);
const WINDOW: Duration = Duration::from_secs(10);
const OPEN_TIMEOUT: Duration = Duration::from_mins(5);

struct Run {
    per_cpu_s: f64,
    bytes: f64,
    bytes_after: f64,
    p99_ms: f64,
}

pub(super) async fn measure(runs: usize) -> Result<Value> {
    let mut all = Vec::new();
    for _ in 0..runs {
        all.push(one().await?);
    }
    let of = |field: fn(&Run) -> f64| hundredths(median(all.iter().map(field).collect()));
    Ok(json!({
        "topics10k_per_cpu_s": of(|run| run.per_cpu_s).round(),
        "topics10k_bytes_per_connection": of(|run| run.bytes),
        "topics10k_bytes_after_traffic": of(|run| run.bytes_after),
        "topics10k_p99_ms": of(|run| run.p99_ms),
    }))
}

async fn one() -> Result<Run> {
    let ours = Ours::start(NODES).await?;
    let pids = ours.pids();
    let viewers = TOPICS * VIEWERS_EACH;
    let plan = Plan {
        servers: ours.addresses()?,
        path: CRATE_PATH.to_owned(),
        subscribe: String::new(),
        topics: TOPICS,
        viewers,
        processes: NODES,
        apart: true,
    };
    let mut crowd = Crowd::start(&plan)?;
    let idle = usage::settled_pss(&pids).await?;
    let opened = crowd.open(viewers, OPEN_TIMEOUT).await?;
    let open = usage::settled_pss(&pids).await?;

    let publisher = ours.publisher(TOPICS).start(PER_S);
    sleep(WARM_UP).await;
    let (cpu, bus, started) = (usage::cpu(&pids)?, ours.bus_cpu()?, Instant::now());
    crowd.reset().await?;
    sleep(WINDOW).await;
    let report = crowd.report().await?;
    let (cpu, bus) = (usage::cpu(&pids)?.saturating_sub(cpu), ours.bus_cpu()?.saturating_sub(bus));
    let time = started.elapsed();
    publisher.stop().await?;
    let after = usage::settled_pss(&pids).await?;
    crowd.stop().await?;
    ours.stop().await?;
    let whole = report.cuts + report.missed + report.repeated == 0;
    ensure!(whole && report.events > 0 && !cpu.is_zero(), "not all got everything: {}", brief(&report));

    let events = count(usize::try_from(report.events)?);
    let run = Run {
        per_cpu_s: events / cpu.as_secs_f64(),
        bytes: (open - idle) / count(viewers),
        bytes_after: (after - idle) / count(viewers),
        p99_ms: count(usize::try_from(report.delays.at(99))?) / 1e3,
    };
    println!(
        "  {TOPICS} topics, {viewers} connections (open after {:.1} s) on {NODES} nodes: {:.0} deliveries a CPU second, \
         {:.0} a second, p99 {:.1} ms, CPU {:.2} s, bus {:.2} s",
        opened.as_secs_f64(),
        run.per_cpu_s,
        events / time.as_secs_f64(),
        run.p99_ms,
        cpu.as_secs_f64(),
        bus.as_secs_f64()
    );
    println!("  {:.0} bytes for a connection, {:.0} after traffic", run.bytes, run.bytes_after);
    Ok(run)
}
