//! One topic that all follow, with few events and many viewers, and the other way round: what a second of the server's CPU
//! delivers, and how late.

use super::{
    crowd::{Crowd, Plan, brief},
    servers::{Kind, Server},
    usage,
};
use crate::statistics::{count, hundredths, median};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Viewers, and events a second.
const SHAPES: [(usize, u32); 3] = [(16_000, 4), (2_000, 100), (1_000, 400)];
/// More of them than this and one process of theirs would be slower than the server.
const VIEWERS_EACH: usize = 8_000;
const WARM_UP: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(8);
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);

struct Run {
    /// Deliveries for each second of CPU time.
    per_cpu_s: f64,
    per_s: f64,
    p99_ms: f64,
}

pub(super) async fn measure(runs: usize) -> Result<Value> {
    let mut fields = json!({});
    for (viewers, per_s) in SHAPES {
        println!("  {viewers} viewers, {per_s} events a second");
        let name = format!("{viewers}x{per_s}");
        let mut medians = Vec::new();
        for kind in [Kind::Ours, Kind::Nchan, Kind::Axum, Kind::Raw] {
            let mut all = Vec::new();
            for _ in 0..runs {
                all.push(one(kind, viewers, per_s).await?);
            }
            let of = |field: fn(&Run) -> f64| median(all.iter().map(field).collect());
            let prefix = if kind == Kind::Ours { String::new() } else { format!("{kind}_") };
            fields[format!("{prefix}per_cpu_s_{name}")] = of(|run| run.per_cpu_s).round().into();
            fields[format!("{prefix}p99_ms_{name}")] = hundredths(of(|run| run.p99_ms)).into();
            fields[format!("{prefix}per_s_{name}")] = of(|run| run.per_s).round().into();
            medians.push(of(|run| run.per_cpu_s));
        }
        fields[format!("fanout_ratio_{name}")] = hundredths(medians[0] / medians[1]).into();
        fields[format!("axum_ratio_{name}")] = hundredths(medians[0] / medians[2]).into();
        fields[format!("raw_ratio_{name}")] = hundredths(medians[0] / medians[3]).into();
    }
    Ok(fields)
}

async fn one(kind: Kind, viewers: usize, per_s: u32) -> Result<Run> {
    let server = Server::start(kind).await?;
    let processes = viewers.div_ceil(VIEWERS_EACH);
    let (servers, path) = (vec![server.address()?], server.path().to_owned());
    let mut crowd = Crowd::start(&Plan {
        servers,
        path,
        subscribe: String::new(),
        topics: 1,
        viewers,
        processes,
        apart: false,
    })?;
    crowd.open(viewers, OPEN_TIMEOUT).await?;
    let publisher = server.publisher().await?.start(per_s);
    sleep(WARM_UP).await;
    let watching = usage::cpu(&crowd.pids())?;
    let (cpu, bus, started) = (server.cpu()?, server.bus_cpu()?, Instant::now());
    crowd.reset().await?;
    sleep(WINDOW).await;
    let report = crowd.report().await?;
    let (cpu, bus) = (server.cpu()?.saturating_sub(cpu), server.bus_cpu()?.saturating_sub(bus));
    let (time, watching) = (started.elapsed(), usage::cpu(&crowd.pids())?.saturating_sub(watching));
    publisher.stop().await?;
    crowd.stop().await?;
    server.stop().await?;
    ensure!(report.events > 0 && !cpu.is_zero(), "nothing was delivered: {}", brief(&report));
    let events = count(usize::try_from(report.events)?);
    let run = Run {
        per_cpu_s: events / cpu.as_secs_f64(),
        per_s: events / time.as_secs_f64(),
        p99_ms: count(usize::try_from(report.delays.at(99))?) / 1e3,
    };
    println!(
        "    {kind}: {:.0} deliveries a CPU second, {:.0} a second, p50 {:.1} ms, p99 {:.1} ms, CPU {:.2} s, bus {:.2} s, viewers {:.2} s{}",
        run.per_cpu_s,
        run.per_s,
        count(usize::try_from(report.delays.at(50))?) / 1e3,
        run.p99_ms,
        cpu.as_secs_f64(),
        bus.as_secs_f64(),
        watching.as_secs_f64(),
        faults(report.cuts, report.missed)
    );
    Ok(run)
}

/// A server that cannot keep up lets viewers go, or skips: that is told, not hidden.
fn faults(cuts: u64, missed: u64) -> String {
    if cuts + missed == 0 { String::new() } else { format!(", {cuts} CUT, {missed} MISSED") }
}
