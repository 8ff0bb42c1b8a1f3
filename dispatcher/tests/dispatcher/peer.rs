//! A registry on loopback that does what a test tells it.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use cratemill_dispatcher::registry::client::Registry;
use cratemill_protocol::Sha256Hex;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};

#[derive(Default)]
struct Told {
    bodies: HashMap<String, String>,
    statuses: HashMap<String, StatusCode>,
    /// Paths that are never answered.
    hanging: HashSet<String>,
    token: Option<String>,
    /// Paths, and what was answered.
    seen: Vec<(String, u16)>,
}

pub(crate) struct Peer {
    address: std::net::SocketAddr,
    told: Arc<Mutex<Told>>,
    /// An entry is answered once there is a permit for it.
    pub(crate) gate: Arc<Semaphore>,
    /// Says that a request hangs.
    pub(crate) hangs: Arc<Notify>,
    server: tokio::task::JoinHandle<()>,
}

type Shared = (Arc<Mutex<Told>>, Arc<Semaphore>, Arc<Notify>);

impl Peer {
    pub(crate) async fn start() -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let hangs = Arc::new(Notify::new());
        let state = (told.clone(), gate.clone(), hangs.clone());
        let router = Router::new().route("/{*path}", get(answer)).with_state(state);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let peer = Self { address, told, gate, hangs, server };
        peer.body("config.json", r#"{"dl":"http://files.example/{crate}/{version}"}"#);
        peer
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn registry(&self, token: Option<&str>) -> Registry {
        let index = format!("sparse+{}", self.url("")).parse().unwrap();
        Registry::new(index, token.map(|token| token.parse().unwrap())).unwrap()
    }

    pub(crate) fn body(&self, path: &str, body: impl Into<String>) {
        self.told.lock().unwrap().bodies.insert(path.into(), body.into());
    }

    pub(crate) fn status(&self, path: &str, status: u16) {
        self.told.lock().unwrap().statuses.insert(path.into(), StatusCode::from_u16(status).unwrap());
    }

    pub(crate) fn hang(&self, path: &str) {
        self.told.lock().unwrap().hanging.insert(path.into());
    }

    pub(crate) fn wants_token(&self, token: &str) {
        self.body("config.json", r#"{"dl":"http://files.example","auth-required":true}"#);
        self.told.lock().unwrap().token = Some(token.into());
    }

    /// What was answered for a path, request by request.
    pub(crate) fn answers(&self, path: &str) -> Vec<u16> {
        self.told.lock().unwrap().seen.iter().filter(|seen| seen.0 == path).map(|seen| seen.1).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    State((told, gate, hangs)): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    if told.lock().unwrap().hanging.contains(&path) {
        hangs.notify_one();
        return std::future::pending().await;
    }
    if path != "config.json" {
        gate.acquire().await.unwrap().forget();
    }
    let mut told = told.lock().unwrap();
    let response = respond(&told, &path, &headers);
    told.seen.push((path, response.status().as_u16()));
    response
}

fn respond(told: &Told, path: &str, headers: &HeaderMap) -> Response {
    let header = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if told.token.is_some() && header(header::AUTHORIZATION) != told.token.as_deref() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Some(status) = told.statuses.get(path) {
        return (*status, [(header::RETRY_AFTER, "7")]).into_response();
    }
    let Some(body) = told.bodies.get(path) else { return StatusCode::NOT_FOUND.into_response() };
    let etag = format!("\"{}\"", Sha256Hex::of(body.as_bytes()));
    if header(header::IF_NONE_MATCH) == Some(&etag) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    ([(header::ETAG, etag)], body.clone()).into_response()
}

/// A line of an index; its checksum follows from `content`.
pub(crate) fn line(name: &str, version: &str, yanked: bool, content: &str) -> String {
    let sum = Sha256Hex::of(content.as_bytes());
    format!(
        r#"{{"name":"{name}","vers":"{version}","deps":[],"cksum":"{sum}","features":{{}},"yanked":{yanked}}}"#
    )
}
