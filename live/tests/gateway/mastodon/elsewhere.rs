//! A Redis that sentinels know of, one with a namespace, and nodes that speak other dialects too.

use super::{
    Publisher, Scene, fill,
    people::{Events, Socket},
    url,
};
use crate::{
    farm::{Farm, PATIENCE},
    viewer::Viewer,
};
use cratemill_stack::redis::Redis;
use sqlx::{ConnectOptions as _, PgPool};
use tokio::time::timeout;

/// The server dies, and the sentinel makes another one of its replica.
#[sqlx::test(migrations = false)]
async fn sentinels_say_where_redis_is(pool: PgPool) {
    let mut scene = Scene::start(&pool).await;
    let replica = Redis::replica(&scene.data_dir, &scene.redis).await.unwrap();
    let sentinel = Redis::sentinel(&scene.data_dir, "mymaster", &scene.redis).await.unwrap();
    let mut asked =
        redis::Client::open(sentinel.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    // It has to know of the replica before.
    let known = async {
        while redis::cmd("SENTINEL")
            .arg(&["replicas", "mymaster"])
            .query_async::<Vec<redis::Value>>(&mut asked)
            .await
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, known).await.expect("the sentinel finds the replica");
    let sentinels = sentinel.address().to_string();
    let node = scene.node_with(&[("REDIS_URL", ""), ("REDIS_SENTINELS", &sentinels)]).await;
    let mut socket = Socket::open(&node, 1).await;
    socket.subscribe("user").await;
    let mut publisher = scene.publisher().await;
    publisher.is_subscribed("timeline:1", 1).await;
    publisher.status("timeline:1", 9, 1).await;
    assert_eq!(socket.number().await, 1);

    scene.redis.kill9().await.unwrap();
    // Its connections end when it is made another.
    let is_master = async {
        loop {
            let client = redis::Client::open(replica.url()).unwrap();
            if let Ok(mut asked) = client.get_multiplexed_async_connection().await
                && let Ok(role) = redis::cmd("ROLE").query_async::<Vec<redis::Value>>(&mut asked).await
                && format!("{role:?}").contains("master")
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, is_master).await.expect("the replica takes its place");
    let mut publisher = Publisher::connect(&replica).await;
    publisher.is_subscribed("timeline:1", 1).await;
    publisher.is_announced("subscribed:timeline:1").await;
    publisher.status("timeline:1", 9, 2).await;
    assert_eq!(socket.number().await, 2);
}

#[sqlx::test(migrations = false)]
async fn a_namespace_stands_before_all_names(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    // One by one, as most name them.
    let options = pool.connect_options();
    let password = options.to_url_lossy().password().unwrap_or_default().to_owned();
    let node = scene
        .node_with(&[
            ("REDIS_NAMESPACE", "ns"),
            ("DATABASE_URL", ""),
            ("DB_HOST", options.get_host()),
            ("DB_PORT", &options.get_port().to_string()),
            ("DB_USER", options.get_username()),
            ("DB_PASS", &password),
            ("DB_NAME", options.get_database().unwrap()),
            ("REDIS_URL", ""),
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", &scene.redis.address().port().to_string()),
            ("REDIS_DB", ""),
        ])
        .await;
    let mut events = Events::open(&node, "user", 1, "").await;
    let mut publisher = scene.publisher().await;
    publisher.is_announced("ns:subscribed:timeline:1").await;
    publisher.status("timeline:1", 9, 1).await;
    publisher.status("ns:timeline:1", 9, 2).await;
    assert_eq!(events.number().await, 2);
}

/// Who is only what the node needs to be, and everybody else has to know a password that it was not told.
#[sqlx::test(migrations = false)]
async fn redis_lets_in_who_has_its_name_and_password(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let mut publisher = scene.publisher().await;
    let commands = "+subscribe +unsubscribe +set +ping +select +client";
    let rights = format!("ACL SETUSER streaming on >secret ~subscribed:* &timeline:* {commands}");
    for command in [&*rights, "CONFIG SET requirepass other"] {
        publisher.command(command).await;
    }
    let port = scene.redis.address().port().to_string();
    let parts = [("REDIS_URL", ""), ("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &*port), ("REDIS_DB", "0")];
    let of_user = [&parts[..], &[("REDIS_USER", "streaming"), ("REDIS_PASSWORD", "secret")]].concat();
    // Nobody but the password: that is the default user's.
    let of_all = [&parts[..], &[("REDIS_PASSWORD", "other")]].concat();
    for (account, env) in [(1, of_user), (2, of_all)] {
        let node = scene.node_with(&env).await;
        let mut events = Events::open(&node, "user", account, "").await;
        publisher.is_announced(&format!("subscribed:timeline:{account}")).await;
        publisher.status(&format!("timeline:{account}"), 9, 1).await;
        assert_eq!(events.number().await, 1);
    }
}

/// Each with its own database: ours is not Mastodon's.
#[sqlx::test(migrations = "../migrations")]
async fn it_is_spoken_beside_other_dialects(pool: PgPool) {
    let farm = Farm::start(pool.clone()).await;
    // Names are short, and the beginnings of these are the same.
    let ours = pool.connect_options().get_database().unwrap().to_owned();
    let name = format!("mastodon_{}", &ours[ours.len() / 2..]);
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&pool).await.unwrap();
    let options = pool.connect_options().as_ref().clone().database(&name);
    let theirs = PgPool::connect_with(options.clone()).await.unwrap();
    fill(&theirs).await;
    theirs.close().await;
    let scene = Scene::at(url(&options)).await;
    let node = farm
        .node_with(&[
            ("DIALECTS", "native,mastodon"),
            ("MASTODON_DATABASE_URL", &scene.database),
            ("REDIS_URL", &scene.redis.url()),
        ])
        .await;
    let mut viewer = Viewer::open(&node, &["queue"]).await;
    let mut events = Events::open(&node, "public", 1, "").await;
    farm.queue_event(7).await;
    scene.publisher().await.status("timeline:public", 9, 8).await;
    assert_eq!((viewer.queue_numbers(1).await, events.number().await), (vec![7], 8));
    let elsewhere = reqwest::get(format!("{}/nothing", node.url)).await.unwrap();
    assert_eq!((elsewhere.status().as_u16(), elsewhere.headers().contains_key("x-request-id")), (404, true));
    let unknown = reqwest::get(format!("{}/api/v1/streaming/nothing", node.url)).await.unwrap();
    assert_eq!(unknown.status(), 400);
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP DATABASE \"{name}\" WITH (FORCE)")))
        .execute(&pool)
        .await
        .unwrap();
}
