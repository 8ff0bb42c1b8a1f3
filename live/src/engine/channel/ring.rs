//! The newest messages of one channel, numbered, and up to where they reach back. Pure.
//!
//! A cursor is the number of the next message: whoever is at the head has seen all. Numbers wrap; a ring never holds
//! nearly as many messages as there are numbers.

use crate::engine::{Source, frame::Frame, position::Position};
use std::{collections::VecDeque, sync::Arc};

/// How far the streams were, or a viewer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    pub events: u64,
    /// In the stream of user topics.
    pub topics: u64,
    pub timeline: u64,
    pub pubsub: u64,
}

impl Mark {
    /// What a position does not say is as it is `now`.
    pub fn of(position: &Position, now: Self) -> Self {
        Self { events: position.events, topics: position.topics.unwrap_or(now.topics), ..now }
    }

    pub fn get(self, source: Source) -> u64 {
        match source {
            Source::Events => self.events,
            Source::Topics => self.topics,
            Source::Timeline => self.timeline,
            Source::Pubsub => self.pubsub,
            Source::Logs => 0,
        }
    }

    /// As a viewer of these streams is told.
    pub fn position(self, sources: &[Source]) -> Position {
        let topics = sources.contains(&Source::Topics).then_some(self.topics);
        Position { events: self.events, topics, ..Position::default() }
    }

    /// What both have seen.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            events: self.events.min(other.events),
            topics: self.topics.min(other.topics),
            timeline: self.timeline.min(other.timeline),
            pubsub: self.pubsub.min(other.pubsub),
        }
    }

    pub fn set(&mut self, source: Source, sequence: u64) {
        match source {
            Source::Events => self.events = sequence,
            Source::Topics => self.topics = sequence,
            Source::Timeline => self.timeline = sequence,
            Source::Pubsub => self.pubsub = sequence,
            Source::Logs => {}
        }
    }
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub source: Source,
    pub frame: Arc<Frame>,
    /// How far the streams were with this message.
    pub mark: Mark,
}

#[derive(Debug)]
pub struct Ring {
    /// Everything of the channel that came after this is here.
    floor: Mark,
    /// The number of the oldest message.
    first: u32,
    entries: VecDeque<Entry>,
    /// It has forgotten something.
    pub popped: bool,
}

/// Where a viewer that has seen everything up to a mark goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    At(u32),
    /// What it misses first is not here any more.
    Before,
    /// On the node it comes from, messages of different streams came in another order: no cursor says what it has seen.
    Between,
}

impl Ring {
    pub fn new(floor: Mark) -> Self {
        Self { floor, first: 0, entries: VecDeque::new(), popped: false }
    }

    pub fn floor(&self) -> Mark {
        self.floor
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number that the next message gets.
    pub fn head(&self) -> u32 {
        self.first.wrapping_add(u32::try_from(self.entries.len()).unwrap_or(u32::MAX))
    }

    pub fn push(&mut self, entry: Entry) {
        self.entries.push_back(entry);
    }

    /// Forgets the oldest message.
    pub fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.first = self.first.wrapping_add(1);
        self.floor = entry.mark;
        self.popped = true;
        Some(entry)
    }

    /// Puts what came before the oldest message in front; `floor` is what it reaches back to. Cursors stay right.
    pub fn prepend(&mut self, entries: Vec<Entry>, floor: Mark) {
        self.floor = floor;
        for entry in entries.into_iter().rev() {
            self.entries.push_front(entry);
            self.first = self.first.wrapping_sub(1);
        }
    }

    /// `sources` are the streams that the channel's topics are of.
    pub fn place(&self, seen: Mark, sources: &[Source]) -> Place {
        if sources.iter().any(|source| seen.get(*source) < self.floor.get(*source)) {
            return Place::Before;
        }
        let is_seen = |entry: &Entry| entry.frame.sequence <= seen.get(entry.source);
        let firsts = sources
            .iter()
            .map(|source| self.entries.partition_point(|entry| entry.mark.get(*source) <= seen.get(*source)));
        // Where all streams agree there is nothing between.
        let (mut low, mut high) = (usize::MAX, 0);
        for first in firsts {
            (low, high) = (low.min(first), high.max(first));
        }
        let mut disputed = self.entries.range(low.min(high)..high).map(is_seen);
        let seen_first = disputed.next().unwrap_or(true);
        if disputed.any(|seen| seen != seen_first) {
            return Place::Between;
        }
        let place = if seen_first { high } else { low };
        Place::At(self.first.wrapping_add(u32::try_from(place).unwrap_or(u32::MAX)))
    }

