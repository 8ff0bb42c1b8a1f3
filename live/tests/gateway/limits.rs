//! What is refused, and how an answer looks.

use crate::{
    farm::Farm,
    viewer::{Viewer, request},
};
use sqlx::PgPool;

#[sqlx::test(migrations = "../migrations")]
async fn bad_requests_are_told_what_is_wrong(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let many: Vec<_> = (1..=51).map(|job| format!("topic=job.{job}")).collect();
    for (query, status, word) in [
        (String::new(), 400, "at least one topic"),
        ("topic=".into(), 400, "unknown topic"),
        ("topic=builds&topic=jobs.1".into(), 400, "jobs.1"),
        ("topic=job.%00".into(), 400, "unknown topic"),
        ("topic=job.%ff%fe".into(), 400, "unknown topic"),
        ("topic=log.%3E".into(), 400, "log.>"),
        ("topic=crate.*".into(), 400, "crate.*"),
        (many.join("&"), 400, "at most 50"),
        (format!("topic=builds&x={}", "y".repeat(17_000)), 414, "longer than"),
    ] {
        let answer = reqwest::get(format!("{}/live/events?{query}", node.url)).await.unwrap();
        assert_eq!(answer.status(), status, "{query}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{query}");
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    let answer = reqwest::get(format!("{}/live/nothing", node.url)).await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let mut unreadable = Viewer::resume(&node, &["queue"], &"1".repeat(5_000)).await;
    assert_eq!(unreadable.expect("reset").await["reason"], "unreadable_id");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_is_made_to_pass_through_and_stays_alive(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let env = [("VIEWER_HEARTBEAT_S", "1"), ("CORS_ORIGIN", "https://a.example,https://b.example")];
    let node = farm.node_with(&env).await;
    let answer = request(&node, &["queue"]).header("origin", "https://b.example").send().await.unwrap();
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("access-control-allow-origin", "https://b.example"),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
    let stranger = request(&node, &["queue"]).header("origin", "https://c.example").send().await.unwrap();
    assert!(!stranger.headers().contains_key("access-control-allow-origin"));

    // Other topics move on: a quiet viewer's id moves with them, so that it never gets too old to resume from.
    let mut quiet = Viewer::open(&node, &["builders"]).await;
    let sequence = farm.queue_event(1).await;
    quiet.quietly_reaches(&sequence.to_string()).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_full_node_sends_viewers_elsewhere(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("MAX_VIEWERS", "2")]).await;
    let one = Viewer::open(&node, &["queue"]).await;
    let _other = Viewer::open(&node, &["queue"]).await;
    let answer = request(&node, &["queue"]).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    drop(one);
    let comes_in = async {
        while request(&node, &["queue"]).send().await.unwrap().status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::farm::PATIENCE, comes_in).await.unwrap();
}
