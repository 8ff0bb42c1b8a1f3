//! The event API: nodes that speak nothing else, and publish what is due themselves.

mod faults;
mod people;
mod sync;

use crate::farm::{Farm, Node, PATIENCE};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;

pub(crate) const SECRET: &str = "a-secret-of-the-event-api-0123456789";
pub(crate) const COLLECTION: &str = "6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77";

pub(crate) async fn node(farm: &Farm) -> Node {
    node_with(farm, &[]).await
}

/// `env` comes over what it needs.
pub(crate) async fn node_with(farm: &Farm, env: &[(&str, &str)]) -> Node {
    // Who makes the stream and publishes may do more than who only follows.
    let bus = farm.nats.url("admin").unwrap();
    let mut all = vec![("DIALECTS", "events"), ("EVENTS_SECRET", SECRET), ("NATS_URL", bus.as_str())];
    all.extend(env);
    farm.node_with(&all).await
}

pub(crate) fn post(node: &Node, path: &str, body: &Value) -> RequestBuilder {
    Client::new().post(format!("{}{path}", node.url)).json(body)
}

pub(crate) fn get(node: &Node, path: &str) -> RequestBuilder {
    Client::new().get(format!("{}{path}", node.url))
}

/// The status and the body.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = timeout(PATIENCE, request.send()).await.expect("an answer").unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub(crate) async fn ok(request: RequestBuilder) -> Value {
    let (status, body) = answer(request).await;
    assert_eq!(status, 200, "{body}");
    body
}

pub(crate) fn now_s() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// Somebody who is logged in.
pub(crate) struct User {
    pub(crate) token: String,
}

impl User {
    pub(crate) async fn sign_up(node: &Node, name: &str) -> Self {
        let who = json!({"username": name, "password": "secret", "collection_id": COLLECTION});
        ok(post(node, "/users", &who)).await;
        let token = ok(post(node, "/login", &who)).await["jwt"].as_str().unwrap().to_owned();
        Self { token }
    }

    pub(crate) fn insertion(&self, node: &Node, name: &str, in_s: i64, data: &Value) -> RequestBuilder {
        let timestamp = now_s() + in_s;
        let event = json!({"event": name, "collection_id": COLLECTION, "timestamp": timestamp, "data": data});
        post(node, "/insert", &event).bearer_auth(&self.token)
    }

    /// Returns its id.
    pub(crate) async fn insert(&self, node: &Node, name: &str, in_s: i64, data: impl Into<Value>) -> String {
        let answer = ok(self.insertion(node, name, in_s, &data.into())).await;
        answer["event"]["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn get(&self, node: &Node, path: &str) -> RequestBuilder {
        get(node, path).bearer_auth(&self.token)
    }
}

/// Somebody who watches.
pub(crate) struct Watcher {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: Option<i64>,
    pub(crate) event: String,
    pub(crate) data: String,
}

impl Seen {
    /// What is said of the connection, not an event.
    pub(crate) fn is_status(&self) -> bool {
        self.event == "internal_status"
    }
}

impl Watcher {
    pub(crate) async fn open(node: &Node) -> Self {
        Self::of(get(node, "/events")).await
    }

    pub(crate) async fn resume(node: &Node, id: i64) -> Self {
        Self::of(get(node, "/events").header("last-event-id", id.to_string())).await
    }

    async fn of(request: RequestBuilder) -> Self {
        let response = timeout(PATIENCE, request.send()).await.expect("an answer").unwrap();
        assert_eq!(response.status(), 200);
        Self { response, buffer: Vec::new() }
    }

    /// The next of what comes; none when the node closes.
    pub(crate) async fn any(&mut self) -> Option<Seen> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let block = String::from_utf8(block).unwrap();
                let field =
                    |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                if let (Some(event), Some(data)) = (field("event"), field("data")) {
                    let id = field("id").map(|id| id.parse().unwrap());
                    return Some(Seen { id, event: event.into(), data: data.into() });
                }
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("something in time");
            self.buffer.extend_from_slice(&chunk.ok().flatten()?);
        }
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Seen {
        loop {
            let seen = self.any().await.expect("an event");
            if !seen.is_status() {
                return seen;
            }
        }
    }

    /// The names and data of the next events.
    pub(crate) async fn names(&mut self, count: usize) -> Vec<(String, String)> {
        let mut names = Vec::new();
        for _ in 0..count {
            let seen = self.next().await;
            names.push((seen.event, seen.data));
        }
        names
    }
}

pub(crate) fn named(events: &[(&str, &str)]) -> Vec<(String, String)> {
    events.iter().map(|(name, data)| ((*name).to_owned(), (*data).to_owned())).collect()
}
