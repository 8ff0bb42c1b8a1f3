//! Who publishes: nodes that let people publish, tokens, and requests.

use crate::farm::{Farm, Node, PATIENCE};
use cratemill_live::auth::token::{Claims, Pattern, Signer};
use cratemill_service::clock;
use reqwest::{Body, RequestBuilder, Response};
use serde_json::Value;

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

pub(crate) async fn node(farm: &Farm) -> Node {
    farm.node_with(&[("LIVE_TOKEN_SECRET", SECRET)]).await
}

pub(crate) fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Good for a minute.
pub(crate) fn token(publish: &[&str], subscribe: &[&str]) -> String {
    token_until(clock::now_s() + 60, publish, subscribe)
}

pub(crate) fn token_until(exp: i64, publish: &[&str], subscribe: &[&str]) -> String {
    let (publish, subscribe) = (patterns(publish), patterns(subscribe));
    let claims = Claims { exp, nbf: None, sub: None, publish, subscribe };
    Signer::new(&SECRET.parse().unwrap()).sign(&claims)
}

pub(crate) fn post(node: &Node, topic: &str, body: impl Into<Body>) -> RequestBuilder {
    reqwest::Client::new().post(format!("{}/live/topics/{topic}", node.url)).body(body)
}

/// With a token for everything.
pub(crate) fn publish(node: &Node, topic: &str, id: &str, body: impl Into<Body>) -> RequestBuilder {
    post(node, topic, body).bearer_auth(token(&["topic.>"], &[])).header("message-id", id)
}

/// What the node says of what it published.
pub(crate) async fn published(request: RequestBuilder) -> Value {
    let answer = send(request).await;
    assert_eq!(answer.status(), 201);
    answer.json().await.unwrap()
}

/// Again, with the same id, until it is taken.
pub(crate) async fn taken(request: impl Fn() -> RequestBuilder) {
    let is_taken = async { while send(request()).await.status() != 201 {} };
    tokio::time::timeout(PATIENCE, is_taken).await.expect("a bus in time");
}

pub(crate) async fn send(request: RequestBuilder) -> Response {
    tokio::time::timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

/// Refused as it should be, with these words.
pub(crate) async fn refused(request: RequestBuilder, status: u16, words: &str) {
    let answer = send(request).await;
    assert_eq!(answer.status(), status, "{words}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{words}");
    assert_eq!(answer.headers().contains_key("retry-after"), status == 503, "{words}");
    let challenge = answer.headers().get("www-authenticate").map(|value| value.to_str().unwrap());
    assert_eq!(challenge, (status == 401).then_some("Bearer"), "{words}");
    let problem: Value = answer.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
}
