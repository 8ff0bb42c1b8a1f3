//! The latest of each name, then what comes: each once, wherever and whenever somebody comes.

use super::{User, Watcher, named, node};
use crate::farm::{Farm, PATIENCE};
use cratemill_protocol::{EventId, JsonText, bus, bus::TimelineEvent, subjects};
use cratemill_service::bus::Numbered;
use futures_util::future::join_all;
use sqlx::PgPool;
use std::collections::{HashMap, HashSet};
use tokio::time::timeout;

/// As if they had been published long ago, each under a name of its own: more than one page, with some bytes each.
async fn published(farm: &Farm, count: i32) {
    let sql = "WITH e AS (
             INSERT INTO events (id, user_id, collection_id, event, timestamp, data)
             SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'name-' || n, 0,
                    '\"' || repeat('x', 300) || '\"'
             FROM generate_series(1, $1) n RETURNING id, event
         )
         INSERT INTO latest_events
         SELECT sha256(convert_to(event, 'UTF8')), substr(event, 6)::bigint - $1, id FROM e";
    sqlx::query(sql).bind(count).execute(&farm.pool).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn many_names_come_whole_and_in_order_while_others_are_published(pool: PgPool) {
    const NAMES: usize = 3_000;
    let farm = Farm::start(pool).await;
    let nodes = [node(&farm).await, node(&farm).await];
    published(&farm, i32::try_from(NAMES).unwrap()).await;
    let user = User::sign_up(&nodes[0], "ann").await;
    user.insert(&nodes[0], "name-7", 0, "new").await;
    let watch = async |number: usize| {
        let mut watcher = Watcher::open(&nodes[number % 2]).await;
        let mut seen = Vec::new();
        loop {
            let event = watcher.next().await;
            let is_last = event.event == "last";
            seen.push(event);
            if is_last {
                return seen;
            }
        }
    };
    let insert = async {
        for n in 0..40 {
            user.insert(&nodes[0], &format!("name-{}", n % 9), 0, n).await;
        }
        user.insert(&nodes[1], "last", 0, 0).await;
    };
    let (all, ()) = tokio::join!(join_all((0..8).map(watch)), insert);
    for seen in all {
        let ids: Vec<i64> = seen.iter().map(|event| event.id.unwrap()).collect();
        assert!(
            ids.is_sorted() && ids.iter().collect::<HashSet<_>>().len() == ids.len(),
            "each once, in order"
        );
        let names: HashSet<_> = seen.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(names.len(), NAMES + 2, "those of before, name-0, and the last");
        // What was published last of a name is what comes last of it.
        let last: HashMap<_, _> =
            seen.iter().map(|event| (event.event.as_str(), event.data.as_str())).collect();
        for n in 0..9 {
            assert_eq!(last[format!("name-{n}").as_str()], (27 + n + 9 * i64::from(n < 4)).to_string());
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn whoever_comes_back_gets_what_it_missed_and_no_sync(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (one, other) = (node(&farm).await, node(&farm).await);
    let user = User::sign_up(&one, "ann").await;
    let mut watcher = Watcher::open(&one).await;
    for n in 0..3 {
        user.insert(&one, "a", 0, n).await;
    }
    let first = watcher.next().await;
    drop(watcher);
    // What came before it is in the ring of one node; this one has to read it.
    for node in [&one, &other, &super::node(&farm).await] {
        let mut watcher = Watcher::resume(node, first.id.unwrap()).await;
        assert_eq!(watcher.names(2).await, named(&[("a", "1"), ("a", "2")]));
    }
    // Made up: it gets the sync, and is not deaf.
    let mut ahead = Watcher::resume(&other, 1_000_000).await;
    assert_eq!(ahead.names(1).await, named(&[("a", "2")]));
    user.insert(&one, "b", 0, 3).await;
    assert_eq!(ahead.names(1).await, named(&[("b", "3")]));
}

/// Straight to the stream: only the stream is read for who comes back.
async fn flood(farm: &Farm, last: u64, count: u64) {
    let message = |n: u64| {
        let id = EventId(uuid(n));
        let data = JsonText::parse(n.to_string().as_bytes()).unwrap();
        let event = TimelineEvent { id, name: "flood".into(), data };
        Numbered { id: id.to_string(), payload: bus::encode(&event).into() }
    };
    for begin in (last..last + count).step_by(1_000) {
        let messages = (begin + 1..=(begin + 1_000).min(last + count)).map(message).collect();
        farm.bus
            .send_behind(subjects::TIMELINE_EVENT, begin, messages)
            .await
            .unwrap()
            .stored()
            .await
            .unwrap();
    }
}

fn uuid(n: u64) -> uuid::Uuid {
    uuid::Uuid::from_u128(n.into())
}

#[sqlx::test(migrations = "../migrations")]
async fn what_no_ring_holds_is_read_from_the_bus_and_what_that_lost_is_latest(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let one = node(&farm).await;
    let user = User::sign_up(&one, "ann").await;
    user.insert(&one, "first", 0, 0).await;
    user.insert(&one, "second", 0, 1).await;
    let mut watcher = Watcher::open(&one).await;
    watcher.names(2).await;
    // More than is read back into a ring.
    flood(&farm, 2, 17_000).await;
    let resumed = async {
        let mut watcher = Watcher::resume(&one, 1).await;
        assert_eq!(watcher.names(1).await, named(&[("second", "1")]));
        for id in 3..=17_002 {
            assert_eq!(watcher.next().await.id, Some(id));
        }
    };
    timeout(PATIENCE, resumed).await.unwrap();
    let stream = farm.bus.jetstream.get_stream(subjects::TIMELINE_STREAM).await.unwrap();
    stream.purge().sequence(17_000).await.unwrap();
    // Of what came after the first the bus has not everything any more.
    let new = node(&farm).await;
    let mut watcher = Watcher::resume(&new, 1).await;
    assert_eq!(watcher.names(1).await, named(&[("second", "1")]), "the latest since then, and no sync");
}
