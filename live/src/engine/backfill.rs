//! Reads what a channel's ring does not reach back to, once for all who ask for it.
//!
//! Whoever misses something older says so and waits for its turn; the one whose turn it is reads from the oldest place that
//! anybody named, and puts it into the ring for all of them. What would not fit there is not read: those viewers read the
//! stream on their own.

use crate::{
    engine::{
        Source,
        channel::{ChannelId, Entry, Mark},
        filter::cover,
        frame::Frame,
        hub::Hub,
        replay::{Read, Replay},
    },
    metrics,
};
use async_nats::jetstream;
use cratemill_protocol::{subjects, topic::Topic};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex as Turn, Semaphore},
    time::timeout,
};

/// Messages that one reading brings back.
const MAX_MESSAGES: usize = 16_384;
/// And their bytes.
const MAX_BYTES: usize = 8 << 20;
/// Readings at once: each has a consumer of its own on the bus.
const READINGS: usize = 16;
/// Who cannot begin by then reads on its own.
const READINGS_PATIENCE: Duration = Duration::from_millis(500);
/// Those behind one that found no room need not look so soon.
const BUSY: Duration = Duration::from_millis(500);
/// A bus that is away must not keep a turn for ever.
const READING: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Backfills {
    jetstream: jetstream::Context,
    readings: Semaphore,
    wanted: Mutex<HashMap<ChannelId, Arc<Wanted>>>,
}

/// What is missed of one channel.
#[derive(Debug, Default)]
struct Wanted {
    /// The oldest place that those who wait have named.
    from: Mutex<Option<Mark>>,
    /// Until when a reading has no chance, as the last one had none.
    busy: Mutex<Option<Instant>>,
    turn: Arc<Turn<()>>,
}

impl Wanted {
    fn want(&self, seen: Mark) {
        let mut from = self.from();
        *from = Some(from.map_or(seen, |from| from.least(seen)));
    }

    fn is_busy(&self, now: Instant) -> bool {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    fn set_busy(&self, until: Instant) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn from(&self) -> MutexGuard<'_, Option<Mark>> {
        self.from.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits, also if it stops waiting; the last one leaves nothing behind.
struct Waiting<'a> {
    all: &'a Backfills,
    channel: ChannelId,
    wanted: Arc<Wanted>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        // Ours and that of the map.
        if Arc::strong_count(&self.wanted) <= 2 {
            all.remove(&self.channel);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The ring reaches back further, or somebody else's reading was in between: look again.
    Done,
    /// It is more than a ring is for, or the stream has not everything any more.
    TooMuch,
    /// Others are read for, or the bus is slow.
    Busy,
}

impl Backfills {
    pub fn new(jetstream: jetstream::Context) -> Self {
        Self { jetstream, readings: Semaphore::new(READINGS), wanted: Mutex::default() }
    }

    /// Brings back what came after `seen`, while the ring begins after `floor`; the caller is a member of the channel.
    ///
    /// The reading goes on where the caller stops waiting: it is for the others too.
    pub async fn read(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        channel: ChannelId,
        topics: &Arc<[Topic]>,
        seen: Mark,
        floor: Mark,
    ) -> Outcome {
        if hub.channels(|channels, _| channels.get(channel).is_some_and(|channel| channel.is_too_much(seen)))
        {
            return Outcome::TooMuch;
        }
        let waiting =
            Waiting { all: self, channel, wanted: Arc::clone(self.lock().entry(channel).or_default()) };
        waiting.wanted.want(seen);
        let turn = Arc::clone(&waiting.wanted.turn).lock_owned().await;
        let state = hub.channels(|channels, _| {
            channels.get(channel).map(|channel| {
                let ring = &channel.ring;
                (ring.floor(), ring.popped, channel.sources.len(), channel.is_too_much(seen))
            })
        });
        let Some((now, popped, sources, too_much)) = state else { return Outcome::TooMuch };
        if now != floor {
            return Outcome::Done;
        }
        // Whoever had the turn before found out.
        if too_much {
            return Outcome::TooMuch;
        }
        if waiting.wanted.is_busy(Instant::now()) {
            return Outcome::Busy;
        }
        if popped && sources > 1 {
            // Read again, two streams come in another order, and old cursors would stand for other messages.
            return Outcome::TooMuch;
        }
        let from = waiting.wanted.from().take().unwrap_or(seen);
        let (all, hub, topics) = (Arc::clone(self), Arc::clone(hub), Arc::clone(topics));
        let reading = tokio::spawn(async move {
            let _turn = turn;
            let read = all.fetch(&hub, channel, &topics, from, floor);
            let outcome = timeout(READING, read).await.unwrap_or(Outcome::Busy);
            if outcome != Outcome::TooMuch || from == seen {
                return outcome;
            }
            // Somebody else missed more than a ring holds.
            let read = all.fetch(&hub, channel, &topics, seen, floor);
            timeout(READING, read).await.unwrap_or(Outcome::Busy)
        });
        let outcome = reading.await.unwrap_or(Outcome::Busy);
        if outcome == Outcome::Busy {
            waiting.wanted.set_busy(Instant::now() + BUSY);
        }
        outcome
    }

    /// What came after `from` in a stream whose part of the ring begins later. What is too much is not read twice.
    async fn fetch(
        &self,
        hub: &Hub,
        channel: ChannelId,
        topics: &[Topic],
        from: Mark,
        until: Mark,
    ) -> Outcome {
        let Ok(Ok(_permit)) = timeout(READINGS_PATIENCE, self.readings.acquire()).await else {
            return Outcome::Busy;
        };
        // A floor goes back, or stays.
        let from = from.least(until);
        let Some((floor, read)) = self.collect(topics, from, until).await else {
            hub.channels(|channels, _| channels.set_too_much(channel, from, until));
            return Outcome::TooMuch;
        };
        let has_room =
            hub.channels(|channels, _| channels.prepend(channel, floor, until, read, Instant::now()));
        if has_room { Outcome::Done } else { Outcome::Busy }
    }

    /// Where it begins, and the messages; nothing if they are too many, or some are gone.
    async fn collect(
        &self,
        topics: &[Topic],
        from: Mark,
        until: Mark,
    ) -> Option<(Mark, Vec<(Entry, usize)>)> {
        let (mut read, mut bytes, mut mark) = (Vec::new(), 0, until);
        for source in Source::ALL {
            if topics.iter().any(|topic| Source::of_topic(topic) == source) {
                mark.set(source, from.get(source));
            }
        }
        let floor = mark;
        for source in Source::ALL {
            let filters: Vec<String> = topics
                .iter()
                .filter(|topic| Source::of_topic(topic) == source)
                .map(|topic| topic.source().1)
                .collect();
            let Some(filter) = cover(&filters) else { continue };
            if mark.get(source) >= until.get(source) {
                continue;
            }
            metrics::replay("shared");
            let mut replay =
                Replay::new(&self.jetstream, source, filter, mark.get(source), until.get(source));
            while let Some(next) = replay.next().await {
                let Read::Message(stored) = next else { return None };
                bytes += stored.payload.len();
                if read.len() >= MAX_MESSAGES || bytes > MAX_BYTES {
                    return None;
                }
                if filters.iter().any(|filter| subjects::matches(filter, &stored.subject))
                    && let Some(frame) =
                        Frame::decode(source, stored.sequence, &stored.subject, &stored.payload)
                {
                    mark.set(source, stored.sequence);
                    read.push((Entry { source, frame: Arc::new(frame), mark }, stored.payload.len()));
                }
            }
            mark.set(source, until.get(source));
        }
        Some((floor, read))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, Arc<Wanted>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
