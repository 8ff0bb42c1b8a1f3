//! Who follows what on this node. A message goes to those who follow its topics, found by topic.
//!
//! The feed publishes each message of a stream once and in order, and the hub's position moves with it under the same
//! lock: whoever subscribes at position P gets exactly what comes after P, and reads what was before it elsewhere.
//! Publishing never waits: a viewer whose queue is full is let go, and resumes from its position.

use crate::{
    engine::{Source, frame::Frame},
    metrics,
};
use cratemill_protocol::topic::Topic;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
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

#[derive(Debug, Default)]
pub struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Option<u64>,
    logs: Option<u64>,
    viewers: HashMap<u64, Outlet>,
    topics: HashMap<Topic, BTreeSet<u64>>,
    last_id: u64,
}

#[derive(Debug)]
struct Outlet {
    queue: mpsc::Sender<(usize, Delivery)>,
    queued_bytes: Arc<AtomicUsize>,
    topics: Arc<[Topic]>,
}

impl Hub {
    /// Nothing while the feed does not know yet where the streams are.
    pub fn subscribe(self: &Arc<Self>, topics: &Arc<[Topic]>) -> Option<(Subscriber, Positions)> {
        let (sender, queue) = mpsc::channel(QUEUE_MESSAGES);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let mut inner = self.lock();
        let positions = inner.positions()?;
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
        self.lock().positions()
    }

    pub fn position(&self, source: Source) -> Option<u64> {
        *self.lock().position(source)
    }

    /// From here on, without publishing: where the feed begins, or begins anew.
    pub fn set_position(&self, source: Source, sequence: u64) {
        *self.lock().position(source) = Some(sequence);
    }

    /// The next message of a stream. It is decoded only if somebody follows it.
    pub fn publish(&self, source: Source, sequence: u64, subject: &str, payload: &[u8]) {
        let topics = Topic::fed_by(subject);
        {
            let mut inner = self.lock();
            if !topics.iter().any(|topic| inner.topics.contains_key(topic)) {
                *inner.position(source) = Some(sequence);
                return;
            }
        }
        let frame = Frame::decode(source, sequence, payload).map(Arc::new);
        let mut inner = self.lock();
        if let Some(frame) = frame {
            inner.deliver(&topics, payload.len(), &Delivery::Frame(frame));
        }
        *inner.position(source) = Some(sequence);
    }

    /// To all who follow a topic of this stream.
    pub fn tell(&self, source: Source, delivery: &Delivery) {
        let mut inner = self.lock();
        let topics: Vec<_> =
            inner.topics.keys().filter(|topic| Source::of_topic(topic) == source).cloned().collect();
        inner.deliver(&topics, 0, delivery);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn position(&mut self, source: Source) -> &mut Option<u64> {
        match source {
            Source::Events => &mut self.events,
            Source::Logs => &mut self.logs,
        }
    }

    fn positions(&self) -> Option<Positions> {
        Some(Positions { events: self.events?, logs: self.logs? })
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
mod tests {
    use super::*;
    use cratemill_protocol::bus::{self, DomainEvent, EventMessage};

    fn hub() -> Arc<Hub> {
        let hub = Arc::new(Hub::default());
        hub.set_position(Source::Events, 10);
        hub.set_position(Source::Logs, 0);
        hub
    }

    fn topics(names: &[&str]) -> Arc<[Topic]> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn payload() -> Vec<u8> {
        bus::encode(&EventMessage { at_ms: 0, event: DomainEvent::Queue { queued: 1, running: 0 } })
    }

    async fn next_sequence(subscriber: &mut Subscriber) -> u64 {
        match subscriber.next().await {
            Some(Delivery::Frame(frame)) => frame.sequence,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn each_gets_what_it_follows_once_from_where_it_came() {
        let hub = hub();
        let (mut one, positions) = hub.subscribe(&topics(&["job.7", "builds", "crate.hexyl"])).unwrap();
        assert_eq!(positions, Positions { events: 10, logs: 0 });
        let (mut other, _) = hub.subscribe(&topics(&["queue"])).unwrap();
        hub.publish(Source::Events, 11, "event.job.hexyl.7", &payload());
        hub.publish(Source::Events, 12, "event.queue", &payload());
        hub.publish(Source::Events, 13, "event.version.hexyl.7", &payload());
        assert_eq!(next_sequence(&mut one).await, 11);
        assert_eq!(next_sequence(&mut one).await, 13);
        assert_eq!(next_sequence(&mut other).await, 12);
        assert!(one.is_empty() && other.is_empty());
        let (_, positions) = hub.subscribe(&topics(&["queue"])).unwrap();
        assert_eq!(positions.events, 13);
    }

    #[tokio::test]
    async fn one_that_does_not_read_is_let_go_and_the_others_go_on() {
        let hub = hub();
        let (mut stuck, _) = hub.subscribe(&topics(&["queue"])).unwrap();
        let (mut reader, _) = hub.subscribe(&topics(&["queue"])).unwrap();
        let count = QUEUE_MESSAGES as u64 + 1;
        for sequence in 11..11 + count {
            hub.publish(Source::Events, sequence, "event.queue", &payload());
            assert_eq!(next_sequence(&mut reader).await, sequence);
        }
        assert!(stuck.is_behind() && !reader.is_behind());
        for sequence in 11..10 + count {
            assert_eq!(next_sequence(&mut stuck).await, sequence);
        }
        assert!(stuck.next().await.is_none());
    }

    #[tokio::test]
    async fn large_messages_count_by_their_bytes() {
        let hub = hub();
        let (stuck, _) = hub.subscribe(&topics(&["queue"])).unwrap();
        let inner = || hub.lock();
        let topics = topics(&["queue"]);
        inner().deliver(&topics, QUEUE_BYTES * 2, &Delivery::Repaired);
        assert!(!stuck.is_behind(), "one is always let through");
        inner().deliver(&topics, 1, &Delivery::Repaired);
        assert!(stuck.is_behind());
    }

    #[test]
    fn leaving_leaves_nothing_behind() {
        let hub = hub();
        drop(hub.subscribe(&topics(&["queue", "builds"])).unwrap());
        assert!(hub.lock().viewers.is_empty() && hub.lock().topics.is_empty());
        hub.publish(Source::Events, 11, "event.queue", b"nobody decodes this");
        assert_eq!(hub.position(Source::Events), Some(11));
    }

    #[test]
    fn before_the_feed_knows_the_streams_nobody_can_subscribe() {
        let hub = Arc::new(Hub::default());
        hub.set_position(Source::Events, 0);
        assert!(hub.subscribe(&topics(&["queue"])).is_none());
    }
}
