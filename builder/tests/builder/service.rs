//! The HTTP side of a service: sources, a registry index, uploads.

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, put},
};
use cratemill_protocol::Sha256Hex;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

/// What was asked and put, and what to answer.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) files: HashMap<String, Vec<u8>>,
    pub(crate) uploads: HashMap<String, Vec<u8>>,
    /// Authorization headers in the order of requests, per path.
    pub(crate) seen: Vec<(String, Option<String>)>,
    /// Answers to the next requests for uploads, before they are taken.
    pub(crate) upload_answers: VecDeque<StatusCode>,
    /// If set, the only token that may upload.
    pub(crate) upload_token: Option<String>,
}

pub(crate) type Shared = Arc<Mutex<Store>>;

pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) store: Shared,
}

impl Service {
    pub(crate) async fn start(extra: Router) -> Self {
        let store = Shared::default();
        let router = Router::new()
            .route("/files/{*path}", get(read))
            .route("/uploads/{name}", put(write))
            .with_state(Arc::clone(&store))
            .merge(extra);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, store }
    }

    /// Serves these bytes; the address and their digest.
    pub(crate) fn serve(&self, path: &str, bytes: Vec<u8>) -> (String, Sha256Hex) {
        let digest = Sha256Hex::of(&bytes);
        self.store.lock().unwrap().files.insert(path.to_owned(), bytes);
        (format!("{}/files/{path}", self.url), digest)
    }

    pub(crate) fn uploaded(&self, name: &str) -> Option<Vec<u8>> {
        self.store.lock().unwrap().uploads.get(name).cloned()
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    headers.get("authorization").map(|value| value.to_str().unwrap().to_owned())
}

async fn read(
    State(store): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Vec<u8>, StatusCode> {
    let mut store = store.lock().unwrap();
    store.seen.push((path.clone(), authorization(&headers)));
    store.files.get(&path).cloned().ok_or(StatusCode::NOT_FOUND)
}

async fn write(
    State(store): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let mut store = store.lock().unwrap();
    store.seen.push((name.clone(), authorization(&headers)));
    let token = authorization(&headers);
    if store.upload_token.is_some() && store.upload_token != token {
        return StatusCode::UNAUTHORIZED;
    }
    if let Some(status) = store.upload_answers.pop_front() {
        return status;
    }
    // Streamed, but not chunked: a server refuses what is too large before it comes.
    let length = headers.get("content-length").and_then(|value| value.to_str().ok());
    if length != Some(&body.len().to_string()) {
        return StatusCode::LENGTH_REQUIRED;
    }
    let said = headers.get("x-sha256").and_then(|value| value.to_str().ok());
    if said != Some(&Sha256Hex::of(&body).to_string()) {
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    store.uploads.insert(name, body.to_vec());
    StatusCode::CREATED
}
