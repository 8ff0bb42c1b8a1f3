//! What a leader leaves behind when it dies between two steps, and what the bus does to it.

use crate::world::{PATIENCE, World};
use cratemill_protocol::{JsonText, bus, bus::TimelineEvent, subjects};
use cratemill_service::{bus::Numbered, clock, streams};
use cratemill_store::{PgPool, events::schedule};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[sqlx::test(migrations = "../migrations")]
async fn what_was_claimed_is_published_once_whatever_of_it_the_bus_has(pool: PgPool) {
    let world = World::start(pool).await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(world.insert(&format!("name-{n}"), 0).await);
    }
    let mut conn = world.pool.acquire().await.unwrap();
    let term = schedule::begin(&mut conn).await.unwrap().term;
    let claimed = schedule::claim(&mut conn, term, clock::now_s(), 3).await.unwrap();
    assert_eq!(claimed.iter().map(|firing| firing.id).collect::<Vec<_>>(), ids[..3]);
    // The bus has two of them, of which nothing is noted.
    let messages = claimed[..2].iter().map(|firing| {
        let data = JsonText::parse(firing.data.as_bytes()).unwrap();
        let event = TimelineEvent { id: firing.id, name: firing.event.clone(), data };
        Numbered { id: firing.id.to_string(), payload: bus::encode(&event).into() }
    });
    world
        .admin
        .send_behind(subjects::TIMELINE_EVENT, 0, messages.collect())
        .await
        .unwrap()
        .stored()
        .await
        .unwrap();
    let scheduler = world.scheduler();
    world.is_done().await;
    assert_eq!(world.published_ids(4).await, ids);
    assert_eq!(world.stored().await, 4);
    let expected: Vec<_> = (0..4).map(|n| (format!("name-{n}"), n + 1)).collect();
    assert_eq!(world.latest().await, expected);
    // Whoever led before cannot go on.
    assert!(!schedule::confirm(&mut conn, term, &[], 99).await.unwrap());
    world.insert("late", 0).await;
    assert!(schedule::claim(&mut conn, term, clock::now_s(), 9).await.unwrap().is_empty());
    world.is_done().await;
    scheduler.abort();
}

#[sqlx::test(migrations = "../migrations")]
async fn of_a_name_the_last_that_was_published_counts_not_the_highest_timestamp(pool: PgPool) {
    let world = World::start(pool).await;
    let scheduler = world.scheduler();
    for (name, in_s) in [("a", -5), ("b", -1), ("a", -9), ("c", -2)] {
        world.insert(name, in_s).await;
        world.is_done().await;
    }
    assert_eq!(world.latest().await, [("b".into(), 2), ("a".into(), 3), ("c".into(), 4)]);
    scheduler.abort();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bus_that_is_away_delays_and_loses_nothing(pool: PgPool) {
    let mut world = World::start(pool).await;
    let scheduler = world.scheduler();
    let mut ids = vec![world.insert("before", 0).await];
    world.published(1).await;
    world.nats.kill9().await.unwrap();
    for n in 0..5 {
        ids.push(world.insert(&format!("name-{n}"), 0).await);
    }
    world.nats.restart().await.unwrap();
    assert_eq!(world.published_ids(6).await, ids);
    world.is_done().await;
    scheduler.abort();
}

#[sqlx::test(migrations = "../migrations")]
async fn where_the_stream_is_lost_what_was_published_comes_before_what_is(pool: PgPool) {
    let world = World::start(pool).await;
    let scheduler = world.scheduler();
    for name in ["a", "b", "c"] {
        world.insert(name, 0).await;
    }
    world.published(3).await;
    world.is_done().await;
    world.admin.jetstream.delete_stream(subjects::TIMELINE_STREAM).await.unwrap();
    streams::ensure(&world.admin, 1, &CancellationToken::new()).await.unwrap();
    world.insert("b", 0).await;
    world.published(1).await;
    world.is_done().await;
    assert_eq!(world.latest().await, [("a".into(), -2), ("c".into(), 0), ("b".into(), 1)]);
    scheduler.abort();
}

/// Several batches are on their way at each moment: whoever leads dies in the middle of them, and so does the bus.
#[sqlx::test(migrations = "../migrations")]
async fn a_crowd_of_what_is_due_goes_once_and_in_order_whoever_dies_meanwhile(pool: PgPool) {
    const CROWD: u32 = 4_000;
    let mut world = World::start(pool).await;
    let now_s = clock::now_s();
    let events: Vec<_> = (0..CROWD).map(|n| world.new_event(&format!("name-{n}"), now_s)).collect();
    world.insert_all(&events).await;
    // Whoever reads what is noted has all of the stream up to there: at each moment.
    let pool = world.pool.clone();
    let watch = tokio::spawn(async move {
        let noted = "SELECT (SELECT last_sequence FROM timeline), (SELECT count(*) FROM latest_events)";
        loop {
            let (last, latest): (i64, i64) = sqlx::query_as(noted).fetch_one(&pool).await.unwrap();
            assert_eq!(last, latest);
            if last == i64::from(CROWD) {
                return;
            }
        }
    });
    let mut stored = 0;
    for more in [1, 300, 700, 1_100] {
        let scheduler = world.scheduler();
        let before = stored;
        let reached = async {
            while stored < (before + more).min(CROWD.into()) {
                stored = world.stored().await;
            }
        };
        timeout(PATIENCE, reached).await.expect("nothing is published");
        scheduler.abort();
        let _ = scheduler.await;
        if more == 700 {
            world.nats.kill9().await.unwrap();
            world.nats.restart().await.unwrap();
        }
    }
    let scheduler = world.scheduler();
    world.is_done().await;
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert!(world.published_ids(CROWD as usize).await == ids, "not once, or not in order");
    assert_eq!(world.stored().await, u64::from(CROWD));
    timeout(PATIENCE, watch).await.expect("not all is noted").unwrap();
    scheduler.abort();
}

/// An earlier event, and a later one, and what is due when nobody leads.
#[sqlx::test(migrations = "../migrations")]
async fn a_leader_that_sleeps_is_woken_by_what_is_due_earlier(pool: PgPool) {
    let world = World::start(pool).await;
    let (first, second) = (world.scheduler(), world.scheduler());
    world.insert("much later", 1_000_000).await;
    let soon = world.insert("soon", 1).await;
    let now = world.insert("now", 0).await;
    // Which is first depends on how much of the second was left.
    let published = world.published_ids(2).await;
    assert!(published.contains(&now) && published.contains(&soon));
    first.abort();
    second.abort();
    let _ = (first.await, second.await);
    let last = world.insert("nobody leads", 0).await;
    let third = world.scheduler();
    assert_eq!(timeout(PATIENCE, world.published_ids(3)).await.unwrap()[2], last);
    third.abort();
}
