//! User topics: what is published, once and as it was, live and later, at any node.

use crate::{
    farm::{Farm, PATIENCE},
    proxy::Proxy,
    publisher::{self, publish, published, send},
    viewer::{Viewer, request},
};
use bytes::Bytes;
use cratemill_live::engine::{
    Source,
    replay::{Read, Replay, Stored},
};
use cratemill_protocol::{
    JsonText, UserTopic,
    bus::{self, TopicMessage},
    subjects,
};
use serde_json::json;
use sqlx::PgPool;
use std::ops::RangeInclusive;

impl Viewer {
    /// The data of the next messages of user topics.
    async fn messages(&mut self, count: usize) -> Vec<i64> {
        let mut data = Vec::new();
        while data.len() < count {
            data.push(self.expect("message").await["data"].as_i64().unwrap());
        }
        data
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_message_comes_live_and_to_who_resumes_elsewhere(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let one = farm.node_with(&[("LIVE_TOKEN_SECRET", publisher::SECRET), ("VIEWER_HEARTBEAT_S", "1")]).await;
    let other = publisher::node(&farm).await;
    let topics = ["topic.team.deploys", "queue"];
    let mut viewer = Viewer::open(&one, &topics).await;
    let mut stranger = Viewer::open(&one, &["topic.team"]).await;
    let answer = published(publish(&other, topics[0], "1", "1")).await;
    assert_eq!(answer, json!({"topic": topics[0], "sequence": 1, "id": "1", "duplicate": false}));
    let message = viewer.expect("message").await;
    assert_eq!((&message["topic"], &message["data"]), (&json!(topics[0]), &json!(1)));
    assert!(message["at_ms"].as_i64().unwrap() > 0);
    farm.queue_event(7).await;
    assert_eq!(viewer.queue_numbers(1).await, [7]);
    let last_id = viewer.last_id.clone();
    assert_eq!(last_id, "1.1");
    drop(viewer);

    for number in 2..=3 {
        published(publish(&one, topics[0], &number.to_string(), number.to_string())).await;
    }
    let mut resumed = Viewer::resume(&other, &topics, &last_id).await;
    assert_eq!(resumed.messages(2).await, [2, 3]);
    assert_eq!(Viewer::resume(&other, &topics[..1], "0.0").await.messages(3).await, [1, 2, 3]);
    // An id of before it followed user topics: its events come from there on, they from now on.
    let mut both = Viewer::resume(&other, &topics, "0").await;
    assert_eq!(both.queue_numbers(1).await, [7]);
    published(publish(&one, topics[0], "4", "4")).await;
    assert_eq!(both.messages(1).await, [4]);
    // Of another topic there was nothing all the while, and its id moved on.
    stranger.quietly_reaches("1.4").await;
    one.metric_reaches("cratemill_live_published_total{duplicate=\"false\"} ", 3.0).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_gone_is_said_of_its_own_stream(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    farm.queue_event(1).await;
    // Now the node knows of it.
    assert_eq!(Viewer::resume(&node, &["queue"], "0").await.queue_numbers(1).await, [1]);
    for number in 1..=5 {
        published(publish(&node, "topic.a", &number.to_string(), number.to_string())).await;
    }
    // And of these.
    assert_eq!(Viewer::resume(&node, &["topic.a"], "0.0").await.messages(5).await, [1, 2, 3, 4, 5]);
    let stream = farm.bus.jetstream.get_stream(subjects::TOPICS_STREAM).await.unwrap();
    stream.purge().sequence(4).await.unwrap();
    let mut expired = Viewer::resume(&node, &["queue", "topic.a"], "0.1").await;
    assert_eq!(expired.queue_numbers(1).await, [1]);
    assert_eq!(expired.expect("reset").await, json!({"topic": "topic.a", "reason": "expired"}));
    assert_eq!(expired.messages(2).await, [4, 5]);
    let mut unknown = Viewer::resume(&node, &["queue", "topic.a"], "1.99").await;
    assert_eq!(unknown.expect("reset").await, json!({"topic": "topic.a", "reason": "unknown_id"}));
    let mut unknown = Viewer::resume(&node, &["queue", "topic.a"], "99.5").await;
    assert_eq!(unknown.expect("reset").await, json!({"topic": "queue", "reason": "unknown_id"}));
}

/// The stream keeps so many messages of each topic: what one has lost is in the middle of the stream.
#[sqlx::test(migrations = "../migrations")]
async fn a_topic_that_lost_its_oldest_messages_says_so(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    published(publish(&node, "topic.quiet", "0", "0")).await;
    let kept = cratemill_service::streams::TOPIC_MESSAGES;
    fill_busy(&farm, 1..=kept + 2).await;
    published(publish(&node, "topic.quiet", "1", "1")).await;
    assert_eq!(Viewer::resume(&node, &["topic.quiet"], "0.0").await.messages(2).await, [0, 1]);
    let mut busy = Viewer::resume(&node, &["topic.busy"], "0.0").await;
    assert_eq!(busy.expect("reset").await, json!({"topic": "topic.busy", "reason": "expired"}));
    assert_eq!(busy.messages(3).await, [3, 4, 5]);
}

/// They are stored when it returns.
async fn fill_busy(farm: &Farm, numbers: RangeInclusive<u32>) {
    let topic: UserTopic = "topic.busy".parse().unwrap();
    let (last, mut stored) = (*numbers.end(), 0);
    for number in numbers {
        let data = JsonText::parse(number.to_string().as_bytes()).unwrap();
        let message = bus::encode(&TopicMessage { topic: topic.clone(), at_ms: 0, data });
        let (id, message) = (number.to_string(), Bytes::from(message));
        // What one connection sent before is stored before.
        if number == last {
            stored = farm.bus.store(&topic, &id, message, PATIENCE).await.unwrap().sequence;
        } else {
            farm.bus.client.publish(topic.to_string(), message).await.unwrap();
        }
    }
    assert!(stored >= u64::from(last));
}

#[sqlx::test(migrations = "../migrations")]
async fn what_a_topic_loses_while_it_is_read_is_said_afterwards(pool: PgPool) {
    let farm = Farm::start(pool).await;
    fill_busy(&farm, 1..=6_000).await;
    let jetstream = &farm.bus.jetstream;
    let read = |to| Replay::new(jetstream, Source::Topics, "topic.busy".into(), 0, to);
    let (gaps, told) = rest(&mut read(6_000), 0).await;
    assert_eq!((gaps, told), (false, false));
    let mut replay = read(6_000);
    assert!(matches!(replay.next().await, Some(Read::Message(Stored { sequence: 1, .. }))));
    fill_busy(&farm, 6_001..=14_000).await;
    assert_eq!(rest(&mut replay, 1).await, (true, true));
}

/// Whether a sequence after `last` was left out, and whether that was said.
async fn rest(replay: &mut Replay, mut last: u64) -> (bool, bool) {
    let (mut gaps, mut told) = (false, false);
    while let Some(read) = replay.next().await {
        match read {
            Read::Message(stored) => {
                gaps |= stored.sequence != last + 1;
                last = stored.sequence;
            }
            Read::Expired { .. } => told = true,
        }
    }
    (gaps, told)
}

#[sqlx::test(migrations = "../migrations")]
async fn json_stays_as_it_was_written(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    let mut viewer = send(request(&node, &["topic.a"])).await;
    let body = "{ \"z\": 1.0e400,\r\n  \"a\": 123456789012345678901234567890, \"z\": \"\\u00fc \\n ü\" }\n";
    published(publish(&node, "topic.a", "1", body)).await;
    let expected = r#","data":{"z":1.0e400,"a":123456789012345678901234567890,"z":"\u00fc \n ü"}}"#;
    let mut text = String::new();
    let comes = async {
        while !text.contains("}\n\n") {
            text.push_str(std::str::from_utf8(&viewer.chunk().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, comes).await.unwrap();
    assert!(text.contains(&format!("{expected}\n\n")), "{text}");
    // As large as it may be.
    let largest = format!("\"{}\"", "x".repeat(256 * 1024 - 2));
    published(publish(&node, "topic.b", "1", largest.clone())).await;
    let mut viewer = Viewer::resume(&node, &["topic.b"], "0.0").await;
    assert_eq!(viewer.expect("message").await["data"], largest.trim_matches('"'));
}

#[sqlx::test(migrations = "../migrations")]
async fn an_id_is_published_once_on_each_topic_whatever_node_takes_it(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (one, other) = (publisher::node(&farm).await, publisher::node(&farm).await);
    let mut viewer = Viewer::open(&one, &["topic.a", "topic.b"]).await;
    assert_eq!(published(publish(&one, "topic.a", "build 17", "1")).await["duplicate"], false);
    let again = published(publish(&other, "topic.a", "build 17", "1")).await;
    assert_eq!(again, json!({"topic": "topic.a", "sequence": 1, "id": "build 17", "duplicate": true}));
    assert_eq!(published(publish(&other, "topic.b", "build 17", "2")).await["duplicate"], false);
    let token = publisher::token(&["topic.a"], &[]);
    let mut ids = Vec::new();
    for number in ["3", "4"] {
        let answer = published(publisher::post(&one, "topic.a", number).bearer_auth(&token)).await;
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!(viewer.messages(4).await, [1, 2, 3, 4]);
}

#[sqlx::test(migrations = "../migrations")]
async fn while_the_bus_is_away_a_publisher_is_told_and_its_repeat_counts_once(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (proxy, node) = behind_proxy(&farm).await;
    let other = publisher::node(&farm).await;
    let mut viewer = Viewer::open(&other, &["topic.a"]).await;
    proxy.cut();
    publisher::refused(publish(&node, "topic.a", "1", "1"), 503, "same message-id").await;
    proxy.heal();
    publisher::taken(|| publish(&node, "topic.a", "1", "1")).await;
    published(publish(&other, "topic.a", "2", "2")).await;
    assert_eq!(viewer.messages(2).await, [1, 2]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_node_that_is_killed_before_it_can_answer_published_once(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (proxy, node) = behind_proxy(&farm).await;
    let other = publisher::node(&farm).await;
    let mut viewer = Viewer::open(&other, &["topic.a"]).await;
    // The bus takes what this node says, and its acknowledgement does not arrive.
    proxy.mute();
    let unanswered = tokio::spawn(publish(&node, "topic.a", "1", "1").send());
    assert_eq!(viewer.messages(1).await, [1]);
    node.process.kill().await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, unanswered).await.unwrap().unwrap().is_err());
    assert_eq!(published(publish(&other, "topic.a", "1", "1")).await["duplicate"], true);
    published(publish(&other, "topic.a", "2", "2")).await;
    assert_eq!(viewer.messages(1).await, [2]);
}

async fn behind_proxy(farm: &Farm) -> (Proxy, crate::farm::Node) {
    let url = farm.nats.url("live").unwrap();
    let (user, address) = url.rsplit_once('@').unwrap();
    let proxy = Proxy::to(address.to_owned()).await;
    let url = format!("{user}@127.0.0.1:{}", proxy.port);
    let node = farm.node_with(&[("LIVE_TOKEN_SECRET", publisher::SECRET), ("NATS_URL", &url)]).await;
    (proxy, node)
}
