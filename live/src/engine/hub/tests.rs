use super::*;
use cratemill_protocol::{
    JsonText,
    bus::{self, DomainEvent, EventMessage, TopicMessage},
};

const NATIVE: [Source; 3] = [Source::Events, Source::Logs, Source::Topics];

fn hub() -> Arc<Hub> {
    let hub = Arc::new(Hub::new(NATIVE.to_vec()));
    hub.set_position(Source::Events, 10);
    hub.set_position(Source::Logs, 0);
    hub.set_position(Source::Topics, 5);
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
    assert_eq!(positions, Positions { events: 10, topics: 5, logs: 0 });
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
async fn a_user_topic_has_messages_and_breaks_of_its_own_stream() {
    let hub = hub();
    let (mut one, _) = hub.subscribe(&topics(&["topic.a", "queue"])).unwrap();
    let (mut other, _) = hub.subscribe(&topics(&["topic.b"])).unwrap();
    let (topic, data) = ("topic.a".parse().unwrap(), JsonText::parse(b"1").unwrap());
    let message = bus::encode(&TopicMessage { topic, at_ms: 0, data });
    hub.publish(Source::Topics, 6, "topic.a", &message);
    hub.publish(Source::Events, 11, "event.queue", &payload());
    assert_eq!(next_sequence(&mut one).await, 6);
    assert_eq!(next_sequence(&mut one).await, 11);
    assert!(other.is_empty());
    hub.break_off(Source::Topics, 8);
    assert!(matches!(other.next().await, Some(Delivery::Broken)));
    let (quiet, positions) = hub.subscribe(&topics(&["queue"])).unwrap();
    assert_eq!(positions, Positions { events: 11, topics: 8, logs: 0 });
    hub.break_off(Source::Topics, 9);
    assert!(quiet.is_empty());
}

#[test]
fn what_nobody_follows_is_skipped() {
    let hub = hub();
    assert!(hub.skip(Source::Logs, 9));
    let (log, _) = hub.subscribe(&topics(&["job.7.log"])).unwrap();
    assert!(!hub.skip(Source::Logs, 12) && hub.skip(Source::Topics, 7));
    assert_eq!(hub.positions(), Some(Positions { events: 10, topics: 7, logs: 9 }));
    drop(log);
    let Joined::At { .. } = hub.join(&topics(&["queue"]), None, 0) else { panic!("no place") };
    assert!(hub.skip(Source::Logs, 12) && !hub.skip(Source::Events, 12));
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
    let hub = Arc::new(Hub::new(NATIVE.to_vec()));
    hub.set_position(Source::Events, 0);
    assert!(hub.subscribe(&topics(&["queue"])).is_none());
}
