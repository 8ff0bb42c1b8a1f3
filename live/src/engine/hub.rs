//! Who follows what on this node. A message goes to those who follow its topics, found by topic.
//!
//! The feed publishes each message of a stream once and in order, and the hub's position moves with it under the same
//! lock: whoever subscribes at position P gets exactly what comes after P, and reads what was before it elsewhere.
//! Publishing never waits: a viewer whose queue is full is let go, and resumes from its position.

use crate::{
    engine::{
        Source,
        channel::{ChannelId, Channels, Entry, Found, Mark, Wanted},
        frame::Frame,
        wake::Wake,
    },
    metrics,
};
use cratemill_protocol::topic::Topic;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::mpsc;

/// Messages that wait for one viewer: ten seconds of a busy farm's events.
const QUEUE_MESSAGES: usize = 1_024;
/// Their bytes: a few chunks of the fastest log, and what ten thousand stuck viewers may hold is a bounded multiple.
const QUEUE_BYTES: usize = 4 << 20;

/// The last message of each stream that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    pub events: u64,
    pub topics: u64,
    pub logs: u64,
}

#[derive(Debug, Clone)]
pub enum Delivery {
    Frame(Arc<Frame>),
    /// The feed had to read messages again: what was archived and purged meanwhile is only in the archive.
    Repaired,
    /// The order of a stream broke here; the viewer's position tells it, or another node, what to do.
    Broken,
}

#[derive(Debug)]
pub struct Hub {
    /// The streams that this node follows.
    sources: Vec<Source>,
    inner: Mutex<Inner>,
    /// Of the reactors, by their numbers.
    wakes: OnceLock<Vec<Arc<Wake>>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How far each stream is, as far as that is known.
    positions: [Option<u64>; Source::ALL.len()],
    viewers: HashMap<u64, Outlet>,
    topics: HashMap<Topic, BTreeSet<u64>>,
    last_id: u64,
    channels: Channels,
}

#[derive(Debug)]
struct Outlet {
    queue: mpsc::Sender<(usize, Delivery)>,
    queued_bytes: Arc<AtomicUsize>,
    topics: Arc<[Topic]>,
}

impl Hub {
    pub fn new(sources: Vec<Source>) -> Self {
        Self { sources, inner: Mutex::default(), wakes: OnceLock::new() }
    }

    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Nothing while the feed does not know yet where the streams are.
    pub fn subscribe(self: &Arc<Self>, topics: &Arc<[Topic]>) -> Option<(Subscriber, Positions)> {
        let (sender, queue) = mpsc::channel(QUEUE_MESSAGES);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let mut inner = self.lock();
        let positions = inner.positions(&self.sources)?;
        inner.last_id += 1;
        let id = inner.last_id;
        for topic in topics.iter() {
            inner.topics.entry(topic.clone()).or_default().insert(id);
        }
        let outlet =
            Outlet { queue: sender, queued_bytes: Arc::clone(&queued_bytes), topics: Arc::clone(topics) };
        inner.viewers.insert(id, outlet);
        Some((Subscriber { id, hub: Arc::clone(self), queue, queued_bytes }, positions))
    }

    pub fn positions(&self) -> Option<Positions> {
        self.lock().positions(&self.sources)
    }

    pub fn position(&self, source: Source) -> Option<u64> {
        *self.lock().position(source)
    }

    /// From here on, without publishing: where the feed begins, or what came before was published.
    pub fn set_position(&self, source: Source, sequence: u64) {
        *self.lock().position(source) = Some(sequence);
    }

    /// The same, if nobody would have got what comes before. False if somebody follows the stream.
    pub fn skip(&self, source: Source, sequence: u64) -> bool {
        let mut inner = self.lock();
        let is_of = |topic: &Topic| Source::of_topic(topic) == source;
        let followed = inner.topics.keys().any(is_of) || inner.channels.topics().any(is_of);
        if !followed {
            *inner.position(source) = Some(sequence);
        }
        !followed
    }

