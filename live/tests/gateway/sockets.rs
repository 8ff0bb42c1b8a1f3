//! Connections that wait in a reactor.

use crate::{
    farm::{Farm, Node, PATIENCE},
    viewer::{Viewer, request},
};
use cratemill_protocol::bus::DomainEvent;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const VIEWERS: &str = "cratemill_live_viewers ";
const ASK: &[u8] = b"GET /live/events?topic=queue HTTP/1.1\r\nhost: x\r\n\r\n";

async fn connect(node: &Node) -> TcpStream {
    TcpStream::connect(("127.0.0.1", node.port)).await.unwrap()
}

/// Reads until what came contains `text`.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    let came = async {
        while !String::from_utf8_lossy(&read).contains(text) {
            let count = stream.read_buf(&mut read).await.unwrap();
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        }
    };
    tokio::time::timeout(PATIENCE, came).await.unwrap_or_else(|_| panic!("no {text:?}"));
    String::from_utf8(read).unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_socket_is_taken_over_after_everything_before_it(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    // In one packet: answers of HTTP, then a stream, then what nobody expects.
    let mut stream = connect(&node).await;
    let many = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20);
    stream.write_all(&[&many, ASK, b"and more"].concat()).await.unwrap();
    let head = read_until(&mut stream, "\n\nid: ").await;
    assert_eq!(head.matches("HTTP/1.1 404").count(), 20, "{head}");
    let answer = &head[head.find("HTTP/1.1 200 OK").unwrap()..];
    let answer = answer.to_lowercase();
    for line in ["content-type: text/event-stream", "connection: close", "date: ", "retry: 1000\n\n"] {
        assert!(answer.contains(line), "{answer}");
    }
    assert!(!answer.contains("transfer-encoding") && !answer.contains("content-length"), "{answer}");
    farm.queue_event(1).await;
    read_until(&mut stream, "\"queued\":1").await;
    // One that goes on talking wastes our time, and one that has gone has no place.
    let mut talker = connect(&node).await;
    talker.write_all(ASK).await.unwrap();
    read_until(&mut talker, "id: ").await;
    node.metric_reaches(VIEWERS, 2.0).await;
    let talks = async { while talker.write_all(&[b'x'; 4_096]).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, talks).await.expect("it is closed");
    drop(stream);
    node.metric_is(VIEWERS, 0.0).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_head_has_no_stream(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let url = format!("{}/live/events?topic=queue", node.url);
    assert_eq!(reqwest::Client::new().head(url).send().await.unwrap().status(), 405);
    assert!(node.metric(VIEWERS).await.abs() < 0.5);
}

/// Those who come back together to a node that never had what they missed.
#[sqlx::test(migrations = "../migrations")]
async fn a_crowd_that_missed_the_same_shares_one_read(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    for number in 1..=500 {
        farm.queue_event(number).await;
    }
    // The node knows of them, and has none in a ring.
    Viewer::resume(&node, &["builders", "queue"], "500").await;
    let back = (0..50).map(|_| async {
        let mut viewer = Viewer::resume(&node, &["queue"], "100").await;
        assert_eq!(viewer.queue_numbers(400).await, (101..=500).collect::<Vec<_>>());
    });
    futures_util::future::join_all(back).await;
    // One, and a few more if the bus takes its time.
    let reads = node.metric("cratemill_live_replays_total{from=\"shared\"} ").await;
    assert!((0.5..5.5).contains(&reads), "{reads}");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_viewer_is_in_the_same_channel_whatever_order_it_names_its_topics_in(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let mut one = Viewer::open(&node, &["queue", "crate.bat"]).await;
    let mut other = Viewer::open(&node, &["crate.bat", "queue", "queue"]).await;
    for number in 0..10 {
        farm.queue_event(number).await;
        farm.job_event("bat", 1, number).await;
        farm.job_event("hexyl", 2, number).await;
    }
    for viewer in [&mut one, &mut other] {
        for number in 0..10_u64 {
            assert_eq!(viewer.expect("queue").await["queued"], number);
            assert_eq!(viewer.expect("job").await["message"], number.to_string());
        }
    }
    assert_eq!(one.last_id, other.last_id);
    let answer = request(&node, &["queue"]).header("last-event-id", "5").send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_idle_viewer_hears_that_the_stream_is_alive(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("VIEWER_HEARTBEAT_S", "1")]).await;
    let mut quiet = Viewer::open(&node, &["builders", "topic.quiet"]).await;
    let sequence = farm.event("event.queue", DomainEvent::Queue { queued: 1, running: 0 }).await;
    quiet.quietly_reaches(&format!("{sequence}.0")).await;
}
