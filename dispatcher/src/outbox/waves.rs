//! In which order events are published: those of one subject one after the other, others together. Pure.

use bytes::Bytes;
use cratemill_store::outbox::Entry;
use std::collections::{HashMap, HashSet};

/// Events published at once: enough to hide the way to the bus and back.
const MAX_WAVE: usize = 512;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// What it was written with.
    pub(super) entry: i64,
    /// The same at each try.
    pub(super) id: String,
    pub(super) subject: String,
    pub(super) payload: Bytes,
}

/// The events of entries, in their order.
pub(super) fn events(entries: Vec<Entry>) -> Vec<Event> {
    let of_entry = |Entry { id, subjects, payloads }: Entry| {
        let parts = (0_usize..).zip(subjects.into_iter().zip(payloads));
        parts.map(move |(n, (subject, payload))| Event {
            entry: id,
            id: format!("o{id}.{n}"),
            subject,
            payload: payload.into(),
        })
    };
    entries.into_iter().flat_map(of_entry).collect()
}

/// Of each subject only the newest: an event says all that is true of its subject.
pub(super) fn newest(events: Vec<Event>) -> Vec<Event> {
    let last: HashMap<String, usize> =
        events.iter().enumerate().map(|(position, event)| (event.subject.clone(), position)).collect();
    let is_last = |(position, event): &(usize, Event)| last.get(&event.subject) == Some(position);
    events.into_iter().enumerate().filter(is_last).map(|(_, event)| event).collect()
}

/// Cut where a subject comes again, and where a wave is full. The order within a wave does not matter.
pub(super) fn waves(events: &[Event]) -> Vec<&[Event]> {
    let mut waves = Vec::new();
    let mut subjects = HashSet::new();
    let mut start = 0;
    for (position, event) in events.iter().enumerate() {
        if position - start == MAX_WAVE || subjects.contains(event.subject.as_str()) {
            waves.push(&events[start..position]);
            subjects.clear();
            start = position;
        }
        subjects.insert(event.subject.as_str());
    }
    if start < events.len() {
        waves.push(&events[start..]);
    }
    waves
}

/// Entries of which nothing is `left` to be published.
pub(super) fn delivered(mut entries: Vec<i64>, left: &[Event]) -> Vec<i64> {
    let left: HashSet<i64> = left.iter().map(|event| event.entry).collect();
    entries.retain(|id| !left.contains(id));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(id: i64, subjects: &[u8]) -> Entry {
        let payloads = (0_u8..).zip(subjects).map(|(n, _)| vec![n]).collect();
        Entry { id, subjects: subjects.iter().map(|of| format!("s{of}")).collect(), payloads }
    }

    #[test]
    fn an_event_has_the_same_id_at_each_try() {
        let ids = |entries| events(entries).into_iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(ids(vec![entry(7, &[1, 2]), entry(9, &[1])]), ["o7.0", "o7.1", "o9.0"]);
        assert_eq!(ids(vec![entry(9, &[1])]), ["o9.0"]);
    }

    proptest! {
        #[test]
        fn each_subject_is_once_in_a_wave_and_in_order(subjects in prop::collection::vec(0_u8..9, 0..60)) {
            let all = events(vec![entry(1, &subjects)]);
            let waves = waves(&all);
            prop_assert_eq!(waves.concat(), all.clone());
            for wave in waves {
                let names: HashSet<_> = wave.iter().map(|event| &event.subject).collect();
                prop_assert_eq!(names.len(), wave.len());
                prop_assert!((1..=MAX_WAVE).contains(&wave.len()));
            }
        }

        #[test]
        fn whenever_it_stops_each_subjects_newest_event_is_out_or_kept(
            subjects in prop::collection::vec(prop::collection::vec(0_u8..6, 1..6), 1..12),
            behind: bool,
            stop: prop::sample::Index,
        ) {
            let entries: Vec<_> = (1..).zip(&subjects).map(|(id, of)| entry(id, of)).collect();
            let ids: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
            let all = events(entries);
            let events = if behind { newest(all.clone()) } else { all.clone() };
            let waves = waves(&events);
            let out: usize = waves[..stop.index(waves.len() + 1)].iter().map(|wave| wave.len()).sum();
            let (out, left) = events.split_at(out);
            let gone = delivered(ids.clone(), left);
            if left.is_empty() {
                prop_assert_eq!(&gone, &ids);
            }
            for event in newest(all) {
                prop_assert!(out.contains(&event) || !gone.contains(&event.entry), "{:?}", event);
            }
        }

        #[test]
        fn the_newest_of_each_subject_is_left(subjects in prop::collection::vec(0_u8..9, 0..60)) {
            let all = events(vec![entry(1, &subjects)]);
            let left = newest(all.clone());
            for subject in all.iter().map(|event| &event.subject).collect::<HashSet<_>>() {
                let of = |events: &[Event]| events.iter().filter(|event| event.subject == *subject).cloned().collect::<Vec<_>>();
                prop_assert_eq!(of(&left), of(&all).split_off(of(&all).len() - 1));
            }
        }
    }
}
