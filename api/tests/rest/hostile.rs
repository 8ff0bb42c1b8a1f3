//! Requests that nobody sends by mistake.

use crate::support::{ADMIN, Node};
use axum::{body::Body, http::Request};
use cratemill_store::PgPool;
use serde_json::json;

#[sqlx::test(migrations = "../migrations")]
async fn whatever_the_path_is_the_answer_is_a_problem(pool: PgPool) {
    let node = Node::alone(pool).await;
    let long = format!("/api/v1/crates/{}", "a".repeat(20_000));
    for (path, status) in [
        ("/", 404),
        ("/api/v1", 404),
        ("/api/v1/crates/", 404),
        ("/api/v1/crates/..%2f..%2fetc%2fpasswd", 404),
        ("/api/v1/crates/%ff%fe", 400),
        ("/api/v1/crates/demo/%ff", 400),
        ("/api/v1/crates/%00", 404),
        ("/api/v1/jobs/0", 404),
        ("/api/v1/jobs/-1", 404),
        ("/api/v1/jobs/9223372036854775807", 404),
        ("/api/v1/jobs/9223372036854775808", 404),
        ("/api/v1/jobs/99999999999999999999999999", 404),
        ("/api/v1/jobs/1%20OR%201=1", 404),
        ("/api/v1/jobs?state=sleeping", 400),
        ("/api/v1/jobs?crate=%2e%2e", 400),
        ("/api/v1/jobs?cursor=%ff", 400),
        ("/api/v1/jobs?state=queued&state=failed", 400),
        ("/api/v1/crates/demo/1.0.0/any/metadata/more", 404),
        (long.as_str(), 404),
    ] {
        let answer = node.get(path).await;
        answer.problem(status);
        assert!(answer.body.len() < 1_000, "{} bytes for {path:.60}", answer.body.len());
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_wrong_method_is_told_the_right_ones(pool: PgPool) {
    let node = Node::alone(pool).await;
    for (method, path, allow) in [
        ("DELETE", "/api/v1/jobs", "GET,HEAD,POST"),
        ("PUT", "/api/v1/builders/1", "PATCH"),
        ("GET", "/api/v1/jobs/1/cancel", "POST"),
        ("POST", "/api/v1/crates", "GET,HEAD"),
        ("POST", "/api/v1/openapi.json", "GET,HEAD"),
    ] {
        let answer = node.ask(method, path, &[], None).await;
        answer.problem(405);
        let mut is: Vec<&str> = answer.header("allow").split(',').collect();
        is.sort_unstable();
        assert_eq!(is.join(","), allow, "{method} {path}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_body_that_is_not_json_is_refused(pool: PgPool) {
    let node = Node::alone(pool).await;
    let send = async |content_type: &str, body: Vec<u8>| {
        let request = Request::post("/api/v1/jobs").header("authorization", format!("Bearer {ADMIN}"));
        node.send(request.header("content-type", content_type).body(Body::from(body)).unwrap()).await
    };
    send("text/plain", b"{}".to_vec()).await.problem(415);
    send("", b"{}".to_vec()).await.problem(415);
    send("application/json", b"{".to_vec()).await.problem(400);
    send("application/json", vec![]).await.problem(400);
    send("application/json", vec![0xff, 0xfe]).await.problem(400);
    send("application/json", b"{} {}".to_vec()).await.problem(422);
    send("application/json", "[".repeat(60_000).into_bytes()).await.problem(422);
    send("application/json; charset=utf-8", b"null".to_vec()).await.problem(422);
    send("application/json", vec![b' '; 64 * 1024 + 1]).await.problem(413);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_request_keeps_its_id_if_it_is_one(pool: PgPool) {
    let node = Node::alone(pool).await;
    for (given, kept) in
        [("abc-1.2_3", true), ("a b", false), ("", false), (&"x".repeat(65), false), ("a\"b", false)]
    {
        let answer = node.ask("GET", "/api/v1/jobs", &[("x-request-id", given)], None).await;
        assert_eq!(answer.header("x-request-id") == given, kept, "{given}");
        assert!(!answer.header("x-request-id").is_empty());
    }
    let body = json!({"crate": "demo"});
    assert!(!node.ask("POST", "/nowhere", &[], Some(body)).await.header("x-request-id").is_empty());
}
