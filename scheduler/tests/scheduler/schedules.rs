//! Whatever is inserted and cancelled, and whoever dies meanwhile: what is due is published, once and in order.

use crate::world::World;
use cratemill_protocol::{CollectionId, EventId};
use cratemill_service::clock;
use cratemill_store::{
    PgPool,
    events::{
        cancel::{Cancelled, cancel},
        insert::{Inserted, insert},
    },
};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use std::{collections::HashMap, time::Duration};
use uuid::Uuid;

#[derive(Debug, Clone)]
enum Step {
    /// So many at once, due in so many seconds.
    Insert(usize, i64),
    /// One of those before.
    Cancel(prop::sample::Index),
    /// Whoever leads dies, and another process comes.
    Kill,
    /// One more process that would lead.
    Join,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_usize..40, -2_i64..4).prop_map(|(count, in_s)| Step::Insert(count, in_s)),
        4 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => Just(Step::Kill),
        1 => Just(Step::Join),
        2 => (0_u64..300).prop_map(Step::Pass),
    ]
}

/// What the test knows of an event.
struct Known {
    id: EventId,
    timestamp: i64,
}

async fn play(pool: PgPool, steps: Vec<Step>) {
    let world = World::start(pool).await;
    let mut schedulers = vec![world.scheduler()];
    // In the order of insertion.
    let (mut inserted, mut cancelled): (Vec<Known>, Vec<EventId>) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Insert(count, in_s) => {
                let events: Vec<_> = (0..count)
                    .map(|n| world.new_event(&format!("name-{}", n % 7), clock::now_s() + in_s))
                    .collect();
                world.insert_all(&events).await;
                inserted
                    .extend(events.iter().map(|event| Known { id: event.id, timestamp: event.timestamp }));
            }
            Step::Cancel(which) if !inserted.is_empty() => {
                let id = which.get(&inserted).id;
                let answer = cancel(&mut world.pool.acquire().await.unwrap(), id, world.user).await.unwrap();
                match answer {
                    Cancelled::Now(event) => {
                        assert!(event.cancelled && !event.published);
                        cancelled.push(id);
                    }
                    Cancelled::Already => assert!(cancelled.contains(&id)),
                    Cancelled::Published => assert!(!cancelled.contains(&id)),
                    other => panic!("{other:?}"),
                }
            }
            Step::Kill => {
                schedulers.remove(0).abort();
                schedulers.push(world.scheduler());
            }
            Step::Join => schedulers.push(world.scheduler()),
            // Time is what this test is about: events are due at seconds of the wall clock.
            Step::Pass(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Step::Cancel(_) => {}
        }
    }
    world.is_done().await;
    let published = world.published(inserted.len() - cancelled.len()).await;
    assert_eq!(world.stored().await, published.len() as u64, "something was published twice");
    let places: HashMap<EventId, usize> =
        published.iter().enumerate().map(|(place, (event, _))| (event.id, place)).collect();
    assert_eq!(places.len(), published.len());
    let due: Vec<_> = inserted.iter().filter(|event| !cancelled.contains(&event.id)).collect();
    for (event, at_ms) in &published {
        let known = due.iter().find(|known| known.id == event.id).expect("it was cancelled");
        assert!(*at_ms >= known.timestamp * 1_000, "{event:?} came too early");
    }
    for (i, first) in due.iter().enumerate() {
        for second in &due[i + 1..] {
            if first.timestamp <= second.timestamp {
                assert!(places[&first.id] < places[&second.id], "out of order");
            }
        }
    }
    schedulers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Each of these is a random run of its own.
macro_rules! runs {
    ($($name:ident: $seed:literal),+) => {$(
        #[sqlx::test(migrations = "../migrations")]
        async fn $name(pool: PgPool) {
            let seed = [$seed; 32];
            let rng = prop::test_runner::TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
            let mut runner = TestRunner::new_with_rng(Config::default(), rng);
            let steps = prop::collection::vec(step(), 40..80).new_tree(&mut runner).unwrap().current();
            play(pool, steps).await;
        }
    )+};
}

runs! { run_1: 1, run_2: 2, run_3: 3, run_4: 4 }

#[sqlx::test(migrations = "../migrations")]
async fn only_who_inserted_an_event_cancels_it_and_only_before_it_is_published(pool: PgPool) {
    let world = World::start(pool).await;
    let waits = world.insert("waits", 1_000).await;
    let scheduler = world.scheduler();
    let due = world.insert("due", 0).await;
    world.published(1).await;
    let mut conn = world.pool.acquire().await.unwrap();
    let other = cratemill_protocol::UserId(Uuid::new_v4());
    for (event, user, expected) in [
        (waits, other, "NotTheirs"),
        (EventId(Uuid::new_v4()), world.user, "Unknown"),
        (due, world.user, "Published"),
        (due, other, "NotTheirs"),
        (waits, world.user, "Now"),
        (waits, world.user, "Already"),
    ] {
        let answer = format!("{:?}", cancel(&mut conn, event, user).await.unwrap());
        assert!(answer.starts_with(expected), "{answer}");
    }
    scheduler.abort();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_batch_keeps_what_is_no_good_out_and_repeats_nothing(pool: PgPool) {
    let world = World::start(pool).await;
    let mut conn = world.pool.acquire().await.unwrap();
    let mut events: Vec<_> = (0..4).map(|_| world.new_event("x", 0)).collect();
    events[1].user_id = cratemill_protocol::UserId(Uuid::new_v4());
    events[1].collection_id = CollectionId(Uuid::new_v4());
    let expected = [Inserted::Done, Inserted::NoUser, Inserted::Done, Inserted::TooMany];
    assert_eq!(insert(&mut conn, &events, 2).await.unwrap(), expected);
    assert_eq!(insert(&mut conn, &events, 2).await.unwrap(), expected, "the answer got lost");
    assert_eq!(insert(&mut conn, &events[3..], 3).await.unwrap(), [Inserted::Done]);
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&mut *conn).await.unwrap();
    let counted: i64 = sqlx::query_scalar("SELECT events FROM users").fetch_one(&mut *conn).await.unwrap();
    assert_eq!((count, counted), (3, 3));
}
