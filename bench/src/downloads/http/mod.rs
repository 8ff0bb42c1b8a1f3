//! The path of a download over HTTP: what an answer costs, beside one of nginx, and how long it takes because it is counted.

mod corpus;
mod latency;
mod nginx;
mod rate;

use super::{cluster::Measured, connection::Connection};
use crate::{
    statistics::{hundredths, median, per_s},
    usage::{Each, Usage},
};
use anyhow::{Result, bail, ensure};
use corpus::Corpus;
use cratemill_stack::{Options, process::Process, services::Service};
use latency::Latency;
use nginx::Nginx;
use serde_json::{Value, json};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// More than a node could keep at hand of one crate, and few enough to be asked for again and again.
const ARTIFACTS: u32 = 1_000;
/// A service that is busy for a tenth of what it can do, and one that is nearly idle.
const RATES: [u32; 2] = [1_000, 200];
/// For the last downloads to be in the table.
const COUNTED: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(200);

pub(super) struct Plan {
    pub(super) runs: usize,
    /// Of a measurement of each.
    pub(super) time: Duration,
    pub(super) connections: usize,
}

/// In one run.
struct Redirects {
    per_s: f64,
    /// For each second of CPU time.
    per_core: f64,
    cpu: Each,
}

struct Peer {
    per_s: f64,
    per_core: f64,
}

pub(super) async fn measure(plan: &Plan) -> Result<Value> {
    let measured = Measured::start(Options::default(), ARTIFACTS).await?;
    println!("http: {} connections, {ARTIFACTS} artifacts", plan.connections);
    let outcome = run(&measured, plan).await;
    measured.cluster.stop().await?;
    outcome
}

async fn run(measured: &Measured, plan: &Plan) -> Result<Value> {
    let corpus = Arc::new(Corpus::new(&measured.artifacts)?);
    let node = measured.nodes()?[0];
    let nginx = Nginx::start(&answer(node, &corpus).await?).await?;
    // The one that nginx was shown.
    let mut downloads = 1;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let run = redirects(measured, node, &corpus, plan, &mut downloads).await?;
        println!("  redirects: {:.0} a second, {:.0} for each core", run.per_s, run.per_core);
        ours.push(run);
        let run = peer(&nginx, &corpus, plan).await?;
        println!("  nginx:     {:.0} a second, {:.0} for each core", run.per_s, run.per_core);
        theirs.push(run);
    }
    nginx.stop().await?;
    let mut latencies = [Vec::new(), Vec::new()];
    for _ in 0..plan.runs {
        for (per_s, runs) in RATES.into_iter().zip(&mut latencies) {
            let run = latency::measure(node, &corpus, per_s, plan.time).await?;
            downloads += run.counted.count();
            println!(
                "  at {per_s} a second: p99 {:.2} ms, uncounted {:.2} ms",
                run.counted.at(99),
                run.uncounted.at(99)
            );
            runs.push(run);
        }
    }
    everything_counted(measured, downloads).await?;
    Ok(json(&ours, &theirs, &latencies))
}

/// The head of one of our answers.
async fn answer(node: SocketAddr, corpus: &Corpus) -> Result<String> {
    let mut connection = Connection::open(node).await?;
    let head = connection.ask(corpus.get(0, true)).await?;
    let text = connection.text(&head);
    ensure!(head.status == 302 && head.leads, "no redirect: {text}");
    println!("  the head of an answer has {} bytes", head.length);
    Ok(text)
}

async fn redirects(
    measured: &Measured,
    node: SocketAddr,
    corpus: &Arc<Corpus>,
    plan: &Plan,
    downloads: &mut usize,
) -> Result<Redirects> {
    let window =
        rate::measure(node, corpus, plan.connections, plan.time, || Usage::read(&measured.cluster)).await?;
    *downloads += window.all;
    let cpu = window.after.since(&window.before, window.answers);
    let per_core = 1e6 / cpu.us("api");
    Ok(Redirects { per_s: per_s(window.answers, window.time), per_core, cpu })
}

async fn peer(nginx: &Nginx, corpus: &Arc<Corpus>, plan: &Plan) -> Result<Peer> {
    let window = rate::measure(nginx.address(), corpus, plan.connections, plan.time, || nginx.cpu()).await?;
    let used = window.after.saturating_sub(window.before);
    ensure!(!used.is_zero(), "nginx used no time");
    let per_core = per_s(window.answers, used);
    Ok(Peer { per_s: per_s(window.answers, window.time), per_core })
}

/// That what was answered was counted is what its cost is told for.
async fn everything_counted(measured: &Measured, downloads: usize) -> Result<()> {
    let deadline = Instant::now() + COUNTED;
    loop {
        let counted = usize::try_from(measured.counted().await?)?;
        if counted == downloads {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let logs = measured.cluster.counters.iter().filter_map(Service::process).map(Process::log_tail);
            bail!("{downloads} downloads were answered and {counted} counted{}", logs.collect::<String>());
        }
        sleep(POLL).await;
    }
}

fn json(ours: &[Redirects], theirs: &[Peer], latencies: &[Vec<Latency>; 2]) -> Value {
    let of = |field: fn(&Redirects) -> f64| median(ours.iter().map(field).collect());
    let of_peer = |field: fn(&Peer) -> f64| median(theirs.iter().map(field).collect());
    let [busy, idle] = latencies.each_ref().map(|runs| {
        let of = |field: fn(&Latency) -> f64| hundredths(median(runs.iter().map(field).collect()));
        json!({
            "added_p99_ms": of(|run| run.counted.at(99) - run.uncounted.at(99)),
            "added_p50_ms": of(|run| run.counted.at(50) - run.uncounted.at(50)),
            "p50_ms": of(|run| run.counted.at(50)),
            "p99_ms": of(|run| run.counted.at(99)),
            "max_ms": of(|run| run.counted.at(100)),
            "uncounted_p50_ms": of(|run| run.uncounted.at(50)),
            "uncounted_p99_ms": of(|run| run.uncounted.at(99)),
        })
    });
    json!({
        "redirects_per_s_per_core": of(|run| run.per_core).round(),
        "redirects_per_s": of(|run| run.per_s).round(),
        "nginx_ratio": hundredths(of(|run| run.per_core) / of_peer(|run| run.per_core)),
        "nginx_per_s_per_core": of_peer(|run| run.per_core).round(),
        "nginx_per_s": of_peer(|run| run.per_s).round(),
        "cpu_us_per_download": Each::medians(&ours.iter().map(|run| &run.cpu).collect::<Vec<_>>()).json(),
        "commit_p99_ms": busy["added_p99_ms"],
        "at_1000_per_s": busy,
        "at_200_per_s": idle,
    })
}
