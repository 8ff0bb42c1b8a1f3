//! What people do, and may not do. Each sentence of the contract is looked at by a client that was written from it alone
//! (`clients.rs`); this is what such a client cannot see, and what the pieces are for.

use super::{COLLECTION, SECRET, User, Watcher, answer, get, named, node, node_with, ok, post};
use crate::farm::Farm;
use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use sqlx::PgPool;

#[sqlx::test(migrations = "../migrations")]
async fn sign_up_log_in_insert_watch(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node(&farm).await;
    let user = User::sign_up(&node, "ann").await;
    let mut watcher = Watcher::open(&node).await;
    assert_eq!(watcher.any().await.unwrap().data, "connected");
    user.insert(&node, "later", 1, "second").await;
    let never = user.insert(&node, "never", 1_000, 0).await;
    user.insert(&node, "now", 0, json!({"n": 1})).await;
    let cancelled = ok(user.get(&node, &format!("/events/{never}/cancel"))).await;
    assert_eq!(cancelled["event"]["cancelled"], true);
    // Which is first depends on how much of the second was left.
    let mut names = watcher.names(2).await;
    names.sort();
    assert_eq!(names, named(&[("later", "\"second\""), ("now", "{\"n\":1}")]));
    let list = ok(user.get(&node, "/events/user")).await;
    let shown: Vec<_> = list["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["event"].as_str().unwrap(), event["published"].as_bool().unwrap()))
        .collect();
    assert_eq!(shown.last(), Some(&("never", false)));
    assert!(shown.contains(&("now", true)) && shown.contains(&("later", true)), "{shown:?}");
    assert_eq!(list["info"], list["events"], "it is the user's own collection");
    let list = ok(user.get(&node, &format!("/events/collections/{COLLECTION}"))).await;
    assert_eq!(list["events"].as_array().unwrap().len(), 3);
}

/// Longer than a page, which is read when the one before is taken.
#[sqlx::test(migrations = "../migrations")]
async fn a_list_is_as_long_as_it_is(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node(&farm).await;
    let user = User::sign_up(&node, "ann").await;
    for chunk in 0..6 {
        join_all((0..50).map(|n| user.insert(&node, "x", 1_000 + n % 7, chunk * 50 + n))).await;
    }
    let list = ok(user.get(&node, &format!("/events/collections/{COLLECTION}"))).await;
    let events = list["events"].as_array().unwrap();
    assert_eq!(events.len(), 300);
    assert!(events.is_sorted_by_key(|event| event["timestamp"].as_i64().unwrap()));
    let mut data: Vec<_> = events.iter().map(|event| event["data"].as_i64().unwrap()).collect();
    data.sort_unstable();
    assert_eq!(data, (0..300).collect::<Vec<_>>());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_secret_is_changed_without_logging_anybody_out(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let old = node(&farm).await;
    let user = User::sign_up(&old, "ann").await;
    let new_secret = "another-secret-of-the-event-api-0123";
    let both = node_with(&farm, &[("EVENTS_SECRET", &format!("{new_secret},{SECRET}"))]).await;
    let new = node_with(&farm, &[("EVENTS_SECRET", new_secret)]).await;
    ok(user.get(&both, "/events/user")).await;
    let who = json!({"username": "ann", "password": "secret"});
    let again = User { token: ok(post(&both, "/login", &who)).await["jwt"].as_str().unwrap().into() };
    ok(again.get(&both, "/events/user")).await;
    ok(again.get(&new, "/events/user")).await;
    for (node, user) in [(&old, &again), (&new, &user)] {
        assert_eq!(answer(user.get(node, "/events/user")).await.0, StatusCode::UNAUTHORIZED);
    }
}

/// Whatever is wrong beside: who has no token learns nothing else.
#[sqlx::test(migrations = "../migrations")]
async fn a_token_of_a_user_that_is_gone_is_no_token(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node(&farm).await;
    let user = User::sign_up(&node, "ann").await;
    user.insert(&node, "x", 1_000, 0).await;
    sqlx::query("DELETE FROM users").execute(&farm.pool).await.unwrap();
    for request in [
        user.insertion(&node, "y", 0, &json!(0)),
        user.get(&node, "/events/user"),
        user.get(&node, &format!("/events/collections/{COLLECTION}")),
        user.get(&node, &format!("/events/{COLLECTION}/cancel")),
        get(&node, "/events/user"),
        post(&node, "/insert", &json!({})),
    ] {
        let (status, body) = answer(request).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
        assert!(body["error"].is_string());
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_user_has_as_many_events_as_one_may_have(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node_with(&farm, &[("MAX_EVENTS_PER_USER", "3")]).await;
    let (user, other) = (User::sign_up(&node, "ann").await, User::sign_up(&node, "bob").await);
    // At once, so that some share a statement.
    let data = json!(0);
    let answers = join_all((0..10).map(|_| answer(user.insertion(&node, "x", 1_000, &data)))).await;
    let inserted = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(inserted, 3, "{answers:?}");
    assert!(answers.iter().all(|(status, _)| matches!(status.as_u16(), 200 | 429)));
    other.insert(&node, "x", 0, 0).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_tries_too_often_has_to_wait_and_nobody_else(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node_with(&farm, &[("CLIENT_ADDRESS_HEADER", "x-forwarded-for")]).await;
    let try_as = |address: &'static str, name: &'static str| {
        let who = json!({"username": name, "password": "x".repeat(80)});
        answer(post(&node, "/login", &who).header("x-forwarded-for", address))
    };
    // One name, from everywhere.
    let tries = join_all((0..25).map(|_| try_as("10.0.0.1", "ann"))).await;
    let refused = tries.iter().filter(|(status, _)| *status == 429).count();
    assert!((1..=5).contains(&refused), "{refused}");
    assert!(tries.iter().all(|(status, _)| matches!(status.as_u16(), 401 | 429)));
    assert_eq!(try_as("10.0.0.2", "bob").await.0, 401);
}

/// A login takes a processor for a fifth of a second.
#[sqlx::test(migrations = "../migrations")]
async fn logins_hold_up_no_event(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node(&farm).await;
    let user = User::sign_up(&node, "ann").await;
    let mut watcher = Watcher::open(&node).await;
    let who = json!({"username": "nobody", "password": "x"});
    let logins = join_all((0..15).map(|_| answer(post(&node, "/login", &who))));
    let event = async {
        user.insert(&node, "x", 0, 0).await;
        watcher.next().await
    };
    tokio::select! {
        biased;
        _ = event => {}
        _ = logins => panic!("the logins were first"),
    }
}
