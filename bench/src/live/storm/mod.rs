//! A node with all viewers is killed with -9. They come back at once, through the load balancers, to the other nodes, with
//! the id of the last event they saw, while events go on. How long until the last of them is up to date, and whether each
//! has seen every event, once.
//!
//! nchan has the same: as many nginx with one worker each, the same load balancers and viewers, and a Redis in the place
//! of our bus, without which its nodes would share nothing. Events are published through the last of its nodes.

mod balancers;
mod farm;

use super::{
    clock::now_us,
    crowd::{Crowd, Plan, brief},
    usage,
    viewers::Report,
};
use crate::statistics::{count, hundredths, median};
use anyhow::{Result, ensure};
use balancers::Balancers;
use farm::Farm;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const VIEWERS: usize = 18_000;
const NODES: usize = 3;
const PROCESSES: usize = 2;
/// Each goes to all viewers, through a load balancer that shares two cores with everything else.
const PER_S: u32 = 2;
/// After so many events everybody has an id to come back with.
const EVENTS_BEFORE: u64 = 4;
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);
const CATCH_UP_TIMEOUT: Duration = Duration::from_mins(2);
/// How often memory is looked at, for its peak.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Nchan,
}

struct Storm {
    catch_up_ms: f64,
    /// Of the nodes that were left, in the time until then.
    cpu_s: f64,
    /// More than before they had viewers, for each viewer.
    peak_bytes: f64,
    missed: u64,
    repeated: u64,
}

pub(super) async fn measure(runs: usize) -> Result<Value> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        theirs.push(one(Side::Nchan).await?);
        ours.push(one(Side::Ours).await?);
    }
    let of = |storms: &[Storm], field: fn(&Storm) -> f64| median(storms.iter().map(field).collect());
    let sum = |storms: &[Storm], field: fn(&Storm) -> u64| storms.iter().map(field).sum::<u64>();
    let (missed, repeated) = (sum(&ours, |storm| storm.missed), sum(&ours, |storm| storm.repeated));
    ensure!(missed + repeated == 0, "{missed} events were missed and {repeated} came twice");
    let (catch_up_ms, nchan_ms) =
        (of(&ours, |storm| storm.catch_up_ms), of(&theirs, |storm| storm.catch_up_ms));
    Ok(json!({
        "catch_up_ms": catch_up_ms.round(),
        "nchan_catch_up_ms": nchan_ms.round(),
        "catch_up_ratio": hundredths(nchan_ms / catch_up_ms),
        "storm_cpu_s": hundredths(of(&ours, |storm| storm.cpu_s)),
        "nchan_storm_cpu_s": hundredths(of(&theirs, |storm| storm.cpu_s)),
        "storm_peak_bytes_per_viewer": of(&ours, |storm| storm.peak_bytes).round(),
        "nchan_storm_peak_bytes_per_viewer": of(&theirs, |storm| storm.peak_bytes).round(),
        "nchan_storm_missed": sum(&theirs, |storm| storm.missed),
        "nchan_storm_repeated": sum(&theirs, |storm| storm.repeated),
    }))
}

async fn one(side: Side) -> Result<Storm> {
    let mut farm = Farm::prepare(side, NODES).await?;
    farm.start_nodes(&[0]).await?;
    let balancers = Balancers::start(&farm.addresses()?).await?;
    let plan = Plan {
        servers: balancers.addresses()?,
        path: farm.path().to_owned(),
        subscribe: String::new(),
        topics: 1,
        viewers: VIEWERS,
        processes: PROCESSES,
        apart: false,
    };
    let mut crowd = Crowd::start(&plan)?;
    // There is no other node yet: the first has all of them.
    crowd.open(VIEWERS, OPEN_TIMEOUT).await?;
    let others: Vec<usize> = (1..NODES).collect();
    farm.start_nodes(&others).await?;
    balancers.wait_for_nodes().await?;
    let publisher = farm.publisher().await?.start(PER_S);
    crowd.wait("events do not arrive", OPEN_TIMEOUT, |report| report.lowest >= EVENTS_BEFORE).await?;

    let before = crowd.report().await?;
    ensure!(before.cuts + before.missed + before.repeated == 0, "no quiet before: {}", brief(&before));
    let struck = strike(&mut farm, &balancers, &mut crowd).await?;
    let last = publisher.stop().await?.last();
    let report =
        crowd.wait("not all events arrived", CATCH_UP_TIMEOUT, |report| report.lowest >= last).await?;
    crowd.stop().await?;
    balancers.stop().await?;
    farm.stop().await?;
    let storm = Storm { missed: report.missed, repeated: report.repeated, ..struck };
    println!(
        "  {side:?}: all {VIEWERS} are back and up to date after {:.0} ms; nodes: {:.2} s of CPU, at most {:.0} bytes more \
         for each viewer; {}",
        storm.catch_up_ms,
        storm.cpu_s,
        storm.peak_bytes,
        brief(&report)
    );
    Ok(storm)
}

/// Shares of the viewers of which it is told when they are back.
const MILESTONES: [usize; 5] = [1, 50, 90, 99, 100];

/// Kills the first node and waits until all of its viewers have caught up.
async fn strike(farm: &mut Farm, balancers: &Balancers, crowd: &mut Crowd) -> Result<Storm> {
    let killed_us = now_us();
    farm.kill9(0).await?;
    let pids = farm.pids();
    let (idle, cpu, bus) = (usage::pss(&pids)?, usage::cpu(&pids)?, farm.bus_cpu()?);
    let balancing = usage::cpu(&balancers.pids())?;
    let (deadline, mut peak) = (Instant::now() + CATCH_UP_TIMEOUT, idle);
    let mut milestones = MILESTONES.into_iter().peekable();
    let report = loop {
        peak = peak.max(usage::pss(&pids)?);
        let report = crowd.report().await?;
        let back = usize::try_from(report.cuts)?.min(VIEWERS).saturating_sub(report.behind);
        while let Some(percent) = milestones.next_if(|percent| back * 100 >= VIEWERS * percent) {
            println!(
                "    {percent} % are up to date after {} ms",
                now_us().saturating_sub(killed_us) / 1_000
            );
        }
        if is_over(&report) {
            break report;
        }
        ensure!(
            Instant::now() < deadline,
            "not all are back within {CATCH_UP_TIMEOUT:?}: {}",
            brief(&report)
        );
        sleep(POLL).await;
    };
    let cpu_s = usage::cpu(&pids)?.saturating_sub(cpu).as_secs_f64();
    println!(
        "    the bus used {:.2} s of CPU, the load balancers {:.2} s",
        farm.bus_cpu()?.saturating_sub(bus).as_secs_f64(),
        usage::cpu(&balancers.pids())?.saturating_sub(balancing).as_secs_f64()
    );
    let catch_up_us = report.caught_up_us.saturating_sub(killed_us);
    Ok(Storm {
        catch_up_ms: count(usize::try_from(catch_up_us)?) / 1e3,
        cpu_s,
        peak_bytes: (peak - idle) / count(VIEWERS),
        missed: 0,
        repeated: 0,
    })
}

/// Everybody was cut, follows again, and has seen an event that is news.
fn is_over(report: &Report) -> bool {
    report.cuts >= VIEWERS as u64 && report.following == VIEWERS && report.behind == 0
}