    /// The stream does not go on where it was: nobody gets a position behind the break before it is told of it.
    pub fn break_off(&self, source: Source, sequence: u64) {
        let mut inner = self.lock();
        *inner.position(source) = Some(sequence);
        inner.tell(source, &Delivery::Broken);
        let wanted = inner.channels.break_off(source);
        drop(inner);
        self.wake(wanted);
    }

    /// The next message of a stream. It is decoded only if somebody follows it.
    pub fn publish(&self, source: Source, sequence: u64, subject: &str, payload: &[u8]) {
        let topics = Topic::fed_by(subject);
        {
            let mut inner = self.lock();
            let followed = |topic: &Topic| inner.topics.contains_key(topic) || inner.channels.follows(topic);
            if !topics.iter().any(followed) {
                *inner.position(source) = Some(sequence);
                return;
            }
        }
        let frame = Frame::decode(source, sequence, subject, payload).map(Arc::new);
        let mut inner = self.lock();
        *inner.position(source) = Some(sequence);
        let Some(frame) = frame else { return };
        let mark = inner.mark();
        let entry = Entry { source, frame: Arc::clone(&frame), mark };
        let wanted = inner.channels.publish(&topics, &entry, payload.len(), Instant::now());
        inner.deliver(&topics, payload.len(), &Delivery::Frame(frame));
        drop(inner);
        self.wake(wanted);
    }

    /// Nobody joins a channel before.
    pub fn set_reactors(&self, wakes: Vec<Arc<Wake>>) {
        self.lock().channels.set_reactors(wakes.len());
        self.wakes.get_or_init(|| wakes);
    }

    fn wake(&self, wanted: Wanted) {
        for (reactor, wake) in self.wakes.get().into_iter().flatten().enumerate() {
            if wanted.0 & (1 << reactor) != 0 {
                wake.wake();
            }
        }
    }

    /// One more member of the channel of `topics`, which goes on after `seen`, or where the streams are now.
    pub fn join(self: &Arc<Self>, topics: &Arc<[Topic]>, seen: Option<Mark>, reactor: usize) -> Joined {
        let mut inner = self.lock();
        if inner.positions(&self.sources).is_none() {
            return Joined::NotYet;
        }
        let mark = inner.mark();
        let id = inner.channels.join(topics, reactor, mark);
        let found = inner.channels.get(id).map(|channel| channel.find(seen, mark));
        // A member that is dropped takes the lock.
        drop(inner);
        let member = Member { hub: Some(Arc::clone(self)), channel: id, reactor };
        match found {
            Some(Found::At(cursor)) => Joined::At { member, cursor, mark: seen.unwrap_or(mark) },
            Some(Found::Before(floor)) => Joined::Before { member, floor },
            Some(Found::Ahead) => Joined::Ahead(member),
            Some(Found::Between) | None => Joined::Between,
        }
    }

    pub fn leave(&self, channel: ChannelId, reactor: usize) {
        self.lock().channels.leave(channel, reactor, Instant::now());
    }

    /// How far the streams are, once that is known.
    pub fn mark(&self) -> Option<Mark> {
        let inner = self.lock();
        inner.positions(&self.sources).map(|_| inner.mark())
    }

    /// Looks at channels, and at how far the streams are.
    pub fn channels<T>(&self, look: impl FnOnce(&mut Channels, Mark) -> T) -> T {
        let mut inner = self.lock();
        let mark = inner.mark();
        look(&mut inner.channels, mark)
    }

