//! What cannot be judged waits until it can.

use super::{Publisher, Scene, fill, people::Socket};
use cratemill_stack::{data_dir::DataDir, postgres::Postgres, secrets::Secrets};
use serde_json::json;
use sqlx::PgPool;

/// More than one connection may have waiting that cannot be judged.
const TOO_MANY: u64 = 513;

/// Account 2's: Mastodon tells the node and those who look at the account's own stream.
async fn change_filters(publisher: &mut Publisher, viewer: &mut Socket) {
    for channel in ["timeline:system:2", "timeline:2"] {
        publisher.publish(channel, "filters_changed", json!("")).await;
    }
    assert_eq!(viewer.next().await.unwrap()["event"], "filters_changed");
}

/// Filters have changed, and nobody can read how: what comes from then on is shown to nobody by the old ones.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_changed_filters_are_read_waits_for_them() {
    let folder = DataDir::temporary().unwrap();
    let mut postgres =
        Postgres::start(&folder, &mut Secrets::open(folder.path()).unwrap(), false).await.unwrap();
    let pool = PgPool::connect(&postgres.url()).await.unwrap();
    fill(&pool).await;
    let scene = Scene::at(postgres.url()).await;
    let node = scene.node().await;
    let mut viewer = Socket::open(&node, 2).await;
    let mut bystander = Socket::open(&node, 3).await;
    for stream in ["public", "user"] {
        viewer.subscribe(stream).await;
        bystander.subscribe(stream).await;
    }
    let mut publisher = scene.publisher().await;
    for channel in ["timeline:public", "timeline:2", "timeline:system:2", "timeline:3"] {
        publisher.is_subscribed(channel, 1).await;
    }
    publisher.status("timeline:public", 9, 1).await;
    assert_eq!((viewer.number().await, bystander.number().await), (1, 1));

    sqlx::query("INSERT INTO blocks (account_id, target_account_id) VALUES (2, 9)")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    postgres.stop().await.unwrap();
    change_filters(&mut publisher, &mut viewer).await;
    for (author, number) in [(9, 2), (8, 3)] {
        publisher.status("timeline:public", author, number).await;
        assert_eq!(bystander.number().await, number, "nobody else waits");
    }
    // Its own stream needs no rules: this comes, and nothing before it.
    publisher.status("timeline:2", 9, 4).await;
    assert_eq!(viewer.number().await, 4);
    postgres.restart().await.unwrap();
    publisher.status("timeline:public", 8, 5).await;
    assert_eq!(
        (viewer.number().await, viewer.number().await),
        (3, 5),
        "in their order, and without the blocked"
    );
    assert_eq!(bystander.number().await, 5);

    postgres.stop().await.unwrap();
    change_filters(&mut publisher, &mut viewer).await;
    for number in 10..10 + TOO_MANY {
        publisher.status("timeline:public", 8, number).await;
    }
    for number in 10..10 + TOO_MANY {
        assert_eq!(bystander.number().await, number);
    }
    assert_eq!(viewer.farewell().await, (1012, "broken".to_owned()), "it has a bound");
}