    /// What comes from `cursor` on; nothing once the ring has forgotten some of it.
    pub fn from(&self, cursor: u32) -> Option<impl Iterator<Item = &Entry>> {
        let skip = usize::try_from(cursor.wrapping_sub(self.first)).ok()?;
        (skip <= self.entries.len()).then(|| self.entries.range(skip..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::frame::Message;
    use cratemill_protocol::{
        JsonText,
        bus::{DomainEvent, EventMessage, TopicMessage},
    };
    use proptest::prelude::*;

    fn entry(sequence: u64) -> Entry {
        let event = DomainEvent::Queue { queued: sequence, running: 0 };
        let message = Message::Event(EventMessage { at_ms: 0, event });
        let frame = Arc::new(Frame::new(sequence, message));
        Entry { source: Source::Events, frame, mark: mark(sequence) }
    }

    fn mark(events: u64) -> Mark {
        Mark { events, ..Mark::default() }
    }

    fn rest(ring: &Ring, cursor: u32) -> Option<Vec<u64>> {
        Some(ring.from(cursor)?.map(|entry| entry.frame.sequence).collect())
    }

    #[test]
    fn who_has_seen_something_gets_the_rest_or_is_told_to_read_it_elsewhere() {
        let mut ring = Ring::new(mark(10));
        for sequence in [12, 15, 16] {
            ring.push(entry(sequence));
        }
        for (seen, expected) in [
            (9, None),
            (10, Some(vec![12, 15, 16])),
            (11, Some(vec![12, 15, 16])),
            (12, Some(vec![15, 16])),
            (14, Some(vec![15, 16])),
            (16, Some(vec![])),
            (99, Some(vec![])),
        ] {
            let found = match ring.place(mark(seen), &[Source::Events]) {
                Place::At(cursor) => rest(&ring, cursor),
                Place::Before | Place::Between => None,
            };
            assert_eq!(found, expected, "{seen}");
        }
        let Place::At(cursor) = ring.place(mark(10), &[Source::Events]) else { panic!() };
        ring.pop();
        assert_eq!(rest(&ring, cursor), None, "it was forgotten");
        assert_eq!(ring.place(mark(11), &[Source::Events]), Place::Before);
        ring.prepend(vec![entry(11), entry(12)], mark(5));
        assert_eq!(rest(&ring, cursor), Some(vec![12, 15, 16]), "cursors stay right");
        assert_eq!(ring.place(mark(4), &[Source::Events]), Place::Before);
    }

    fn message(sequence: u64, mark: Mark) -> Entry {
        let (topic, data) = ("topic.a".parse().unwrap(), JsonText::parse(b"1").unwrap());
        let message = Message::User(TopicMessage { topic, at_ms: 0, data });
        Entry { source: Source::Topics, frame: Arc::new(Frame::new(sequence, message)), mark }
    }

    /// Another node had the two streams in another order.
    #[test]
    fn of_two_streams_a_cursor_is_found_where_one_can_say_it() {
        let at = |events, topics| Mark { events, topics, ..Mark::default() };
        let mut ring = Ring::new(at(10, 20));
        ring.push(Entry { mark: at(11, 20), ..entry(11) });
        ring.push(message(21, at(11, 21)));
        ring.push(Entry { mark: at(13, 21), ..entry(13) });
        let sources = [Source::Events, Source::Topics];
        for (seen, place) in [
            (at(10, 20), Place::At(0)),
            (at(11, 20), Place::At(1)),
            (at(11, 21), Place::At(2)),
            (at(12, 21), Place::At(2)),
            (at(13, 21), Place::At(3)),
            (at(10, 21), Place::Between),
            (at(13, 20), Place::Between),
            (at(9, 21), Place::Before),
            (at(13, 19), Place::Before),
        ] {
            assert_eq!(ring.place(seen, &sources), place, "{seen:?}");
        }
    }

    proptest! {
        /// Over the end of the numbers too.
        #[test]
        fn every_cursor_sees_what_follows_or_knows_that_it_does_not(
            start in prop_oneof![Just(0_u32), Just(u32::MAX - 3)],
            steps in prop::collection::vec(any::<bool>(), 1..60),
        ) {
            let mut ring = Ring { first: start, ..Ring::new(mark(0)) };
            let (mut next, mut oldest) = (1, 1);
            let mut cursors = vec![(ring.head(), 1)];
            for push in steps {
                if push {
                    ring.push(entry(next));
                    next += 1;
                } else if ring.pop().is_some() {
                    oldest += 1;
                }
                cursors.push((ring.head(), next));
                for (cursor, from) in &cursors {
                    let expected = (*from >= oldest).then(|| (*from..next).collect::<Vec<_>>());
                    prop_assert_eq!(rest(&ring, *cursor), expected);
                }
            }
        }
    }
}
