//! How many connections one token and one address may have.

use super::{Scene, people::Socket};
use crate::farm::PATIENCE;
use sqlx::PgPool;
use tokio::time::timeout;

#[sqlx::test(migrations = false)]
async fn a_token_has_as_many_connections_as_the_operator_says(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let node = scene.node_with(&[("MAX_CONNECTIONS_PER_TOKEN", "2")]).await;
    let first = Socket::open(&node, 1).await;
    let _second = Socket::open(&node, 1).await;
    assert_eq!(Socket::try_open(&node, 1).await.err(), Some(429));
    let _other = Socket::open(&node, 2).await;
    drop(first);
    let again = async {
        while Socket::try_open(&node, 1).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("its place is free again");
}

#[sqlx::test(migrations = false)]
async fn an_address_has_as_many_connections_as_the_operator_says(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let env = [("MAX_CONNECTIONS_PER_ADDRESS", "2"), ("CLIENT_ADDRESS_HEADER", "x-forwarded-for")];
    let node = scene.node_with(&env).await;
    let answer = async |account: i64, address: &str| {
        let request = reqwest::Client::new()
            .get(format!("{}/api/v1/streaming/user", node.url))
            .bearer_auth(format!("token-{account}"))
            .header("x-forwarded-for", address);
        request.send().await.unwrap()
    };
    let kept = [answer(1, "10.0.0.1").await, answer(2, "9.9.9.9, 10.0.0.1").await];
    assert!(kept.iter().all(|answer| answer.status() == 200));
    let refused = answer(3, "10.0.0.1").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.text().await.unwrap(), r#"{"error":"Too many connections"}"#);
    assert_eq!(answer(3, "10.0.0.2").await.status(), 200);
}
