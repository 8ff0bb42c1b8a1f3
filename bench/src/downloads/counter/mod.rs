//! How many downloads are counted a second, from the bus to committed rows, beside two ways in which others count.
//!
//! Nothing is summed up before it is on the bus: each count stands for one download.

mod batches;
mod events;
mod ours;
mod pace;
mod peer;
mod unnest;
mod upsert;

use super::{cluster::Measured, day};
use crate::{
    statistics::{hundredths, median},
    usage::Each,
};
use anyhow::Result;
use cratemill_stack::Options;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const ARTIFACTS: u32 = 10_000;
/// A peer's time for one of ours: its rate is even.
const PEER_SHARE: u32 = 2;
/// Connections of the peer with an upsert for each: the better number counts.
const UPSERT_CONNECTIONS: [usize; 3] = [8, 16, 32];
/// Messages in a transaction of the peer with UNNEST: here too.
const UNNEST_BATCHES: [usize; 2] = [1_000, 5_000];

pub(super) struct Plan {
    pub(super) runs: usize,
    /// Of a measurement of ours.
    pub(super) time: Duration,
}

pub(super) async fn measure(plan: &Plan) -> Result<Value> {
    let measured = Measured::start(Options::default(), ARTIFACTS).await?;
    println!("counter: {ARTIFACTS} artifacts, one download each count");
    let outcome = run(&measured, plan).await;
    measured.cluster.stop().await?;
    outcome
}

async fn run(measured: &Measured, plan: &Plan) -> Result<Value> {
    let events = Arc::new(events::events(&measured.artifacts)?);
    let (day, peer_time) = (day::today()?, plan.time / PEER_SHARE);
    let date = day::date(day)?;
    let mut ours = Vec::new();
    let (mut upserts, mut unnests) =
        (UPSERT_CONNECTIONS.map(|_| Vec::new()), UNNEST_BATCHES.map(|_| Vec::new()));
    for _ in 0..plan.runs {
        let run = ours::measure(measured, &events, day, plan.time).await?;
        println!("  ours:                {:>9.0} events a second", run.events_per_s);
        ours.push(run);
        for (connections, runs) in UPSERT_CONNECTIONS.into_iter().zip(&mut upserts) {
            let run = upsert::measure(measured, &events, date, connections, peer_time).await?;
            println!("  upsert each, over {connections:>2}: {run:>9.0} events a second");
            runs.push(run);
        }
        for (batch, runs) in UNNEST_BATCHES.into_iter().zip(&mut unnests) {
            let run = unnest::measure(measured, &events, date, batch, peer_time).await?;
            println!("  bus, UNNEST of {batch:>5}: {run:>9.0} events a second");
            runs.push(run);
        }
    }
    let events_per_s = median(ours.iter().map(|run| run.events_per_s).collect());
    let cpu = Each::medians(&ours.iter().map(|run| &run.cpu).collect::<Vec<_>>());
    let (upsert, unnest) = (best(upserts), best(unnests));
    Ok(json!({
        "counter_events_per_s": events_per_s.round(),
        "upsert_ratio": hundredths(events_per_s / upsert),
        "unnest_ratio": hundredths(events_per_s / unnest),
        "upsert_events_per_s": upsert.round(),
        "unnest_events_per_s": unnest.round(),
        "cpu_us_per_1000_events": cpu.json(),
        "publishers_waited": hundredths(median(ours.iter().map(|run| run.waited).collect())),
    }))
}

/// Of the medians of several ways.
fn best<const WAYS: usize>(ways: [Vec<f64>; WAYS]) -> f64 {
    ways.map(median).into_iter().fold(0.0, f64::max)
}
