//! What is followed together on this node: a channel is a set of topics, with the newest of their messages in a ring.
//!
//! All who follow the same topics share a channel, and each of them is no more than a cursor into its ring. Logs have no
//! channels: a log moves to the archive while it is read, and how far one is in it is each viewer's own.

mod ring;

pub use ring::{Entry, Mark, Place, Ring};

use crate::engine::Source;
use cratemill_protocol::topic::Topic;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long messages stay for those who come back, and channels that nobody follows any more.
const KEPT: Duration = Duration::from_mins(2);
/// All rings of a node together. A message counts once, in however many rings it is.
const RING_BYTES: usize = 64 << 20;
/// What a message costs, decoded and encoded, for each of its bytes on the bus, and beside them.
const BYTE_BYTES: usize = 3;
const MESSAGE_BYTES: usize = 512;
/// Its places in all rings: with ten thousand channels that all get the same, a hundred messages of each.
const MAX_HELD: usize = 1 << 20;
/// What was read again for those who wait for it stays at least so long where there is room.
const PINNED: Duration = Duration::from_secs(5);
/// Topics of channels that wait for somebody to come back.
const MAX_IDLE_TOPICS: usize = 20_000;

pub type ChannelId = u32;

#[derive(Debug, Default)]
pub struct Channels {
    all: HashMap<ChannelId, Channel>,
    by_topics: HashMap<Arc<[Topic]>, ChannelId>,
    by_topic: HashMap<Topic, BTreeSet<ChannelId>>,
    last_id: ChannelId,
    /// A message in a ring each, the oldest first.
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Channels that were left by all, the first first, with their topics.
    idle: VecDeque<(Instant, ChannelId, usize)>,
    idle_topics: usize,
    /// For each reactor, the channels that it has members of and has not been told of.
    news: Vec<Vec<ChannelId>>,
}

#[derive(Debug)]
struct Held {
    since: Instant,
    channel: ChannelId,
    bytes: usize,
}

#[derive(Debug)]
pub struct Channel {
    pub topics: Arc<[Topic]>,
    pub sources: Vec<Source>,
    pub ring: Ring,
    /// Who follows it, by reactor.
    members: Vec<u32>,
    /// When the last member left.
    left: Option<Instant>,
    /// A bit for each reactor that has been told.
    told: u64,
    /// Until when nothing is taken out of the ring.
    pinned: Option<Instant>,
    /// Its streams do not continue where they were.
    pub broken: bool,
}

impl Channel {
    /// Where somebody goes on who has seen this much, or nothing, while the streams are at `now`.
    pub fn find(&self, seen: Option<Mark>, now: Mark) -> Found {
        let Some(seen) = seen else { return Found::At(self.ring.head()) };
        if self.sources.iter().any(|source| seen.get(*source) > now.get(*source)) {
            return Found::Ahead;
        }
        match self.ring.place(seen, &self.sources) {
            Place::At(cursor) => Found::At(cursor),
            Place::Before => Found::Before(self.ring.floor()),
            Place::Between => Found::Between,
        }
    }

