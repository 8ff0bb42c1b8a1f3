//! How many redirects a server answers: keep-alive connections in a closed loop.

use super::corpus::Corpus;
use crate::downloads::connection::Connection;
use anyhow::{Context, Result, ensure};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};

/// For connections, caches and statistics to settle.
const WARM_UP: Duration = Duration::from_secs(3);

/// What was answered in a time, and what was used at its beginning and its end.
pub(super) struct Window<T> {
    pub(super) answers: usize,
    pub(super) time: Duration,
    pub(super) before: T,
    pub(super) after: T,
    /// Also before and after that time.
    pub(super) all: usize,
}

#[derive(Default)]
struct Shared {
    answers: AtomicUsize,
    stop: AtomicBool,
}

pub(super) async fn measure<T>(
    address: SocketAddr,
    corpus: &Arc<Corpus>,
    connections: usize,
    time: Duration,
    used: impl Fn() -> Result<T>,
) -> Result<Window<T>> {
    let shared = Arc::new(Shared::default());
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (corpus, shared) = (Arc::clone(corpus), Arc::clone(&shared));
        tasks.spawn(async move { client(address, &corpus, number, &shared).await });
    }
    sleep(WARM_UP).await;
    let (before, first, started) = (used()?, shared.answers.load(Ordering::Relaxed), Instant::now());
    sleep(time).await;
    let (after, last, time) = (used()?, shared.answers.load(Ordering::Relaxed), started.elapsed());
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client broke")??;
    }
    let all = shared.answers.load(Ordering::Relaxed);
    Ok(Window { answers: last - first, time, before, after, all })
}

async fn client(address: SocketAddr, corpus: &Corpus, number: usize, shared: &Shared) -> Result<()> {
    let mut connection = Connection::open(address).await?;
    let mut place = Corpus::start(number);
    while !shared.stop.load(Ordering::Relaxed) {
        let head = connection.ask(corpus.get(place, true)).await?;
        ensure!(head.status == 302 && head.leads && !head.closes, "no redirect: {}", connection.text(&head));
        shared.answers.fetch_add(1, Ordering::Relaxed);
        place += 1;
    }
    Ok(())
}
