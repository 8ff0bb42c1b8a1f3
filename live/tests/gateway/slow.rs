//! A viewer that does not read costs only itself.

use crate::{
    farm::{Farm, Node},
    viewer::{Viewer, request},
};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

const CHUNK: &str = "0123456789abcde\n";

/// It has asked, and reads no further.
async fn stuck_viewer(node: &Node, topic: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stuck = socket.connect(([127, 0, 0, 1], node.port).into()).await.unwrap();
    let request = format!("GET /live/events?topic={topic} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stuck.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stuck.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200", "it has a place");
    stuck
}

#[sqlx::test(migrations = "../migrations")]
async fn a_stuck_viewer_is_let_go_and_delays_no_other(pool: PgPool) {
    let farm = Farm::start(pool).await;
    // Long, so that it is dropped for what waits for it, and not for what it does not take.
    let node = farm.node_with(&[("VIEWER_HEARTBEAT_S", "300")]).await;
    let job = farm.job(1).await;
    let topic = format!("job.{job}.log");
    let mut reader = Viewer::open(&node, &[&topic]).await;
    let mut stuck = stuck_viewer(&node, &topic).await;
    // More than the kernel's buffers and the hub's queue hold together.
    let chunk = CHUNK.repeat(4_000);
    let chunks = 256;
    for number in 0..chunks {
        farm.text(job, 1, number * chunk.len(), &chunk).await;
        let log = reader.expect("log").await;
        assert_eq!(log["offset"], number * chunk.len());
    }
    // It reads again: it is told what happened to it, and where it can go on.
    let mut rest = Vec::new();
    tokio::time::timeout(crate::farm::PATIENCE, stuck.read_to_end(&mut rest)).await.unwrap().unwrap();
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("event: dropped\ndata: {\"reason\":\"slow\"}"), "{}", rest.len());
    let last_id = rest.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
    node.metric_reaches("cratemill_live_viewers_dropped_total{reason=\"slow\"} ", 1.0).await;
    let mut resumed = Viewer::resume(&node, &[&topic], last_id).await;
    let seen = rest.matches("event: log").count();
    assert!(seen < chunks);
    for number in seen..chunks {
        assert_eq!(resumed.expect("log").await["offset"], number * chunk.len());
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_stuck_viewer_does_not_keep_its_place(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("MAX_VIEWERS", "1"), ("VIEWER_HEARTBEAT_S", "1")]).await;
    let job = farm.job(1).await;
    farm.archive(job, 1, &CHUNK.repeat(1_000_000)).await;
    let _stuck = stuck_viewer(&node, &format!("job.{job}.log")).await;
    let comes_in = async {
        while request(&node, &["queue"]).send().await.unwrap().status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::farm::PATIENCE, comes_in).await.expect("the place of the stuck one");
}
