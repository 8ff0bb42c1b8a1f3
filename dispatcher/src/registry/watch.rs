//! The watch: one dispatcher looks at all watched crates, again and again.
//!
//! It is elected by an advisory lock that a transaction holds for as long as it watches; when its connection or its
//! process dies, another dispatcher takes over.

use super::{
    Error,
    client::{Answer, Registry, Validators},
    feed,
    refresh::{RefreshError, refresh},
};
use crate::config;
use anyhow::Context as _;
use cratemill_protocol::CrateName;
use cratemill_service::{
    backoff::Backoff,
    outage::{Outage, pause},
};
use cratemill_store::{
    PgConnection, PgPool, database,
    database::{Alone, try_lock},
    patience::in_time,
};
use futures_util::StreamExt;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Requests at once: polite to a public registry, and a thousand crates still take seconds.
const CONCURRENCY: usize = 8;
/// How often a dispatcher that was not elected asks again.
const ELECTION_INTERVAL: Duration = Duration::from_secs(5);
/// How often the elected one makes sure that it still has its lock; the database ends a transaction that is idle for longer
/// than thirty seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A crate that cannot be read is left alone, longer each time.
const FIRST_CRATE_WAIT: Duration = Duration::from_secs(5);
const LONGEST_CRATE_WAIT: Duration = Duration::from_mins(30);

/// What the watch remembers from one round to the next; all of it may be lost.
struct Watch {
    pool: PgPool,
    registry: Arc<Registry>,
    settings: config::Registry,
    feed: (Validators, BTreeSet<CrateName>),
    troubles: HashMap<CrateName, (Backoff, Instant)>,
}

pub async fn run(
    pool: PgPool,
    registry: Arc<Registry>,
    settings: config::Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut outage = Outage::new("the registry watch");
    let mut watch =
        Watch { pool, registry, settings, feed: Default::default(), troubles: HashMap::default() };
    if watch.settings.crates.is_empty() && watch.settings.feed.is_none() {
        tracing::info!(
            "no crates and no feed to watch: versions are seen when somebody asks for their crate"
        );
        shutdown.cancelled().await;
        return Ok(());
    }
    while !shutdown.is_cancelled() {
        let wait = tokio::select! {
            result = watch.term(&mut outage) => match result {
                Ok(()) => ELECTION_INTERVAL,
                Err(error) => outage.failed(error),
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        pause(wait, &shutdown).await;
    }
    Ok(())
}

impl Watch {
    /// Watches for as long as the lock is held; returns at once if another dispatcher has it.
    async fn term(&mut self, outage: &mut Outage) -> anyhow::Result<()> {
        let mut term = self.pool.begin().await?;
        if !in_time(try_lock(&mut term, Alone::RegistryWatch)).await? {
            outage.over();
            return Ok(());
        }
        tracing::info!("this dispatcher watches the registry");
        loop {
            let wait = tokio::select! {
                wait = self.round() => wait,
                error = lost(&mut term) => return Err(error),
            };
            outage.over();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                error = lost(&mut term) => return Err(error),
            }
        }
    }

    /// Looks at every crate once; returns how long to wait before the next round.
    async fn round(&mut self) -> Duration {
        let interval = Duration::from_secs(self.settings.watch_interval_s);
        self.read_feed().await;
        let now = Instant::now();
        let names: Vec<CrateName> = self
            .settings
            .crates
            .iter()
            .chain(&self.feed.1)
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|name| self.troubles.get(name).is_none_or(|(_, until)| *until <= now))
            .collect();
        let mut looks = futures_util::stream::iter(names)
            .map(async |name| {
                let result = refresh(&self.pool, &self.registry, &name).await;
                (name, result)
            })
            .buffer_unordered(CONCURRENCY);
        let (mut results, mut busy) = (Vec::new(), None);
        while let Some((name, result)) = looks.next().await {
            if let Err(RefreshError::Registry(Error::Busy(wait))) = &result {
                // Those that are under way are given up: the registry asked to be left alone.
                busy = Some(*wait);
                break;
            }
            results.push((name, result));
        }
        drop(looks);
        for (name, result) in results {
            self.note(name, result);
        }
        if let Some(wait) = busy {
            tracing::warn!(wait_s = wait.as_secs(), "the registry is busy");
        }
        busy.unwrap_or_default().max(interval)
    }

    fn note(&mut self, name: CrateName, result: Result<(), RefreshError>) {
        let Err(error) = result else {
            self.troubles.remove(&name);
            return;
        };
        tracing::warn!(krate = %name, %error, "cannot look at a watched crate");
        let (backoff, until) = self
            .troubles
            .entry(name)
            .or_insert_with(|| (Backoff::new(FIRST_CRATE_WAIT, LONGEST_CRATE_WAIT), Instant::now()));
        *until = Instant::now() + backoff.next_wait();
    }

    /// A feed that cannot be read leaves the names that it gave before.
    async fn read_feed(&mut self) {
        let Some(url) = &self.settings.feed else { return };
        match self.registry.feed(url, &self.feed.0).await {
            Ok(Answer::Unchanged) => {}
            Ok(Answer::Body { bytes, validators }) => {
                self.feed = (validators, feed::names(&String::from_utf8_lossy(&bytes)));
                self.troubles
                    .retain(|name, _| self.feed.1.contains(name) || self.settings.crates.contains(name));
            }
            Err(error) => tracing::warn!(%error, "cannot read the feed"),
        }
    }
}

/// Returns when the connection that holds the lock is gone.
async fn lost(term: &mut PgConnection) -> anyhow::Error {
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        let alive = timeout(KEEP_ALIVE_TIMEOUT, database::ping(term)).await;
        let alive = alive.context("no answer in time").and_then(|alive| alive.map_err(Into::into));
        if let Err(error) = alive {
            return error.context("the watch's lock is lost");
        }
    }
}
