//! Whether each answered download is counted once, while API nodes, counters, servers of the bus and Postgres are killed.

mod load;
mod player;
mod schedule;
mod settle;
mod tally;

use super::{clients::CLIENTS, cluster::Measured, connection, day};
use anyhow::{Context, Result, bail};
use cratemill_stack::Options;
use load::Load;
use player::Player;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tally::{Tally, Verdict};
use tokio::{task::JoinSet, time::interval};

const API_NODES: usize = 3;
const COUNTERS: usize = 2;
const NATS_SERVERS: usize = 3;
/// With the user agents a thousand rows: as many as make it unlikely that two mistakes make up for each other.
const ARTIFACTS: u32 = 200;
/// A run in which nothing is downloaded for so long has stalled: the bus elects a leader in ten seconds.
const STALL: Duration = Duration::from_mins(2);
const PROGRESS: Duration = Duration::from_secs(10);

/// Rows that are shown of those that are wrong.
const SHOWN: usize = 20;

pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) downloads: u64,
    /// Of clients, to all nodes together.
    pub(super) connections: usize,
    /// For whoever has to look at logs and tables afterwards.
    pub(super) data_dir: Option<PathBuf>,
}

pub(super) async fn measure(plan: &Plan) -> Result<Value> {
    let options = Options {
        api: API_NODES,
        counter: COUNTERS,
        nats: NATS_SERVERS,
        data_dir: plan.data_dir.clone(),
        ..Options::default()
    };
    let mut measured = Measured::start(options, ARTIFACTS).await?;
    println!("exactness: {} downloads from {API_NODES} nodes, seed {}", plan.downloads, plan.seed);
    let outcome = run(&mut measured, plan).await;
    measured.cluster.stop().await?;
    outcome
}

async fn run(measured: &mut Measured, plan: &Plan) -> Result<Value> {
    let first_day = day::today()?;
    let (mut keys, mut requests) = (Vec::new(), Vec::new());
    for artifact in &measured.artifacts {
        for client in CLIENTS {
            keys.push((artifact.id.0, client.class));
            requests.push(connection::request(&artifact.path, client.agent, ""));
        }
    }
    let load = Arc::new(Load::new(Tally::new(keys), requests, measured.nodes()?, plan.downloads));
    let player = Player::new(plan.seed);
    let started = Instant::now();
    let downloads = async {
        let result = download(&load, plan).await;
        player.stop.cancel();
        result
    };
    let ((), ()) = tokio::try_join!(downloads, player.play(&mut measured.cluster))?;
    let took = started.elapsed();
    println!("{:7.1} s: all is downloaded, and everything is started again", took.as_secs_f32());
    let verdict = settle::settle(measured, &load, first_day).await?;
    print(&verdict, &load, &player);
    Ok(json!({
        "seed": plan.seed,
        "answered": verdict.answered,
        "in_flight": verdict.in_flight,
        "lost": verdict.lost,
        "twice": verdict.twice,
        "counted": verdict.counted,
        "in_flight_counted": verdict.in_flight_counted(),
        "rows": verdict.rows,
        "kills": player.kills.json(),
        "other_answers": load.others(),
        "exactness_s": took.as_secs(),
    }))
}

async fn download(load: &Arc<Load>, plan: &Plan) -> Result<()> {
    let mut clients = JoinSet::new();
    for number in 0..plan.connections {
        let load = Arc::clone(load);
        clients.spawn(async move { load.client(number).await });
    }
    let (mut ticks, mut last, mut changed) = (interval(PROGRESS), 0, Instant::now());
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                Some(ended) => ended.context("a client broke")?,
                None => return Ok(()),
            },
            _ = ticks.tick() => {
                let done = load.done();
                if done != last {
                    (last, changed) = (done, Instant::now());
                } else if changed.elapsed() > STALL {
                    bail!("nothing is downloaded any more, after {done}: {:?}", load.others());
                }
                println!("           {done} of {} downloads", plan.downloads);
            }
        }
    }
}

fn print(verdict: &Verdict, load: &Load, player: &Player) {
    let Verdict { answered, in_flight, counted, rows, lost, twice, wrong } = verdict;
    println!("  killed                {}", player.kills.json());
    println!("  answered              {answered:>10}");
    println!(
        "  in flight             {in_flight:>10}, of which {} were counted",
        verdict.in_flight_counted()
    );
    println!("  counted               {counted:>10} in {rows} rows");
    println!("  lost                  {lost:>10}");
    println!("  twice                 {twice:>10}");
    println!("  other answers         {:?}", load.others());
    for row in wrong.iter().take(SHOWN) {
        println!("  {row:?}");
    }
}
