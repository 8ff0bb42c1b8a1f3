//! Redis and the database go away for half a minute while clients connect, and come back.

use super::{
    Scene, fill,
    people::{Events, Socket},
};
use crate::farm::{Node, PATIENCE};
use cratemill_stack::{data_dir::DataDir, postgres::Postgres, secrets::Secrets};
use sqlx::PgPool;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::timeout};

const AWAY: Duration = Duration::from_secs(30);

/// Somebody connects again and again until told to stop. Returns how often they were let in, and turned away.
fn crowd(node: &Node, account: i64) -> (Arc<AtomicBool>, JoinHandle<(usize, usize)>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, url) = (Arc::clone(&stop), node.url.clone());
    let crowd = tokio::spawn(async move {
        let (mut let_in, mut refused) = (0, 0);
        while !stopped.load(Ordering::Relaxed) {
            let request = reqwest::Client::new()
                .get(format!("{url}/api/v1/streaming/public"))
                .bearer_auth(format!("token-{account}"));
            match timeout(PATIENCE, request.send()).await.expect("an answer").unwrap() {
                answer if answer.status() == 200 => let_in += 1,
                answer => {
                    assert_eq!(
                        (answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()),
                        (503, &b"1"[..])
                    );
                    refused += 1;
                }
            }
        }
        (let_in, refused)
    });
    (stop, crowd)
}

#[sqlx::test(migrations = false)]
async fn redis_is_away_for_half_a_minute_and_nobody_is_let_go(pool: PgPool) {
    let mut scene = Scene::start(&pool).await;
    let node = scene.node().await;
    let (mut user, mut public) = (Socket::open(&node, 1).await, Socket::open(&node, 2).await);
    user.subscribe("user").await;
    public.subscribe("public").await;
    let mut events = Events::open(&node, "user", 1, "").await;
    let mut revoked = Socket::open(&node, 4).await;
    revoked.subscribe("user").await;
    let mut publisher = scene.publisher().await;
    for channel in ["timeline:1", "timeline:public"] {
        publisher.is_subscribed(channel, 1).await;
    }
    // Killed and there again at once, and then away for long.
    for (round, away) in [(1, Duration::ZERO), (2, AWAY)] {
        scene.redis.kill9().await.unwrap();
        let since = Instant::now();
        if away > Duration::ZERO {
            node.is_unready().await;
        }
        let (stop, crowd) = crowd(&node, 3);
        // What is asked for meanwhile is there when Redis is.
        user.subscribe("user:notification").await;
        // What says so is published to nobody.
        let sql = "UPDATE oauth_access_tokens SET revoked_at = now() WHERE id = 4 AND $1 = 2";
        sqlx::query(sql).bind(i64::try_from(round).unwrap()).execute(&pool).await.unwrap();
        while since.elapsed() < away {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        scene.redis.restart().await.unwrap();
        let mut publisher = scene.publisher().await;
        for channel in ["timeline:1", "timeline:1:notifications", "timeline:public"] {
            publisher.is_subscribed(channel, 1).await;
            publisher.is_announced(&format!("subscribed:{channel}")).await;
        }
        publisher.status("timeline:1", 9, round).await;
        publisher.status("timeline:public", 9, 10 + round).await;
        assert_eq!((user.number().await, public.number().await), (round, 10 + round));
        assert_eq!(events.number().await, round);
        node.is_ready().await;
        stop.store(true, Ordering::Relaxed);
        let (_, refused) = crowd.await.unwrap();
        assert!(refused > 0 || away.is_zero(), "nobody was turned away");
        Events::open(&node, "public", 3, "").await;
    }
    assert!(revoked.next().await.is_none(), "a token that was taken back meanwhile goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_away_for_half_a_minute_and_nobody_is_let_go() {
    let folder = DataDir::temporary().unwrap();
    let mut postgres =
        Postgres::start(&folder, &mut Secrets::open(folder.path()).unwrap(), false).await.unwrap();
    let pool = PgPool::connect(&postgres.url()).await.unwrap();
    fill(&pool).await;
    pool.close().await;
    let scene = Scene::at(postgres.url()).await;
    let node = scene.node().await;
    let mut public = Socket::open(&node, 2).await;
    public.subscribe("public").await;
    let mut publisher = scene.publisher().await;
    publisher.is_subscribed("timeline:public", 1).await;

    postgres.stop().await.unwrap();
    let since = Instant::now();
    let (stop, crowd) = crowd(&node, 3);
    let mut number = 0;
    // What viewers have blocked is known for a minute.
    while since.elapsed() < AWAY {
        number += 1;
        publisher.status("timeline:public", 9, number).await;
        assert_eq!(public.number().await, number);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    postgres.restart().await.unwrap();
    let pool = PgPool::connect(&postgres.url()).await.unwrap();
    sqlx::query("INSERT INTO blocks (account_id, target_account_id) VALUES (2, 9)")
        .execute(&pool)
        .await
        .unwrap();
    let blocked = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let (_, refused) = crowd.await.unwrap();
    assert!(refused > 0, "nobody was turned away");
    Events::open(&node, "public", 3, "").await;
    // Somebody else's comes, and marks that the one before does not.
    let hidden = async {
        loop {
            number += 2;
            publisher.status("timeline:public", 9, number).await;
            publisher.status("timeline:public", 8, number + 1).await;
            if public.number().await == number + 1 {
                return;
            }
            assert_eq!(public.number().await, number + 1);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_mins(1), hidden).await.expect("a blocked author is shown for a minute");
    assert!(blocked.elapsed() < Duration::from_mins(1));
}