    /// The feed had to read some of this stream again.
    pub fn repaired(&self, source: Source) {
        self.lock().tell(source, &Delivery::Repaired);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn position(&mut self, source: Source) -> &mut Option<u64> {
        &mut self.positions[source as usize]
    }

    /// Once all of these are known; of the others nobody asks.
    fn positions(&self, sources: &[Source]) -> Option<Positions> {
        let is_known = |source: &Source| self.positions[*source as usize].is_some();
        sources.iter().all(is_known).then(|| Positions {
            events: self.reached(Source::Events),
            topics: self.reached(Source::Topics),
            logs: self.reached(Source::Logs),
        })
    }

    fn reached(&self, source: Source) -> u64 {
        self.positions[source as usize].unwrap_or_default()
    }

    fn mark(&self) -> Mark {
        let mut mark = Mark::default();
        for source in Source::ALL {
            mark.set(source, self.reached(source));
        }
        mark
    }

    /// Once to each, though it may follow several of the topics.
    fn deliver(&mut self, topics: &[Topic], bytes: usize, delivery: &Delivery) {
        let mut behind = Vec::new();
        for (i, topic) in topics.iter().enumerate() {
            for id in self.topics.get(topic).into_iter().flatten() {
                let has_it =
                    topics[..i].iter().any(|t| self.topics.get(t).is_some_and(|ids| ids.contains(id)));
                let Some(outlet) = self.viewers.get(id).filter(|_| !has_it) else { continue };
                if !outlet.offer(bytes, delivery) {
                    behind.push(*id);
                }
            }
        }
        self.let_go(behind);
    }

    /// To all who follow a topic of this stream.
    fn tell(&mut self, source: Source, delivery: &Delivery) {
        let follows = |outlet: &Outlet| outlet.topics.iter().any(|topic| Source::of_topic(topic) == source);
        let told = self.viewers.iter().filter(|(_, outlet)| follows(outlet));
        let behind: Vec<u64> =
            told.filter(|(_, outlet)| !outlet.offer(0, delivery)).map(|(id, _)| *id).collect();
        self.let_go(behind);
    }

    fn let_go(&mut self, behind: Vec<u64>) {
        for id in behind {
            metrics::overflow();
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(outlet) = self.viewers.remove(&id) else { return };
        for topic in outlet.topics.iter() {
            if let Some(ids) = self.topics.get_mut(topic) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.topics.remove(topic);
                }
            }
        }
    }
}

impl Outlet {
    /// False when the viewer is too far behind.
    fn offer(&self, bytes: usize, delivery: &Delivery) -> bool {
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One message is always let through, whatever its size.
        (queued == 0 || queued + bytes <= QUEUE_BYTES)
            && self.queue.try_send((bytes, delivery.clone())).is_ok()
    }
}

/// What comes of joining a channel.
#[derive(Debug)]
pub enum Joined {
    /// The streams are not known yet.
    NotYet,
    At {
        member: Member,
        cursor: u32,
        /// What it has seen.
        mark: Mark,
    },
    /// What it misses first is older than the ring, which begins after `floor`.
    Before { member: Member, floor: Mark },
    /// It has seen more than this node, or made it up.
    Ahead(Member),
    /// No cursor says what it has seen.
    Between,
}

/// A place in a channel; dropping it leaves.
#[derive(Debug)]
pub struct Member {
    /// None once the place is kept.
    hub: Option<Arc<Hub>>,
    pub channel: ChannelId,
    pub reactor: usize,
}

impl Member {
    /// The channel counts it until [`Hub::leave`].
    pub fn keep(mut self) -> ChannelId {
        self.hub = None;
        self.channel
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(hub) = &self.hub {
            hub.leave(self.channel, self.reactor);
        }
    }
}

/// One viewer's place in the hub; dropping it leaves.
#[derive(Debug)]
pub struct Subscriber {
    id: u64,
    hub: Arc<Hub>,
    queue: mpsc::Receiver<(usize, Delivery)>,
    queued_bytes: Arc<AtomicUsize>,
}

impl Subscriber {
    /// The next delivery; none once it fell behind and what was queued is taken.
    pub async fn next(&mut self) -> Option<Delivery> {
        let (bytes, delivery) = self.queue.recv().await?;
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(delivery)
    }

    /// Everything up to a position that was read before this call has been taken.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn is_behind(&self) -> bool {
        self.queue.is_closed()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.hub.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests;