    fn is_empty(&self) -> bool {
        self.members.iter().all(|members| *members == 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    At(u32),
    Before(Mark),
    Ahead,
    Between,
}

/// Which reactors there is something for, a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Wanted(pub u64);

impl Channels {
    pub fn set_reactors(&mut self, count: usize) {
        self.news = vec![Vec::new(); count];
    }

    pub fn get(&self, id: ChannelId) -> Option<&Channel> {
        self.all.get(&id)
    }

    pub fn follows(&self, topic: &Topic) -> bool {
        self.by_topic.contains_key(topic)
    }

    /// The channel of these topics, which begins at `mark` if it is not there, and one more member of it.
    pub fn join(&mut self, topics: &Arc<[Topic]>, reactor: usize, mark: Mark) -> ChannelId {
        let id = match self.by_topics.get(topics) {
            Some(id) => *id,
            None => self.make(topics, mark),
        };
        if let Some(members) = self.all.get_mut(&id).and_then(|channel| channel.members.get_mut(reactor)) {
            *members += 1;
        }
        id
    }

    fn make(&mut self, topics: &Arc<[Topic]>, mark: Mark) -> ChannelId {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.all.contains_key(&self.last_id) {
                break;
            }
        }
        let id = self.last_id;
        for topic in topics.iter() {
            self.by_topic.entry(topic.clone()).or_default().insert(id);
        }
        let has = |source: &Source| topics.iter().any(|topic| Source::of_topic(topic) == *source);
        let channel = Channel {
            topics: Arc::clone(topics),
            sources: Source::ALL.into_iter().filter(has).collect(),
            ring: Ring::new(mark),
            members: vec![0; self.news.len()],
            left: None,
            told: 0,
            pinned: None,
            broken: false,
        };
        self.by_topics.insert(Arc::clone(topics), id);
        self.all.insert(id, channel);
        id
    }

    pub fn leave(&mut self, id: ChannelId, reactor: usize, now: Instant) {
        let Some(channel) = self.all.get_mut(&id) else { return };
        if let Some(members) = channel.members.get_mut(reactor) {
            *members = members.saturating_sub(1);
        }
        if !channel.is_empty() {
            return;
        }
        if channel.broken {
            self.all.remove(&id);
        } else {
            channel.left = Some(now);
            let topics = channel.topics.len();
            self.idle.push_back((now, id, topics));
            self.idle_topics += topics;
        }
        self.forget(now);
    }

    /// A message for whoever follows any of `topics`, once.
    pub fn publish(&mut self, topics: &[Topic], entry: &Entry, bytes: usize, now: Instant) -> Wanted {
        let (mut wanted, mut bytes) = (0, bytes * BYTE_BYTES + MESSAGE_BYTES);
        for (i, topic) in topics.iter().enumerate() {
            for id in self.by_topic.get(topic).into_iter().flatten() {
                let has_it =
                    topics[..i].iter().any(|t| self.by_topic.get(t).is_some_and(|ids| ids.contains(id)));
                let Some(channel) = self.all.get_mut(id).filter(|_| !has_it) else { continue };
                channel.ring.push(entry.clone());
                // All rings share it, and forget it together.
                let bytes = std::mem::take(&mut bytes);
                self.held.push_back(Held { since: now, channel: *id, bytes });
                self.held_bytes += bytes;
                wanted |= tell(&mut self.news, *id, channel);
            }
        }
        self.forget(now);
        Wanted(wanted)
    }

    /// Puts what a stream had before the ring begins, if it still begins where it did when the reading began.
    pub fn prepend(
        &mut self,
        id: ChannelId,
        from: Mark,
        until: Mark,
        read: Vec<(Entry, usize)>,
        now: Instant,
    ) {
        let Some(channel) = self.all.get_mut(&id).filter(|channel| channel.ring.floor() == until) else {
            return;
        };
        for (_, bytes) in &read {
            let bytes = bytes * BYTE_BYTES + MESSAGE_BYTES;
            self.held.push_back(Held { since: now, channel: id, bytes });
            self.held_bytes += bytes;
        }
        channel.ring.prepend(read.into_iter().map(|(entry, _)| entry).collect(), from);
        if self.held_bytes <= RING_BYTES && self.held.len() <= MAX_HELD {
            channel.pinned = Some(now + PINNED);
        }
        self.forget(now);
    }

    /// What was followed of this stream does not go on: its members are told, and whoever comes gets a new channel.
    pub fn break_off(&mut self, source: Source) -> Wanted {
        let mut wanted = 0;
        let broken: Vec<_> = self
            .all
            .iter()
            .filter(|(_, channel)| channel.sources.contains(&source))
            .map(|(id, _)| *id)
            .collect();
        for id in broken {
            self.unlink(id);
            let Some(channel) = self.all.get_mut(&id) else { continue };
            channel.broken = true;
            if channel.is_empty() {
                self.all.remove(&id);
            } else {
                wanted |= tell(&mut self.news, id, channel);
            }
        }
        Wanted(wanted)
    }

    /// The channels that have something new for a reactor since it asked last.
    pub fn take_news(&mut self, reactor: usize) -> Vec<ChannelId> {
        let news = self.news.get_mut(reactor).map(std::mem::take).unwrap_or_default();
        for id in &news {
            if let Some(channel) = self.all.get_mut(id) {
                channel.told &= !(1 << reactor);
            }
        }
        news
    }

    /// What is too old, or too much.
    pub fn forget(&mut self, now: Instant) {
        self.forget_messages(now);
        while let Some((since, id, topics)) = self.idle.front().copied() {
            if self.idle_topics <= MAX_IDLE_TOPICS && now.duration_since(since) < KEPT {
                break;
            }
            self.idle.pop_front();
            self.idle_topics -= topics;
            // It may have been joined since, and left again.
            let is_left = |channel: &Channel| channel.left == Some(since) && channel.is_empty();
            if self.all.get(&id).is_some_and(is_left) {
                self.unlink(id);
                self.all.remove(&id);
            }
        }
    }

    fn forget_messages(&mut self, now: Instant) {
        // What is pinned goes to the end of the line, so that each is looked at once.
        for _ in 0..self.held.len() {
            let Some(oldest) = self.held.front() else { break };
            let over = self.held_bytes > RING_BYTES || self.held.len() > MAX_HELD;
            if !over && now.duration_since(oldest.since) < KEPT {
                break;
            }
            let Some(held) = self.held.pop_front() else { break };
            match self.all.get_mut(&held.channel) {
                Some(channel) if channel.pinned.is_some_and(|until| now < until) => {
                    self.held.push_back(Held { since: now, ..held });
                    continue;
                }
                Some(channel) => drop(channel.ring.pop()),
                None => {}
            }
            self.held_bytes -= held.bytes;
        }
    }

    fn unlink(&mut self, id: ChannelId) {
        let Some(channel) = self.all.get(&id) else { return };
        if self.by_topics.get(&channel.topics) == Some(&id) {
            self.by_topics.remove(&channel.topics);
        }
        for topic in channel.topics.iter() {
            if let Some(ids) = self.by_topic.get_mut(topic) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
    }
}

/// Notes that there is something new for those reactors that have members and do not know it yet; a bit for each.
fn tell(news: &mut [Vec<ChannelId>], id: ChannelId, channel: &mut Channel) -> u64 {
    let mut wanted = 0;
    for (reactor, members) in channel.members.iter().enumerate() {
        let bit = 1 << reactor;
        if *members > 0 && channel.told & bit == 0 {
            channel.told |= bit;
            news[reactor].push(id);
            wanted |= bit;
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::frame::{Frame, Message};
    use cratemill_protocol::bus::{DomainEvent, EventMessage};

    fn topics(names: &[&str]) -> Arc<[Topic]> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn mark(events: u64) -> Mark {
        Mark { events, topics: 0 }
    }

    fn entry(sequence: u64) -> Entry {
        let event = DomainEvent::Queue { queued: sequence, running: 0 };
        let frame = Frame::new(sequence, Message::Event(EventMessage { at_ms: 0, event }));
        Entry { source: Source::Events, frame: Arc::new(frame), mark: mark(sequence) }
    }

    fn channels() -> Channels {
        let mut channels = Channels::default();
        channels.set_reactors(2);
        channels
    }

    fn sequences(channels: &Channels, id: ChannelId, cursor: u32) -> Option<Vec<u64>> {
        Some(channels.get(id)?.ring.from(cursor)?.map(|entry| entry.frame.sequence).collect())
    }

    #[test]
    fn a_message_is_once_in_each_channel_that_it_is_for_and_its_reactors_are_told_once() {
        let (mut channels, now) = (channels(), Instant::now());
        let builds = channels.join(&topics(&["builds"]), 0, mark(1));
        let both = channels.join(&topics(&["builds", "crate.hexyl"]), 1, mark(1));
        assert_eq!(channels.join(&topics(&["builds"]), 1, mark(9)), builds);
        let queue = channels.join(&topics(&["queue"]), 0, mark(1));
        let fed = topics(&["job.7", "crate.hexyl", "builds"]);
        assert_eq!(channels.publish(&fed, &entry(2), 10, now), Wanted(0b11));
        assert_eq!(channels.publish(&fed, &entry(3), 10, now), Wanted(0), "they know");
        assert_eq!(channels.take_news(0), [builds]);
        let mut second = channels.take_news(1);
        second.sort_unstable();
        assert_eq!(second, [builds, both]);
        for (id, expected) in [(builds, vec![2, 3]), (both, vec![2, 3]), (queue, vec![])] {
            assert_eq!(sequences(&channels, id, 0), Some(expected), "{id}");
        }
        assert_eq!(channels.publish(&topics(&["queue"]), &entry(4), 10, now), Wanted(0b01));
    }

    #[test]
    fn a_channel_outlives_its_members_for_a_while() {
        let (mut channels, now) = (channels(), Instant::now());
        let names = topics(&["queue"]);
        let id = channels.join(&names, 0, mark(1));
        channels.leave(id, 0, now);
        let _ = channels.publish(&names, &entry(2), 10, now);
        channels.forget(now + KEPT / 2);
        assert_eq!(channels.join(&names, 1, mark(2)), id, "it is there for whoever comes back");
        assert_eq!(sequences(&channels, id, 0), Some(vec![2]));
        channels.forget(now + KEPT);
        assert_eq!(sequences(&channels, id, 0), None, "its messages get old");
        assert_eq!(sequences(&channels, id, 1), Some(vec![]));
        channels.leave(id, 1, now + KEPT);
        channels.forget(now + KEPT * 2);
        assert!(channels.all.is_empty() && channels.by_topic.is_empty() && channels.by_topics.is_empty());
        assert_eq!(channels.held_bytes, 0);
    }

    #[test]
    fn all_rings_together_are_bounded() {
        let (mut channels, now) = (channels(), Instant::now());
        let (one, other) = (topics(&["queue"]), topics(&["builders"]));
        let quiet = channels.join(&one, 0, mark(0));
        let busy = channels.join(&other, 0, mark(0));
        let _ = channels.publish(&one, &entry(1), 10, now);
        for sequence in 2..200 {
            let _ = channels.publish(&other, &entry(sequence), RING_BYTES / 100, now);
        }
        assert!(channels.held_bytes <= RING_BYTES);
        assert_eq!(sequences(&channels, quiet, 0), None);
        assert_eq!(channels.get(quiet).unwrap().ring.floor(), mark(1));
        assert!(channels.get(busy).unwrap().ring.floor().events > 90);
    }

    #[test]
    fn who_comes_after_a_break_has_a_channel_of_its_own() {
        let mut channels = channels();
        let names = topics(&["queue"]);
        let old = channels.join(&names, 0, mark(70));
        assert_eq!(channels.break_off(Source::Logs), Wanted(0));
        assert_eq!(channels.break_off(Source::Events), Wanted(1));
        assert!(channels.get(old).unwrap().broken);
        let new = channels.join(&names, 0, mark(2));
        assert_ne!(old, new);
        channels.leave(old, 0, Instant::now());
        assert!(channels.get(old).is_none());
        let _ = channels.publish(&names, &entry(3), 10, Instant::now());
        assert_eq!(sequences(&channels, new, 0), Some(vec![3]));
    }

    #[test]
    fn what_is_read_again_goes_in_front_unless_the_ring_has_moved() {
        let (mut channels, now) = (channels(), Instant::now());
        let names = topics(&["queue"]);
        let id = channels.join(&names, 0, mark(10));
        let _ = channels.publish(&names, &entry(11), 10, now);
        let read = || [8, 9].map(|sequence| (entry(sequence), 10)).to_vec();
        channels.prepend(id, mark(7), mark(9), read(), now);
        assert_eq!(sequences(&channels, id, 0), Some(vec![11]), "the ring began elsewhere");
        channels.prepend(id, mark(7), mark(10), read(), now);
        assert_eq!(sequences(&channels, id, 0_u32.wrapping_sub(2)), Some(vec![8, 9, 11]));
        // While those who waited for it come, it stays.
        for sequence in 12..300 {
            let _ = channels.publish(&names, &entry(sequence), RING_BYTES / 100 / BYTE_BYTES, now);
        }
        assert_eq!(channels.get(id).unwrap().ring.floor(), mark(7));
        channels.forget(now + PINNED);
        assert!(channels.held_bytes <= RING_BYTES && channels.get(id).unwrap().ring.floor().events > 90);
        channels.forget(now + PINNED + KEPT);
        assert_eq!(channels.held_bytes, 0);
        assert!(channels.get(id).unwrap().ring.is_empty());
    }
}
