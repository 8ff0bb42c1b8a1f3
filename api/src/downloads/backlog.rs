//! Batches that are not on the bus yet though their time is up: in memory, bounded, and in the journal where there is one.
//! They are published until the bus has them, some at a time.

use super::{
    journal::Journal,
    metrics,
    orphans::Orphan,
    publish::{self, Message},
};
use anyhow::Result;
use cratemill_service::bus::Bus;
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

/// Batches on their way at once: a bus that is back takes thousands a second.
const MAX_IN_FLIGHT: usize = 16;
/// What a batch takes in memory beside what is in it.
const BATCH_BYTES: u64 = 256;
/// A disk that did not work is tried again after this.
const TRY_DISK_AGAIN: Duration = Duration::from_secs(5);

/// Whose journals these are.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub(super) folder: PathBuf,
    pub(super) node: String,
    pub(super) epoch: i64,
}

#[derive(Debug)]
pub(super) struct Backlog {
    bus: Bus,
    home: Option<Home>,
    /// None while the disk does not work: then all own entries are in memory only.
    journal: Option<Journal>,
    /// The disk did not work with them. They stay locked until all in them is elsewhere.
    given_up: Vec<Journal>,
    journals: u32,
    try_disk_at: Instant,
    max_bytes: u64,
    waiting: VecDeque<Entry>,
    on_its_way: BTreeMap<Id, Entry>,
    publishing: JoinSet<()>,
    /// Of this run's batches, not of a dead one's.
    own: Held,
    /// One at a time, so that its memory is bounded too.
    orphan: Option<Orphan>,
    of_orphan: Held,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Own,
    Orphan,
}

#[derive(Debug, Clone)]
struct Entry {
    origin: Origin,
    message: Message,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    batches: usize,
    bytes: u64,
    downloads: u64,
}

impl Held {
    fn add(&mut self, message: &Message) {
        self.batches += 1;
        self.bytes += cost(message);
        self.downloads = self.downloads.saturating_add(message.downloads);
    }

    fn remove(&mut self, message: &Message) {
        self.batches = self.batches.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(cost(message));
        self.downloads = self.downloads.saturating_sub(message.downloads);
    }
}

fn cost(message: &Message) -> u64 {
    message.payload.len() as u64 + BATCH_BYTES
}

impl Backlog {
    /// An error says that the folder is of no use.
    pub(super) fn new(bus: Bus, home: Option<Home>, max_bytes: u64) -> Result<Self> {
        let journal = home.as_ref().map(|home| Journal::open(&home.folder, &home.node, home.epoch, 0));
        let journal = journal.transpose()?;
        metrics::held(0, 0);
        Ok(Self {
            bus,
            home,
            journal,
            given_up: Vec::new(),
            journals: 1,
            try_disk_at: Instant::now(),
            max_bytes,
            waiting: VecDeque::new(),
            on_its_way: BTreeMap::new(),
            publishing: JoinSet::new(),
            own: Held::default(),
            orphan: None,
            of_orphan: Held::default(),
        })
    }

    /// Whether batches of this run wait: then the bus is not to be waited for by those that come after them.
    pub(super) fn is_away(&self) -> bool {
        self.own.batches > 0
    }

    pub(super) fn has_room(&self, message: &Message) -> bool {
        self.own.bytes + cost(message) <= self.max_bytes
    }

    /// Keeps a batch until the bus has it. Returns when it outlives this process, or cannot.
    pub(super) async fn keep(&mut self, message: Message) {
        self.own.add(&message);
        self.waiting.push_back(Entry { origin: Origin::Own, message: message.clone() });
        self.publish();
        let written = match &mut self.journal {
            Some(journal) => journal.append(&message.payload).await,
            None => return self.open_again().await,
        };
        if let Err(error) = written {
            // It still counts, unless this process dies before the bus is back. Another run may find what is in the file.
            tracing::error!(%error, "counts of downloads cannot be written down: they wait in memory only");
            self.give_journal_up(TRY_DISK_AGAIN);
        }
        self.shorten().await;
    }

    fn give_journal_up(&mut self, pause: Duration) {
        self.given_up.extend(self.journal.take());
        self.try_disk_at = Instant::now() + pause;
    }

    /// Another file, with all that waits in it.
    async fn open_again(&mut self) {
        let Some(home) = self.home.as_ref().filter(|_| Instant::now() >= self.try_disk_at) else { return };
        self.try_disk_at = Instant::now() + TRY_DISK_AGAIN;
        let (number, own) = (self.journals, self.own_batches());
        self.journals += 1;
        match Journal::begin(&home.folder, &home.node, home.epoch, number, own).await {
            Ok(journal) => self.journal = Some(journal),
            Err(error) => return tracing::warn!(%error, "counts still cannot be written down"),
        }
        self.remove_given_up().await;
    }

