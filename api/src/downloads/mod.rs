//! Counting downloads: each joins the open batch, and is answered when that batch is where it outlives this process: stored
//! on the bus, or, when the bus does not take it in time, written to the journal.
//!
//! One task stores batches, one at a time: while one is on its way, the next gathers whoever comes, so that a busy node
//! publishes no more often than the bus acknowledges. While the bus is away, nobody waits for it.

mod asker;
mod backlog;
mod batcher;
mod journal;
mod metrics;
mod orphans;
mod publish;

pub use asker::Asker;

use anyhow::Context as _;
use backlog::{Backlog, Home};
use batcher::{Batcher, Closed};
use cratemill_protocol::{ArtifactId, bus::Install, download};
use cratemill_service::{bus::Bus, clock};
use orphans::Orphan;
use publish::Message;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a batch stays open for others to join, when the bus is free.
const GROUP_DELAY: Duration = Duration::from_millis(2);
/// And when it is away, and each batch costs a write to the disk instead.
const AWAY_DELAY: Duration = Duration::from_millis(20);
/// What the last counts get when the process drains: longer than the bus takes to elect a leader, which is up to ten
/// seconds, and below the default of the drain itself.
const FLUSH_PATIENCE: Duration = Duration::from_secs(15);

/// Where counts wait for a bus that is away.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    /// A folder that outlives the process; without one they wait in memory.
    pub folder: Option<PathBuf>,
    pub max_bytes: u64,
}

/// Clones share one batcher.
#[derive(Debug, Clone)]
pub struct Counts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: String,
    epoch: i64,
    batcher: Mutex<Batcher>,
    /// There is something to store.
    added: Notify,
}

impl Counts {
    /// Of one run of a node.
    pub fn new(node: &str) -> Self {
        let epoch = download::epoch(clock::now_ms(), rand::random());
        let batcher = Mutex::new(Batcher::new(node, epoch));
        Self(Arc::new(Inner { node: node.to_owned(), epoch, batcher, added: Notify::new() }))
    }

    /// Counts one download, at once. What is returned ends when the count outlives this process, or cannot be kept.
    pub fn count(
        &self,
        artifact: ArtifactId,
        asker: Asker,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let now_s = clock::now_ms().div_euclid(1_000);
        let (day, client) = (day(now_s), asker.client);
        let gate = match asker.who {
            None => self.batcher().add(artifact, day, client),
            Some(who) => self.batcher().add_install(Install { artifact, day, client, who, at_s: now_s }),
        };
        self.0.added.notify_one();
        gate.cancelled_owned()
    }

    /// Stores batches until `finish`, then what is left. An error says that the folder of those that wait is of no use.
    pub fn run(
        self,
        bus: Bus,
        waiting: Waiting,
        finish: CancellationToken,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
        let (node, epoch) = (self.0.node.clone(), self.0.epoch);
        let home = waiting.folder.clone().map(|folder| Home { folder, node, epoch });
        let backlog = Backlog::new(bus.clone(), home, waiting.max_bytes)?;
        Ok(async move {
            let (found, orphans) = mpsc::channel(1);
            let storing = self.store_until(bus, backlog, orphans, finish);
            let Some(folder) = waiting.folder else {
                tracing::info!(
                    "without JOURNAL_DIR, counts that wait for the bus do not outlive this process"
                );
                // Nothing is found, for as long as somebody may wait for it.
                let _found = found;
                storing.await;
                return Ok(());
            };
            // It ends when nobody takes what it finds.
            let finding = tokio::spawn(orphans::find(folder, found));
            storing.await;
            finding.await.context("looking for what dead runs left")
        })
    }

    async fn store_until(
        &self,
        bus: Bus,
        mut backlog: Backlog,
        mut orphans: mpsc::Receiver<Orphan>,
        finish: CancellationToken,
    ) {
        // Whoever came while a batch was on its way has gathered already.
        let mut gathered = false;
        while !finish.is_cancelled() {
            backlog.reap();
            backlog.tidy().await;
            tokio::select! {
                () = self.0.added.notified() => {
                    if backlog.is_away() {
                        sleep(AWAY_DELAY).await;
                    } else if !gathered {
                        sleep(GROUP_DELAY).await;
                    }
                    // One, so that the others have their turn.
                    gathered = self.store_one(&bus, &mut backlog).await;
                }
                () = backlog.one_stored() => {}
                Some(orphan) = orphans.recv(), if backlog.has_no_orphan() => backlog.take_over(orphan),
                () = finish.cancelled() => {}
            }
        }
        drop(orphans);
        while self.store_one(&bus, &mut backlog).await {}
        let flushed = timeout(FLUSH_PATIENCE, async {
            while !backlog.is_empty() {
                backlog.one_stored().await;
            }
        });
        let flushed = flushed.await;
        backlog.tidy().await;
        if flushed.is_err() {
            let (waiting, lost) = backlog.give_up().await;
            metrics::dropped(lost);
            tracing::error!(
                waiting,
                lost,
                "the bus stayed away during the drain: the next run tells it what waits"
            );
        }
    }

    /// The oldest batch; whether there is another one.
    async fn store_one(&self, bus: &Bus, backlog: &mut Backlog) -> bool {
        let Some(closed) = self.batcher().close() else { return false };
        let started = Instant::now();
        if !store(bus, backlog, closed).await {
            self.batcher().give_back();
        }
        metrics::committed(started.elapsed());
        let more = !self.batcher().is_empty();
        if more {
            self.0.added.notify_one();
        }
        more
    }

    fn batcher(&self) -> MutexGuard<'_, Batcher> {
        self.0.batcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Afterwards nobody waits for the batch. False if it is neither on the bus nor kept, and cannot be on its way.
async fn store(bus: &Bus, backlog: &mut Backlog, Closed { batch, gate }: Closed) -> bool {
    let _answered = gate.drop_guard();
    let message = Message::of(&batch, batch.encode().into());
    if backlog.is_away() && !backlog.has_room(&message) {
        metrics::dropped(message.downloads);
        tracing::error!(
            downloads = message.downloads,
            "downloads are not counted: the bus is away and there is no room for them"
        );
        return false;
    }
    if !backlog.is_away() {
        match publish::at_once(bus, &message).await {
            Ok(()) => {
                metrics::counted(message.downloads);
                return true;
            }
            Err(why) => tracing::warn!(why, "the bus does not take download counts: they wait"),
        }
    }
    backlog.keep(message).await;
    true
}

/// Days since 1970, UTC.
fn day(now_s: i64) -> i32 {
    const DAY_S: i64 = 24 * 60 * 60;
    i32::try_from(now_s.div_euclid(DAY_S)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::day;

    #[test]
    fn a_day_ends_at_midnight_utc() {
        for (now_s, expected) in
            [(0, 0), (86_399, 0), (86_400, 1), (-1, -1), (1_795_219_199, 20_777), (1_795_219_200, 20_778)]
        {
            assert_eq!(day(now_s), expected, "{now_s}");
        }
        assert_eq!(day(i64::MAX), i32::MAX);
    }
}
