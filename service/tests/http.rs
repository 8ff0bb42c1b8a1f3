//! The HTTP server and peers that read slowly, or not at all.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use cratemill_service::http;
use futures_util::stream;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// Short, so that the test is.
const SHORT: Duration = Duration::from_millis(1_500);
/// Client and server share this process: one that the machine stops for a moment reads nothing either.
const LONG: Duration = Duration::from_secs(8);
/// Between two reads.
const PAUSE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);

/// Says that a body has been given up.
struct Ends(Arc<Notify>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A client that has asked for a body without end, and what happens when that body is given up: once nothing was taken
/// for `stalled`.
async fn endless(stalled: Duration) -> (TcpStream, Arc<Notify>) {
    let ended = Arc::new(Notify::new());
    let ends = Arc::clone(&ended);
    let body = async move || {
        let chunk = Bytes::from(vec![0; 64 * 1024]);
        Body::from_stream(stream::unfold(Ends(ends), move |ends| {
            let chunk = chunk.clone();
            async { Some((Ok::<_, Infallible>(chunk), ends)) }
        }))
    };
    let listener = http::bind(([127, 0, 0, 1], 0).into()).unwrap();
    http::drop_stalled(&listener, stalled).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    tokio::spawn(http::serve(listener, Router::new().route("/", get(body)), CancellationToken::new()));
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'H');
    (client, ended)
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_with_what_it_asked_for() {
    let (_client, ended) = endless(SHORT).await;
    timeout(PATIENCE, ended.notified()).await.expect("the body is given up");
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_served() {
    let (mut client, ended) = endless(LONG).await;
    let (start, mut ticks) = (Instant::now(), interval(PAUSE));
    let mut part = vec![0; 512 * 1024];
    while start.elapsed() < LONG * 5 / 4 {
        ticks.tick().await;
        client.read_exact(&mut part).await.unwrap();
    }
    assert!(timeout(Duration::ZERO, ended.notified()).await.is_err(), "it is still sent");
}