    /// What is in them is in another file by now, or on the bus.
    async fn remove_given_up(&mut self) {
        for journal in std::mem::take(&mut self.given_up) {
            if let Err(error) = journal.remove().await {
                tracing::warn!(%error, "counts that are kept elsewhere stay written down: they are told again and count once");
            }
        }
    }

    /// Under load that never pauses the bus never has all of the journal at once: then it is written anew.
    async fn shorten(&mut self) {
        let length = self.journal.as_ref().map_or(0, Journal::length);
        if length <= self.max_bytes || length / 2 <= self.own.bytes {
            return;
        }
        let own = self.own_batches();
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.rewrite(own).await
        {
            // It may have another file under its name by now, or have it later: what waits goes into one of another name.
            tracing::warn!(%error, "the journal cannot be shortened: another one is begun");
            self.give_journal_up(Duration::ZERO);
        }
    }

    fn own_batches(&self) -> Vec<bytes::Bytes> {
        let entries = self.on_its_way.values().chain(&self.waiting);
        let own = entries.filter(|entry| entry.origin == Origin::Own);
        own.map(|entry| entry.message.payload.clone()).collect()
    }

    pub(super) fn has_no_orphan(&self) -> bool {
        self.orphan.is_none()
    }

    /// What a dead run left is published beside what waits here.
    pub(super) fn take_over(&mut self, mut orphan: Orphan) {
        for message in std::mem::take(&mut orphan.messages) {
            self.of_orphan.add(&message);
            self.waiting.push_back(Entry { origin: Origin::Orphan, message });
        }
        self.orphan = Some(orphan);
        self.publish();
    }

    /// Waits until the bus has one more; for ever while there is nothing to wait for.
    pub(super) async fn one_stored(&mut self) {
        let Some(done) = self.publishing.join_next_with_id().await else {
            return std::future::pending().await;
        };
        self.stored(&done);
    }

    /// All that the bus has by now.
    pub(super) fn reap(&mut self) {
        while let Some(done) = self.publishing.try_join_next_with_id() {
            self.stored(&done);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.on_its_way.is_empty()
    }

    /// The process ends: what waits is written down, if it can be at all. Tells how many downloads wait, and how many of
    /// them nothing keeps.
    pub(super) async fn give_up(&mut self) -> (u64, u64) {
        self.try_disk_at = Instant::now();
        if self.journal.is_none() && self.own.batches > 0 {
            self.open_again().await;
        }
        (self.own.downloads, if self.journal.is_some() { 0 } else { self.own.downloads })
    }

    fn stored(&mut self, done: &Result<(Id, ()), JoinError>) {
        let id = done.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let Some(entry) = self.on_its_way.remove(&id) else { return };
        if done.is_err() {
            // It panicked, which it does not: try again rather than lose it.
            self.waiting.push_front(entry);
        } else {
            metrics::counted(entry.message.downloads);
            match entry.origin {
                Origin::Own => self.own.remove(&entry.message),
                Origin::Orphan => self.of_orphan.remove(&entry.message),
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        while self.on_its_way.len() < MAX_IN_FLIGHT
            && let Some(entry) = self.waiting.pop_front()
        {
            let (bus, message) = (self.bus.clone(), entry.message.clone());
            let task = self.publishing.spawn(async move { publish::until_stored(&bus, &message).await });
            self.on_its_way.insert(task.id(), entry);
        }
        let (own, orphan) = (self.own, self.of_orphan);
        metrics::held(own.downloads.saturating_add(orphan.downloads), own.bytes + orphan.bytes);
    }

    /// Files that hold nothing any more. Not to be given up half-way: a file that is emptied late would lose what was written
    /// meanwhile.
    pub(super) async fn tidy(&mut self) {
        if self.own.batches == 0 {
            if let Some(journal) = &mut self.journal
                && let Err(error) = journal.clear().await
            {
                tracing::warn!(%error, "counts that the bus has stay written down: they are told again and count once");
                // The bus may go away again at once.
                self.give_journal_up(Duration::ZERO);
            } else {
                self.remove_given_up().await;
            }
        }
        if self.of_orphan.batches == 0
            && let Some(orphan) = self.orphan.take()
        {
            orphan.remove().await;
        }
    }
}
