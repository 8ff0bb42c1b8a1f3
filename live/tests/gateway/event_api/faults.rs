//! What happens while something is away, or dies.

use super::{User, Watcher, answer, get, named, node, node_with};
use crate::{
    farm::{Farm, PATIENCE},
    proxy::Proxy,
};
use cratemill_stack::process::Signal;
use serde_json::json;
use sqlx::{ConnectOptions as _, PgPool};
use tokio::time::timeout;

/// Inserting needs no bus: what is due goes out when it is back.
#[sqlx::test(migrations = "../migrations")]
async fn without_the_bus_events_are_taken_and_published_later(pool: PgPool) {
    let mut farm = Farm::start(pool).await;
    let node = node(&farm).await;
    let user = User::sign_up(&node, "ann").await;
    let mut watcher = Watcher::open(&node).await;
    user.insert(&node, "a", 0, 0).await;
    assert_eq!(watcher.names(1).await, named(&[("a", "0")]));
    farm.nats.kill9().await.unwrap();
    for n in 1..4 {
        user.insert(&node, "a", 0, n).await;
    }
    farm.nats.restart().await.unwrap();
    assert_eq!(watcher.names(3).await, named(&[("a", "1"), ("a", "2"), ("a", "3")]));
}

/// The one that schedules is among those that die.
#[sqlx::test(migrations = "../migrations")]
async fn a_node_that_dies_takes_no_event_with_it(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let other = node(&farm).await;
    let user = User::sign_up(&other, "ann").await;
    let mut watcher = Watcher::open(&other).await;
    for round in 0..3 {
        let node = node(&farm).await;
        user.insert(&node, "soon", 1, round).await;
        user.insert(&node, "now", 0, round).await;
        node.process.signal(Signal::SIGKILL);
        let data = round.to_string();
        // Which is first depends on how much of the second was left.
        let mut names = watcher.names(2).await;
        names.sort();
        assert_eq!(names, named(&[("now", &data), ("soon", &data)]));
    }
}

/// Who watches goes on; who comes new, or inserts, is told.
#[sqlx::test(migrations = "../migrations")]
async fn without_the_database_who_watches_goes_on(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let options = farm.pool.connect_options();
    let proxy = Proxy::to(format!("{}:{}", options.get_host(), options.get_port())).await;
    let url = (*options).clone().host("127.0.0.1").port(proxy.port).to_url_lossy().to_string();
    let node = node_with(&farm, &[("DATABASE_URL", &url), ("SCHEDULE", "false")]).await;
    // It publishes, with a database of its own way.
    let other = self::node(&farm).await;
    let user = User::sign_up(&node, "ann").await;
    user.insert(&node, "a", 0, 0).await;
    let mut watcher = Watcher::open(&node).await;
    let id = watcher.next().await.id.unwrap();
    proxy.cut();
    let (status, body) =
        timeout(PATIENCE * 2, answer(user.insertion(&node, "a", 0, &json!(1)))).await.unwrap();
    assert_eq!(status, 503, "{body}");
    let (status, _) = timeout(PATIENCE * 2, answer(get(&node, "/events"))).await.unwrap();
    assert_eq!(status, 503);
    user.insert(&other, "a", 0, 2).await;
    assert_eq!(watcher.names(1).await, named(&[("a", "2")]));
    let mut resumed = Watcher::resume(&node, id).await;
    assert_eq!(resumed.names(1).await, named(&[("a", "2")]));
    proxy.heal();
    let back = async { while answer(user.insertion(&node, "a", 0, &json!(3))).await.0 != 200 {} };
    timeout(PATIENCE * 2, back).await.unwrap();
    assert_eq!(resumed.next().await.data, "3");
}
