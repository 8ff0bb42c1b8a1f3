//! Clients that go, in whatever way, while the node writes to them: they leave nothing behind, and nobody else notices.

use crate::{
    farm::{Farm, Node, PATIENCE},
    viewer::Viewer,
    websocket::{Socket, frame},
};
use futures_util::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use sqlx::PgPool;
use std::cell::Cell;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
};

const VIEWERS: &str = "cratemill_live_viewers ";
const LEAVERS: usize = 150;
/// So many are there at once.
const AT_ONCE: usize = 10;
const TEXT_BYTES: usize = 20_000;
/// Events that those who stay have not read yet.
const AHEAD: usize = 50;
const GOODBYE: &[u8] = &1000_u16.to_be_bytes();

#[derive(Debug, Clone, Copy)]
enum Dialect {
    Events,
    WebSocket,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    /// Without a word, and without reading what there is: for the peer that is a reset.
    Gone,
    Reset,
    /// It goes on reading, until the server closes too.
    HalfClosed,
    /// Of WebSockets: a close frame, and then that.
    CloseThenReset,
    CloseThenHalfClosed,
    CloseThenWait,
}

impl Way {
    const ALL: [Self; 6] = [
        Self::Gone,
        Self::Reset,
        Self::HalfClosed,
        Self::CloseThenReset,
        Self::CloseThenHalfClosed,
        Self::CloseThenWait,
    ];

    fn says_goodbye(self) -> bool {
        matches!(self, Self::CloseThenReset | Self::CloseThenHalfClosed | Self::CloseThenWait)
    }
}

/// One that asks for builds and takes little.
async fn open(node: &Node, dialect: Dialect) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], node.port).into()).await.unwrap();
    let ask = match dialect {
        Dialect::Events => b"GET /live/events?topic=builds HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        Dialect::WebSocket => {
            let handshake =
                b"GET /live/ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            [&handshake[..], &frame(0x81, br#"{"type":"subscribe","topic":"builds"}"#)].concat()
        }
    };
    stream.write_all(&ask).await.unwrap();
    stream
}

/// Reads so many bytes, of an answer and of events, and goes.
async fn leave(mut stream: TcpStream, way: Way, bytes: usize) {
    let mut read = vec![0; bytes];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut read)).await.expect("it goes on").unwrap();
    if way.says_goodbye() {
        stream.write_all(&frame(0x88, GOODBYE)).await.unwrap();
    }
    match way {
        Way::Gone => return,
        Way::Reset | Way::CloseThenReset => return stream.set_zero_linger().unwrap(),
        Way::HalfClosed | Way::CloseThenHalfClosed => stream.shutdown().await.unwrap(),
        Way::CloseThenWait => {}
    }
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it is closed");
    let code = closed_with(&read);
    // To one that is owed something nothing else can be said.
    assert!(matches!(code, Some(1000) | None), "{way:?}: {code:?}");
}

/// The code of the close frame that what a server sent over a WebSocket ends with; none if it ends before one.
fn closed_with(read: &[u8]) -> Option<u16> {
    let mut rest = &read[read.windows(4).position(|four| four == b"\r\n\r\n")? + 4..];
    while let [first, length, after @ ..] = rest {
        let (length, after) = match (*length, after) {
            (126, [a, b, after @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), after),
            (127, _) => return None,
            (length, after) => (usize::from(length), after),
        };
        let payload = after.get(..length)?;
        if *first == 0x88 {
            return Some(u16::from_be_bytes([*payload.first()?, *payload.get(1)?]));
        }
        rest = &after[length..];
    }
    None
}

#[sqlx::test(migrations = "../migrations")]
async fn who_goes_while_events_are_written_leaves_nothing_behind(pool: PgPool) {
    let seed = std::env::var("RACES_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("RACES_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("REACTORS", "2")]).await;
    let mut viewer = Viewer::open(&node, &["builds"]).await;
    let mut socket = Socket::open(&node).await;
    socket.subscribe("builds", None).await;
    let (all_left, text) = (Cell::new(false), "x".repeat(TEXT_BYTES));
    // Who stays is never behind by as much as a ring holds.
    let unread = Semaphore::new(AHEAD * 2);
    let publish = async {
        let mut number = 0;
        while !all_left.get() {
            unread.acquire_many(2).await.unwrap().forget();
            farm.long_job_event(number, &text).await;
            number += 1;
        }
        farm.long_job_event(number, "end").await;
        number
    };
    let leavers = async {
        for _ in 0..LEAVERS / AT_ONCE {
            let leaver = |random: &mut StdRng| {
                let way = Way::ALL[random.random_range(0..Way::ALL.len())];
                let is_socket = way.says_goodbye() || random.random_bool(0.5);
                let dialect = if is_socket { Dialect::WebSocket } else { Dialect::Events };
                let bytes = random.random_range(0..3 * TEXT_BYTES);
                let node = &node;
                async move { leave(open(node, dialect).await, way, bytes).await }
            };
            let group: Vec<_> = (0..AT_ONCE).map(|_| leaver(&mut random)).collect();
            join_all(group).await;
        }
        all_left.set(true);
    };
    let over_events = numbers(&unread, async || viewer.expect("job").await);
    let over_socket = numbers(&unread, async || socket.next().await["data"].take());
    let (last, (), over_events, over_socket) = tokio::join!(publish, leavers, over_events, over_socket);
    assert_eq!(over_events, (0..=last).collect::<Vec<_>>());
    assert_eq!(over_socket, over_events);
    node.metric_is(VIEWERS, 2.0).await;
}

/// Of events, up to the last.
async fn numbers(unread: &Semaphore, mut next: impl AsyncFnMut() -> Value) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let data = next().await;
        let (number, text) = data["message"].as_str().unwrap().split_once(' ').unwrap();
        numbers.push(number.parse().unwrap());
        unread.add_permits(1);
        if text == "end" {
            return numbers;
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn who_says_goodbye_while_the_node_does_ends_with_a_code(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("REACTORS", "2")]).await;
    let text = "x".repeat(TEXT_BYTES);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = open(&node, Dialect::WebSocket).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\"id\":\"0\"}") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        streams.push((stream, answer));
    }
    // Some are owed something by now.
    for number in 0..12 {
        farm.long_job_event(number, &text).await;
    }
    let goodbyes = streams.into_iter().enumerate().map(|(number, (mut stream, mut read))| async move {
        // At the same time, or when the first bytes came.
        if number % 2 == 0 {
            stream.read_buf(&mut read).await.unwrap();
        }
        // The node may have gone before.
        let _ = stream.write_all(&frame(0x88, GOODBYE)).await;
        if number % 3 == 0 {
            let _ = stream.shutdown().await;
        }
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it is closed");
        (number, closed_with(&read))
    });
    let (ended_well, codes) = tokio::join!(node.terminate(), join_all(goodbyes));
    assert!(ended_well, "{}", node.process.log_tail());
    for (number, code) in codes {
        // Where the goodbye came first, the node does not wait until what was owed is taken.
        assert!(matches!(code, Some(1000 | 1012) | None), "{number}: {code:?}");
    }
}
