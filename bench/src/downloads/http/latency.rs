//! What the group commit adds: downloads at a fixed rate, and as many requests between them that the node answers in the
//! same way and does not count.
//!
//! Each is timed from when it was to be sent, so that what a slow answer holds up counts as slow too.

use super::corpus::Corpus;
use crate::{downloads::connection::Connection, statistics::Percentiles};
use anyhow::{Context, Result, ensure};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Of each of both: at a thousand a second one has 64 ms until its next request.
const CONNECTIONS: u32 = 64;
/// For all connections to be there.
const START: Duration = Duration::from_millis(500);

/// In milliseconds.
pub(super) struct Latency {
    pub(super) counted: Percentiles,
    pub(super) uncounted: Percentiles,
}

pub(super) async fn measure(
    address: SocketAddr,
    corpus: &Arc<Corpus>,
    per_s: u32,
    time: Duration,
) -> Result<Latency> {
    let (start, between) = (Instant::now() + START, Duration::from_secs(1) / per_s);
    let each = u32::try_from(time.as_secs())? * per_s / CONNECTIONS;
    let (mut counted, mut uncounted) = (JoinSet::new(), JoinSet::new());
    for number in 0..CONNECTIONS {
        for (tasks, is_counted, offset) in
            [(&mut counted, true, Duration::ZERO), (&mut uncounted, false, between / 2)]
        {
            let corpus = Arc::clone(corpus);
            let times = (0..each).map(move |turn| start + offset + between * (turn * CONNECTIONS + number));
            tasks.spawn(async move { client(address, &corpus, number, is_counted, times).await });
        }
    }
    Ok(Latency { counted: all(counted).await?, uncounted: all(uncounted).await? })
}

async fn all(mut tasks: JoinSet<Result<Vec<f64>>>) -> Result<Percentiles> {
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended.context("a client broke")??);
    }
    Percentiles::of(times)
}

async fn client(
    address: SocketAddr,
    corpus: &Corpus,
    number: u32,
    counted: bool,
    times: impl Iterator<Item = Instant>,
) -> Result<Vec<f64>> {
    let mut connection = Connection::open(address).await?;
    let start = Corpus::start(number.try_into()?);
    let mut waits = Vec::new();
    for (place, time) in (start..).zip(times) {
        sleep_until(time).await;
        let head = connection.ask(corpus.get(place, counted)).await?;
        waits.push(time.elapsed().as_secs_f64() * 1e3);
        ensure!(head.status == 302 && head.leads && !head.closes, "no redirect: {}", connection.text(&head));
    }
    Ok(waits)
}
