//! What is followed together on this node: a channel is a set of topics, with the newest of their messages in a ring.
//!
//! All who follow the same topics share a channel, and each of them is no more than a cursor into its ring. Logs have no
//! channels: a log moves to the archive while it is read, and how far one is in it is each viewer's own.

mod ids;
mod ring;

pub use ring::{Entry, Mark, Place, Ring};

use crate::engine::Source;
use cratemill_protocol::topic::Topic;
use ids::Ids;
use smallvec::{SmallVec, smallvec};
use std::{
    collections::{HashMap, VecDeque},
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
/// What was read again for those who wait for it stays at least so long.
const PINNED: Duration = Duration::from_secs(5);
/// All that was read again lately, of all bytes and of all places: what is new must have room beside it.
const PINNED_PART: usize = 2;
/// Topics of channels that wait for somebody to come back.
const MAX_IDLE_TOPICS: usize = 20_000;

pub type ChannelId = u32;
/// The streams that topics are of.
pub type Sources = SmallVec<[Source; Source::ALL.len()]>;

#[derive(Debug, Default)]
pub struct Channels {
    all: HashMap<ChannelId, Channel>,
    by_topics: HashMap<Arc<[Topic]>, ChannelId>,
    by_topic: HashMap<Topic, Ids>,
    last_id: ChannelId,
    /// A message in a ring each, the oldest first.
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Until when something is pinned, its bytes and places.
    pins: VecDeque<(Instant, usize, usize)>,
    /// Channels that were left by all, each once, the first first, with their topics.
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
    pub sources: Sources,
    pub ring: Ring,
    /// Who follows it, by reactor.
    members: SmallVec<[u32; 4]>,
    /// When the last member left.
    left: Option<Instant>,
    /// It is among the idle ones, or was and has not been looked at since.
    idle: bool,
    /// A bit for each reactor that has been told.
    told: u64,
    /// Of what is held, what is this channel's.
    held_bytes: usize,
    /// Until when nothing is taken out of the ring.
    pinned: Option<Instant>,
    /// What came after this, up to where the ring begins, is more than is read again, or is gone.
    too_much: Option<Mark>,
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

    /// Whether it is known that what came after `seen` is not to be read again.
    pub fn is_too_much(&self, seen: Mark) -> bool {
        let is_known =
            |known: &Mark| self.sources.iter().all(|source| seen.get(*source) <= known.get(*source));
        self.too_much.as_ref().is_some_and(is_known)
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

    /// That are followed.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.by_topic.keys()
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
            members: smallvec![0; self.news.len()],
            left: None,
            idle: false,
            told: 0,
            held_bytes: 0,
            pinned: None,
            too_much: None,
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
            if !std::mem::replace(&mut channel.idle, true) {
                let topics = channel.topics.len();
                self.idle.push_back((now, id, topics));
                self.idle_topics += topics;
            }
        }
        self.forget(now);
    }

    /// A message for whoever follows any of `topics`, once.
    pub fn publish(&mut self, topics: &[Topic], entry: &Entry, bytes: usize, now: Instant) -> Wanted {
        let (mut wanted, mut bytes) = (0, bytes * BYTE_BYTES + MESSAGE_BYTES);
        for (i, topic) in topics.iter().enumerate() {
            for id in self.by_topic.get(topic).map(|ids| ids.0.as_slice()).unwrap_or_default() {
                let has_it =
                    topics[..i].iter().any(|t| self.by_topic.get(t).is_some_and(|ids| ids.contains(*id)));
                let Some(channel) = self.all.get_mut(id).filter(|_| !has_it) else { continue };
                channel.ring.push(entry.clone());
                // All rings share it, and forget it together.
                let bytes = std::mem::take(&mut bytes);
                self.held.push_back(Held { since: now, channel: *id, bytes });
                self.held_bytes += bytes;
                channel.held_bytes += bytes;
                wanted |= tell(&mut self.news, *id, channel);
            }
        }
        self.forget(now);
        Wanted(wanted)
    }

    /// Puts what a stream had before the ring begins, if it still begins where it did when the reading began. False if
    /// there is no room for it.
    pub fn prepend(
        &mut self,
        id: ChannelId,
        from: Mark,
        until: Mark,
        read: Vec<(Entry, usize)>,
        now: Instant,
    ) -> bool {
        let Some(channel) = self.all.get_mut(&id).filter(|channel| channel.ring.floor() == until) else {
            return true;
        };
        let cost = |bytes: &usize| bytes * BYTE_BYTES + MESSAGE_BYTES;
        let (bytes, places) = (read.iter().map(|(_, bytes)| cost(bytes)).sum::<usize>(), read.len());
        self.pins.retain(|(until, ..)| now < *until);
        let pinned = self.pins.iter().fold((0, 0), |sum, (_, bytes, places)| (sum.0 + bytes, sum.1 + places));
        // Nothing of this channel goes while something of it is pinned.
        let all = (pinned.0 + bytes + channel.held_bytes, pinned.1 + places + channel.ring.len());
        if all.0 > RING_BYTES / PINNED_PART || all.1 > MAX_HELD / PINNED_PART {
            return false;
        }
        self.pins.push_back((now + PINNED, bytes, places));
        channel.pinned = Some(now + PINNED);
        channel.too_much = None;
        channel.held_bytes += bytes;
        self.held_bytes += bytes;
        let held = read.iter().map(|(_, bytes)| Held { since: now, channel: id, bytes: cost(bytes) });
        self.held.extend(held);
        channel.ring.prepend(read.into_iter().map(|(entry, _)| entry).collect(), from);
        self.forget(now);
        true
    }

    /// What came after `from` is not to be read again for as long as the ring does not reach further back.
    pub fn set_too_much(&mut self, id: ChannelId, from: Mark, until: Mark) {
        if let Some(channel) = self.all.get_mut(&id).filter(|channel| channel.ring.floor() == until)
            && !channel.is_too_much(from)
        {
            channel.too_much = Some(from);
        }
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
            let Some(channel) = self.all.get_mut(&id) else { continue };
            channel.idle = false;
            let Some(left) = channel.left.filter(|_| channel.is_empty()) else { continue };
            if left > since {
                // It was joined and left again: its turn comes later.
                channel.idle = true;
                self.idle.push_back((left, id, topics));
                self.idle_topics += topics;
                continue;
            }
            self.unlink(id);
            self.all.remove(&id);
        }
    }

    fn forget_messages(&mut self, now: Instant) {
        // What is pinned goes to the end of the line, so that each is looked at once.
        for _ in 0..self.held.len() {
            let Some(oldest) = self.held.front() else { break };
            if !self.is_over() && now.duration_since(oldest.since) < KEPT {
                return;
            }
            let Some(held) = self.held.pop_front() else { break };
            match self.all.get_mut(&held.channel) {
                Some(channel) if channel.pinned.is_some_and(|until| now < until) => {
                    self.held.push_back(Held { since: now, ..held });
                    continue;
                }
                Some(channel) => {
                    channel.held_bytes -= held.bytes;
                    drop(channel.ring.pop());
                }
                None => {}
            }
            self.held_bytes -= held.bytes;
        }
        // All that is left is pinned, as a flood came into channels that are: the bound is what counts.
        if self.is_over() {
            self.all.values_mut().for_each(|channel| channel.pinned = None);
            self.pins.clear();
        }
    }

    fn is_over(&self) -> bool {
        self.held_bytes > RING_BYTES || self.held.len() > MAX_HELD
    }

    fn unlink(&mut self, id: ChannelId) {
        let Some(channel) = self.all.get(&id) else { return };
        if self.by_topics.get(&channel.topics) == Some(&id) {
            self.by_topics.remove(&channel.topics);
        }
        for topic in channel.topics.iter() {
            if let Some(ids) = self.by_topic.get_mut(topic) {
                ids.remove(id);
                if ids.0.is_empty() {
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
mod tests;
