//! Clients that mean harm, or are broken: it ends in bounded time and memory, and those beside them notice nothing.

use crate::{
    farm::{Farm, Node, PATIENCE},
    publisher,
    viewer::Viewer,
    websocket::{Socket, frame, queued},
};
use futures_util::future::join_all;
use sqlx::PgPool;
use std::fs;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const VIEWERS: &str = "cratemill_live_viewers ";
const HANDSHAKE: &[u8] = b"GET /live/ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SUBSCRIBE: &[u8] = br#"{"type":"subscribe","topic":"builds"}"#;
/// Who flood at once.
const FLOODS: usize = 20;
/// More than the kernel takes of one that nobody listens to, by far.
const MAX_FLOOD: usize = 256 << 20;
/// What twenty floods may cost; what they send is a hundred times that, if it is kept.
const MAX_GROWTH: usize = 24 << 20;

/// Well-behaved ones of both dialects.
struct Bystanders {
    viewer: Viewer,
    socket: Socket,
    number: u64,
}

impl Bystanders {
    async fn open(node: &Node) -> Self {
        let mut socket = Socket::open(node).await;
        socket.subscribe("queue", None).await;
        Self { viewer: Viewer::open(node, &["queue"]).await, socket, number: 0 }
    }

    async fn get_an_event(&mut self, farm: &Farm) {
        self.number += 1;
        farm.queue_event(self.number).await;
        assert_eq!(self.viewer.queue_numbers(1).await, [self.number]);
        assert_eq!(queued(&self.socket.next().await), self.number);
    }
}

/// What comes until it is closed. A reset is an end too.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it is closed");
    read
}

#[sqlx::test(migrations = "../migrations")]
async fn half_a_request_and_silence_ends(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    let mut bystanders = Bystanders::open(&node).await;
    let token = publisher::token(&["topic.>"], &[]);
    let body = format!(
        "POST /live/topics/topic.a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 9\r\n\r\n1"
    );
    let halves: [(&[u8], &str); 6] = [
        (b"", ""),
        (b"GET /live/eve", ""),
        (b"GET /live/events?topic=queue HTTP/1.1\r\nhost: x\r\n", ""),
        (&HANDSHAKE[..HANDSHAKE.len() - 2], ""),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /live/events?topic=queue", "HTTP/1.1 200"),
        (body.as_bytes(), "HTTP/1.1 4"),
    ];
    let mut streams = Vec::new();
    for (half, _) in halves {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
        stream.write_all(half).await.unwrap();
        streams.push(stream);
    }
    bystanders.get_an_event(&farm).await;
    let answers = join_all(streams.iter_mut().map(until_closed)).await;
    for ((half, expected), answer) in halves.iter().zip(answers) {
        let (half, answer) = (String::from_utf8_lossy(half), String::from_utf8_lossy(&answer).into_owned());
        assert!(answer.starts_with(expected) && answer.is_empty() == expected.is_empty(), "{half}: {answer}");
    }
    bystanders.get_an_event(&farm).await;
    node.metric_is(VIEWERS, 2.0).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_huge_header_is_refused(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let mut bystanders = Bystanders::open(&node).await;
    let lines =
        |line: &str, count| format!("GET /live/events?topic=queue HTTP/1.1\r\n{}", line.repeat(count));
    for request in [
        lines(&format!("x: {}\r\n", "y".repeat(40_000)), 1),
        lines(&format!("last-event-id: {}\r\n", "1".repeat(40_000)), 1),
        lines("x: y\r\n", 1_000),
        format!("GET /live/events?topic={} HTTP/1.1\r\n", "x".repeat(40_000)),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = String::from_utf8_lossy(&until_closed(&mut stream).await).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["414", "431"].contains(&status), "{}: {answer}", &request[..60]);
    }
    bystanders.get_an_event(&farm).await;
    node.metric_is(VIEWERS, 2.0).await;
}

/// A million requests, as far as they are taken, and other ways to go on and on.
#[sqlx::test(migrations = "../migrations")]
async fn floods_are_cut_and_cost_only_those_who_send_them(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let mut bystanders = Bystanders::open(&node).await;
    bystanders.get_an_event(&farm).await;
    for (what, first, bytes) in [
        ("requests", &b""[..], frame(0x81, SUBSCRIBE)),
        ("pings", b"", frame(0x89, b"ping")),
        ("pongs", b"", frame(0x8a, b"")),
        ("a message without end", &frame(0x01, b"{"), frame(0x00, b"")),
    ] {
        let before = peak_memory(&node);
        let floods = (0..FLOODS).map(|_| flood(&node, [HANDSHAKE, first].concat(), bytes.repeat(1_000)));
        let (codes, ()) = tokio::join!(join_all(floods), bystanders.get_an_event(&farm));
        assert!(codes.iter().all(|code| code.is_none_or(|code| code == 1008)), "{what}: {codes:?}");
        let growth = peak_memory(&node) - before;
        assert!(growth < MAX_GROWTH, "{what}: {growth} bytes more");
        node.metric_is(VIEWERS, 2.0).await;
    }
    bystanders.get_an_event(&farm).await;
}

/// Sends until it is cut off. Returns the code it is told.
async fn flood(node: &Node, first: Vec<u8>, bytes: Vec<u8>) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let (mut from, mut to) = stream.split();
    let sends = async {
        let mut sent = 0;
        to.write_all(&first).await.unwrap();
        while to.write_all(&bytes).await.is_ok() {
            sent += bytes.len();
            assert!(sent < MAX_FLOOD, "nobody stops it");
        }
    };
    let (read, ()) = tokio::join!(until_closed(&mut from), async {
        tokio::time::timeout(PATIENCE, sends).await.expect("it is cut off");
    });
    // Whoever goes on sending may lose what it was told.
    let close = read.windows(2).rposition(|two| two[0] == 0x88)?;
    Some(u16::from_be_bytes([*read.get(close + 2)?, *read.get(close + 3)?]))
}

fn peak_memory(node: &Node) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", node.process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}
