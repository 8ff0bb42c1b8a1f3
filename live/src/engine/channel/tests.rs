use super::*;
use crate::engine::frame::{Frame, Message};
use cratemill_protocol::bus::{DomainEvent, EventMessage};

fn topics(names: &[&str]) -> Arc<[Topic]> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn mark(events: u64) -> Mark {
    Mark { events, ..Mark::default() }
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
    assert!(channels.prepend(id, mark(7), mark(9), read(), now));
    assert_eq!(sequences(&channels, id, 0), Some(vec![11]), "the ring began elsewhere");
    assert!(channels.prepend(id, mark(7), mark(10), read(), now));
    assert_eq!(sequences(&channels, id, 0_u32.wrapping_sub(2)), Some(vec![8, 9, 11]));
    // While those who waited for it come, it stays, whatever comes elsewhere.
    let other = topics(&["builders"]);
    channels.join(&other, 0, mark(10));
    for sequence in 12..300 {
        let _ = channels.publish(&other, &entry(sequence), RING_BYTES / 100 / BYTE_BYTES, now);
    }
    assert_eq!(channels.get(id).unwrap().ring.floor(), mark(7));
    assert!(channels.held_bytes <= RING_BYTES);
    channels.forget(now + PINNED + KEPT);
    assert_eq!(channels.held_bytes, 0);
    assert!(channels.get(id).unwrap().ring.is_empty());
}

#[test]
fn what_is_read_again_leaves_room_for_what_is_new() {
    let (mut channels, now) = (channels(), Instant::now());
    let names = ["queue", "builders", "builds"].map(|name| topics(&[name]));
    let ids = names.each_ref().map(|names| channels.join(names, 0, mark(10)));
    let third = || vec![(entry(9), RING_BYTES / 3 / BYTE_BYTES)];
    assert!(channels.prepend(ids[0], mark(7), mark(10), third(), now));
    assert!(!channels.prepend(ids[1], mark(7), mark(10), third(), now));
    channels.set_too_much(ids[1], mark(6), mark(10));
    let too_much = |channels: &Channels, seen| channels.get(ids[1]).unwrap().is_too_much(mark(seen));
    assert!(too_much(&channels, 6) && !too_much(&channels, 7));
    let later = now + PINNED;
    assert!(channels.prepend(ids[1], mark(7), mark(10), third(), later));
    assert!(!too_much(&channels, 6));
    // Nothing of a pinned channel goes: one that has a lot itself gets nothing in front.
    for sequence in 11..60 {
        let _ = channels.publish(&names[2], &entry(sequence), RING_BYTES / 100 / BYTE_BYTES, later);
    }
    let last = later + PINNED;
    assert!(!channels.prepend(
        ids[2],
        mark(7),
        mark(10),
        vec![(entry(9), RING_BYTES / 50 / BYTE_BYTES)],
        last
    ));
    let later = last;
    // A flood into what is pinned: the bound is what counts.
    for sequence in 11..300 {
        let _ = channels.publish(&names[1], &entry(sequence), RING_BYTES / 100 / BYTE_BYTES, later);
        assert!(channels.held_bytes <= RING_BYTES * 102 / 100);
        let newest = channels.get(ids[1]).unwrap().ring.head().wrapping_sub(1);
        assert_eq!(sequences(&channels, ids[1], newest), Some(vec![sequence]));
    }
}

#[test]
fn one_that_comes_and_goes_counts_once() {
    let (mut channels, now) = (channels(), Instant::now());
    let (names, other) = (topics(&["queue"]), topics(&["builders"]));
    let quiet = channels.join(&other, 0, mark(1));
    channels.leave(quiet, 0, now);
    for _ in 0..MAX_IDLE_TOPICS * 2 {
        let id = channels.join(&names, 0, mark(1));
        channels.leave(id, 0, now);
    }
    assert_eq!((channels.idle.len(), channels.idle_topics), (2, 2));
    assert!(channels.get(quiet).is_some());
    let busy = channels.join(&names, 0, mark(1));
    channels.leave(busy, 0, now + KEPT / 2);
    channels.forget(now + KEPT);
    assert!(channels.get(quiet).is_none() && channels.get(busy).is_some(), "it was left later");
    channels.forget(now + KEPT * 2);
    assert!(channels.all.is_empty() && channels.idle_topics == 0);
}
