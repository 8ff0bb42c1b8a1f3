//! Counting downloads: each joins the open batch, and is answered when that batch is stored on the bus.
//!
//! One task stores batches in order, one at a time: while one is on its way, the next gathers whoever comes, so that
//! a busy node publishes no more often than the bus acknowledges. While the bus is away, downloads go on after a short
//! wait, and their counts wait here, in bounded memory.

mod batcher;

use batcher::Batcher;
use cratemill_protocol::{
    ArtifactId,
    bus::{self, ClientClass, DownloadBatch},
    subjects,
};
use cratemill_service::{backoff::Backoff, bus::Bus};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How long a batch stays open for others to join, when the bus is free.
const GROUP_DELAY: Duration = Duration::from_millis(2);
/// How long a download waits for its count to be durable: a person does not notice it, an acknowledgement is 500 times
/// faster.
const COUNT_WAIT: Duration = Duration::from_millis(250);
/// One try at storing a batch, so that a change of the bus's leader is within it.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// Between tries while the bus is away.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(1);
/// What the last counts get when the process drains: longer than the bus takes to elect a leader, which is up to ten
/// seconds, and below the default of the drain itself.
const FLUSH_PATIENCE: Duration = Duration::from_secs(15);

const COUNTED: &str = "cratemill_downloads_counted_total";
const HELD: &str = "cratemill_downloads_held";
const DROPPED: &str = "cratemill_downloads_dropped_total";

/// Clones share one batcher.
#[derive(Debug, Clone)]
pub struct Counts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    batcher: Mutex<Batcher>,
    /// There is something to store.
    added: Notify,
    /// The number of the newest batch that is stored.
    stored: watch::Sender<u64>,
}

impl Counts {
    /// `epoch` tells this run of the node from earlier ones.
    pub fn new(node: &str, epoch: i64) -> Self {
        Self(Arc::new(Inner {
            batcher: Mutex::new(Batcher::new(node, epoch)),
            added: Notify::new(),
            stored: watch::Sender::new(0),
        }))
    }

    /// Counts one download. Returns when the count is durable, or cannot be made so soon.
    pub async fn count(&self, artifact: ArtifactId, client: ClientClass) {
        let Some(batch) = self.batcher().add(artifact, today(), client) else {
            metrics::counter!(DROPPED).increment(1);
            tracing::error!(%artifact, "a download is not counted: the bus is away and the memory for counts is full");
            return;
        };
        self.0.added.notify_one();
        let mut stored = self.0.stored.subscribe();
        let durable = tokio::time::timeout(COUNT_WAIT, stored.wait_for(|number| *number >= batch)).await;
        if durable.is_err() {
            tracing::debug!(%artifact, batch, "a download goes on before its count is durable");
        }
    }

    /// Stores batches until `finish`, then what is left.
    pub async fn run(self, bus: Bus, finish: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            never = self.store_forever(&bus) => match never {},
            () = finish.cancelled() => {}
        }
        if tokio::time::timeout(FLUSH_PATIENCE, self.store_all(&bus)).await.is_err() {
            let lost = self.batcher().held();
            metrics::counter!(DROPPED).increment(lost);
            tracing::error!(lost, "downloads are not counted: the bus stayed away during the drain");
        }
        Ok(())
    }

    async fn store_forever(&self, bus: &Bus) -> Infallible {
        loop {
            self.0.added.notified().await;
            tokio::time::sleep(GROUP_DELAY).await;
            self.store_all(bus).await;
        }
    }

    /// A batch stays in the batcher until it is acknowledged, so that dropping this future loses nothing.
    async fn store_all(&self, bus: &Bus) {
        loop {
            let Some(batch) = self.batcher().next() else { return };
            store(bus, &batch).await;
            let held = {
                let mut batcher = self.batcher();
                batcher.stored(batch.batch);
                batcher.held()
            };
            self.0.stored.send_replace(batch.batch);
            metrics::counter!(COUNTED).increment(batch.counts.iter().map(|count| count.count).sum());
            metrics::gauge!(HELD).set(f64::from(u32::try_from(held).unwrap_or(u32::MAX)));
        }
    }

    fn batcher(&self) -> MutexGuard<'_, Batcher> {
        self.0.batcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes one batch, under one message id, until the stream has it.
async fn store(bus: &Bus, batch: &DownloadBatch) {
    let DownloadBatch { node, epoch, batch: number, .. } = batch;
    let (subject, id) = (subjects::download(node), format!("d-{node}-{epoch}-{number}"));
    let payload: bytes::Bytes = bus::encode(batch).into();
    let mut backoff = Backoff::new(FIRST_WAIT, MAX_WAIT);
    let mut said = false;
    loop {
        // A client without a connection buffers what it cannot send: there is no use in trying.
        let why = match bus.check() {
            Ok(()) => match bus.store(&subject, &id, payload.clone(), STORE_PATIENCE).await {
                Ok(_) => break,
                Err(error) => error.to_string(),
            },
            Err(why) => why,
        };
        if !said {
            tracing::warn!(batch = number, why, "the bus does not take download counts; they are held");
            said = true;
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
    if said {
        tracing::info!(batch = number, "the bus takes download counts again");
    }
}

/// Days since 1970, UTC.
fn today() -> i32 {
    const DAY_S: i64 = 24 * 60 * 60;
    i32::try_from(OffsetDateTime::now_utc().unix_timestamp() / DAY_S).unwrap_or(i32::MAX)
}
