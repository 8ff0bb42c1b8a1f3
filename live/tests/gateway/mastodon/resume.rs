//! Streams of events that come back get what they missed, also at another node when theirs has died.

use super::{Scene, people::Events};
use cratemill_stack::process::Signal;
use sqlx::PgPool;

#[sqlx::test(migrations = false)]
async fn who_comes_back_misses_nothing(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let node = scene.node().await;
    let mut publisher = scene.publisher().await;
    let mut events = Events::open(&node, "user", 1, "").await;
    publisher.status("timeline:1", 9, 1).await;
    assert_eq!(events.number().await, 1);
    let last_id = events.last_id.clone();
    drop(events);
    for number in 2..=20 {
        assert_eq!(publisher.status("timeline:1", 9, number).await, 1, "it is still listened to");
    }
    let mut events = Events::open(&node, "user", 1, &last_id).await;
    publisher.status("timeline:1", 9, 21).await;
    for number in 2..=21 {
        assert_eq!(events.number().await, number);
    }
}

#[sqlx::test(migrations = false)]
async fn whose_node_has_died_goes_on_at_another(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let (dying, other) = (scene.node().await, scene.node().await);
    let mut publisher = scene.publisher().await;
    let mut events = Events::open(&dying, "public", 1, "").await;
    // Somebody listens there too: what nobody on a node listened to it cannot know.
    let mut witness = Events::open(&other, "public", 1, "").await;
    publisher.is_subscribed("timeline:public", 2).await;
    publisher.status("timeline:public", 9, 1).await;
    assert_eq!((events.number().await, witness.number().await), (1, 1));
    dying.process.signal(Signal::SIGKILL);
    for number in 2..=10 {
        publisher.status("timeline:public", 9, number).await;
    }
    let mut events = Events::open(&other, "public", 1, &events.last_id).await;
    publisher.status("timeline:public", 9, 11).await;
    for number in 2..=11 {
        assert_eq!((events.number().await, witness.number().await), (number, number));
    }
}

#[sqlx::test(migrations = false)]
async fn without_replay_nothing_is_listened_to_for_those_who_have_gone(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let node = scene.node_with(&[("MASTODON_REPLAY_S", "0")]).await;
    let mut publisher = scene.publisher().await;
    let events = Events::open(&node, "public", 1, "").await;
    publisher.is_subscribed("timeline:public", 1).await;
    drop(events);
    publisher.is_subscribed("timeline:public", 0).await;
}
