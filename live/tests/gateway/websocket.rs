//! Many topics on one WebSocket, by a client of the standard and by one that breaks it.

use crate::{
    farm::{Farm, Node, PATIENCE},
    viewer::Viewer,
};
use cratemill_protocol::{JobState, bus::LogBody};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};

pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(crate) async fn open(node: &Node) -> Self {
        Self::open_on(TcpStream::connect(("127.0.0.1", node.port)).await.unwrap()).await
    }

    pub(crate) async fn open_on(stream: TcpStream) -> Self {
        let stream = MaybeTlsStream::Plain(stream);
        let (socket, _) = tokio_tungstenite::client_async("ws://x/live/ws", stream).await.unwrap();
        Self(socket)
    }

    pub(crate) async fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    pub(crate) async fn subscribe(&mut self, topic: &str, since: Option<&str>) -> String {
        let mut message = json!({"type": "subscribe", "topic": topic});
        if let Some(since) = since {
            message["since"] = since.into();
        }
        self.say(message).await;
        let answer = self.next().await;
        assert_eq!((&answer["type"], &answer["topic"]), (&json!("subscribed"), &json!(topic)), "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    }

    /// The next message that is more than a sign of life.
    pub(crate) async fn next(&mut self) -> Value {
        let next = async {
            loop {
                match self.0.next().await.expect("a message").expect("a message") {
                    Message::Text(text) => {
                        let value: Value = serde_json::from_str(&text).unwrap();
                        if value["type"] != "heartbeat" {
                            return value;
                        }
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a message in time")
    }

    /// Everything that still comes until it is closed, in whatever way, without signs of life.
    pub(crate) async fn rest(&mut self) -> Vec<Value> {
        let mut rest = Vec::new();
        let ends = async {
            while let Some(Ok(Message::Text(text))) = self.0.next().await {
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["type"] != "heartbeat" {
                    rest.push(value);
                }
            }
        };
        tokio::time::timeout(PATIENCE, ends).await.expect("it is closed");
        rest
    }

    /// The next message, which is a sign of life.
    pub(crate) async fn sign_of_life(&mut self) {
        match tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a sign of life") {
            Some(Ok(Message::Text(text))) => assert!(text.contains("\"heartbeat\""), "{text}"),
            other => panic!("no sign of life, but {other:?}"),
        }
    }

    /// The code of the close frame that ends it.
    async fn closed(&mut self) -> u16 {
        let closed = async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Close(frame))) => return frame.map_or(1005, |frame| frame.code.into()),
                    Some(Ok(_)) => {}
                    other => panic!("no close frame, but {other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("it is closed")
    }
}

pub(crate) fn queued(message: &Value) -> u64 {
    assert_eq!(message["type"], "event", "{message}");
    assert_eq!(message["event"], "queue");
    message["data"]["queued"].as_u64().unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn topics_come_and_go_and_are_resumed_at_another_node(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (node, other) = (farm.node().await, farm.node().await);
    let mut socket = Socket::open(&node).await;
    let first_id = socket.subscribe("queue", None).await;
    socket.subscribe("crate.bat", None).await;
    for number in 0..5 {
        farm.queue_event(number).await;
        farm.job_event("bat", 1, number).await;
    }
    // Each topic in order; between them there is none.
    let (mut queue, mut last_id, mut jobs) = (Vec::new(), String::new(), Vec::new());
    for _ in 0..10 {
        let message = socket.next().await;
        if message["topic"] == "queue" {
            queue.push(queued(&message));
            last_id = message["id"].as_str().unwrap().to_owned();
        } else {
            jobs.push(message["data"]["message"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(queue, [0, 1, 2, 3, 4]);
    assert_eq!(jobs, ["0", "1", "2", "3", "4"]);
    socket.say(json!({"type": "unsubscribe", "topic": "queue"})).await;
    assert_eq!(socket.next().await, json!({"type": "unsubscribed", "topic": "queue"}));
    farm.queue_event(5).await;
    farm.job_event("bat", 1, 5).await;
    assert_eq!(socket.next().await["data"]["message"], "5", "and nothing of the queue");
    socket.subscribe("queue", Some(&last_id)).await;
    assert_eq!(queued(&socket.next().await), 5);
    drop(socket);

    farm.queue_event(6).await;
    let mut resumed = Socket::open(&other).await;
    resumed.subscribe("queue", Some(&first_id)).await;
    for number in 0..7 {
        assert_eq!(queued(&resumed.next().await), number);
    }
    // An id of the other dialect is the same id.
    let mut viewer = Viewer::resume(&other, &["queue"], &last_id).await;
    assert_eq!(viewer.queue_numbers(2).await, [5, 6]);
    for (since, reason) in [("x", "unreadable_id"), ("99999", "unknown_id")] {
        let mut lost = Socket::open(&other).await;
        lost.subscribe("queue", Some(since)).await;
        assert_eq!(lost.next().await["reason"], reason);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_log_comes_whole_beside_other_topics(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(2).await;
    let topic = format!("job.{job}.log");
    farm.archive(job, 1, "first\n").await;
    farm.text(job, 2, 0, "second").await;
    let mut socket = Socket::open(&node).await;
    socket.subscribe("queue", None).await;
    socket.subscribe(&topic, None).await;
    let mut seen = String::new();
    farm.text(job, 2, 6, " attempt").await;
    farm.log(job, 2, LogBody::End { state: JobState::Succeeded }).await;
    let last_id = loop {
        let message = socket.next().await;
        assert_eq!(message["topic"], json!(topic));
        match message["event"].as_str().unwrap() {
            "log" => seen.push_str(message["data"]["text"].as_str().unwrap()),
            "end" if message["data"]["attempt"] == 2 => break message["id"].as_str().unwrap().to_owned(),
            "end" => seen.push('|'),
            other => panic!("unexpected {other}"),
        }
    };
    assert_eq!(seen, "first\n|second attempt");
    farm.queue_event(1).await;
    assert_eq!(queued(&socket.next().await), 1);
    let mut resumed = Socket::open(&node).await;
    resumed.subscribe(&topic, Some(&last_id)).await;
    resumed.say(json!({"type": "unsubscribe", "topic": topic})).await;
    assert_eq!(resumed.next().await["type"], "unsubscribed");
}

/// A socket is in one reactor, and is told of all it follows by that one.
#[sqlx::test(migrations = "../migrations")]
async fn nothing_that_a_socket_follows_waits_for_a_sign_of_life(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("REACTORS", "3"), ("VIEWER_HEARTBEAT_S", "300")]).await;
    let mut socket = Socket::open(&node).await;
    let crates = ["bat", "fd", "hexyl", "just"];
    for krate in crates {
        socket.subscribe(&format!("crate.{krate}"), None).await;
    }
    for krate in crates {
        farm.job_event(krate, 1, 1).await;
        assert_eq!(socket.next().await["topic"], format!("crate.{krate}"));
    }
}

/// The answer to a request that was taken back is not that to the next one.
#[sqlx::test(migrations = "../migrations")]
async fn the_last_of_quick_requests_counts(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    for number in 1..=3 {
        farm.queue_event(number).await;
    }
    let mut socket = Socket::open(&node).await;
    // Now the node knows of all.
    socket.subscribe("builders", Some("3")).await;
    for since in ["0", "1", "2"] {
        socket.say(json!({"type": "subscribe", "topic": "queue", "since": since})).await;
        socket.say(json!({"type": "unsubscribe", "topic": "queue"})).await;
    }
    socket.say(json!({"type": "subscribe", "topic": "queue", "since": "2"})).await;
    let mut seen = Vec::new();
    farm.queue_event(4).await;
    loop {
        let message = socket.next().await;
        match message["type"].as_str().unwrap() {
            // What an earlier request had begun with is over.
            "subscribed" | "unsubscribed" => seen.clear(),
            _ => seen.push(queued(&message)),
        }
        if seen == [3, 4] {
            break;
        }
        assert!(seen.len() < 5, "{seen:?}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_asked_wrongly_is_told_and_the_connection_goes_on(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let mut socket = Socket::open(&node).await;
    socket.subscribe("queue", None).await;
    for (message, word) in [
        ("no json".to_owned(), "not a request"),
        (json!({"type": "publish"}).to_string(), "not a request"),
        (json!({"type": "subscribe", "topic": "log.>"}).to_string(), "log.>"),
        (json!({"type": "subscribe", "topic": "queue"}).to_string(), "already"),
        (json!({"type": "unsubscribe", "topic": "builds"}).to_string(), "not subscribed"),
        (json!({"type": "subscribe", "topic": "job.123456.log"}).to_string(), "no such job"),
        (json!({"type": "subscribe", "topic": "topic.private.a"}).to_string(), "not configured"),
    ] {
        socket.0.send(Message::text(message.clone())).await.unwrap();
        let answer = socket.next().await;
        assert_eq!(answer["type"], "error", "{message}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    socket.say(json!({"type": "ping"})).await;
    assert_eq!(socket.next().await, json!({"type": "pong"}));
    for job in 1..50 {
        socket.subscribe(&format!("job.{job}"), None).await;
    }
    socket.say(json!({"type": "subscribe", "topic": "builds"})).await;
    assert!(socket.next().await["error"].as_str().unwrap().contains("at most 50"));
    farm.queue_event(7).await;
    assert_eq!(queued(&socket.next().await), 7);
    socket.0.send(Message::Ping(vec![1, 2].into())).await.unwrap();
    let answered = async {
        loop {
            match socket.0.next().await {
                Some(Ok(Message::Pong(payload))) => return assert_eq!(payload[..], [1, 2]),
                Some(Ok(Message::Text(text))) => assert!(text.contains("heartbeat"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("a pong");
    socket.0.close(None).await.unwrap();
    assert_eq!(socket.closed().await, 1005);
    node.metric_is("cratemill_live_viewers ", 0.0).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_handshake_that_is_none_is_told_so(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("CORS_ORIGIN", "https://a.example")]).await;
    let url = format!("{}/live/ws", node.url);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 426);
    let url = url.replacen("http", "ws", 1);
    for (name, value, status) in [
        ("sec-websocket-version", "8", 426),
        ("sec-websocket-key", "short", 400),
        ("origin", "https://b.example", 403),
        ("authorization", "Bearer x", 101),
        ("origin", "https://a.example", 101),
    ] {
        let mut request = url.as_str().into_client_request().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        let answer = match tokio_tungstenite::connect_async(request).await {
            Ok((_, answer)) => answer.status().as_u16(),
            Err(Error::Http(answer)) => answer.status().as_u16(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(answer, status, "{name}: {value}");
    }
}

/// A handshake, and then these bytes in the same packet; what comes back until it is closed.
async fn raw(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let handshake =
        b"GET /live/ws HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(&[&handshake[..], bytes].concat()).await.unwrap();
    let mut read = Vec::new();
    // A reset is an end too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it is closed");
    let text = String::from_utf8_lossy(&read).into_owned();
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    assert!(text.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{text}");
    let end = read.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    read.split_off(end + 4)
}

/// A frame of a client, masked with zeros.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

#[sqlx::test(migrations = "../migrations")]
async fn who_breaks_the_rules_is_hung_up_on_with_a_code(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let flood = frame(0x81, br#"{"type":"subscribe","topic":"queue"}"#).repeat(1_000);
    let pieces = [frame(0x01, b"{"), frame(0x00, b"").repeat(2_000)].concat();
    for (what, bytes, code) in [
        ("not masked", vec![0x81, 0x02, b'{', b'}'], 1002_u16),
        ("an unknown opcode", frame(0x83, b""), 1002),
        ("an unknown control opcode", frame(0x8b, b""), 1002),
        ("a reserved bit", frame(0xc1, b"{}"), 1002),
        ("another", frame(0xa1, b"{}"), 1002),
        ("the third", frame(0x91, b"{}"), 1002),
        ("a ping in pieces", frame(0x09, b""), 1002),
        ("half a code", frame(0x88, &[3]), 1002),
        ("binary", frame(0x82, b"{}"), 1003),
        ("not UTF-8", frame(0x81, b"\xff\xfe"), 1007),
        ("too long", [&[0x81, 0xff][..], &u64::MAX.to_be_bytes()[..], &[0; 4]].concat(), 1009),
        ("a million requests, of which the first thousand", flood, 1008),
        ("a message that does not end", pieces, 1008),
        ("a goodbye", frame(0x88, &1000_u16.to_be_bytes()), 1000),
    ] {
        let answer = raw(&node, &bytes).await;
        let close =
            answer.windows(2).rposition(|two| two[0] == 0x88).unwrap_or_else(|| panic!("{what}: {answer:?}"));
        let [high, low] = answer[close + 2..close + 4] else { panic!("{what}") };
        assert_eq!(u16::from_be_bytes([high, low]), code, "{what}");
    }
    node.metric_is("cratemill_live_viewers ", 0.0).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn sockets_are_told_when_the_node_goes_and_hear_that_it_lives(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("VIEWER_HEARTBEAT_S", "1")]).await;
    let mut socket = Socket::open(&node).await;
    socket.subscribe("builders", None).await;
    let sequence = farm.queue_event(1).await;
    let hears = async {
        loop {
            match socket.0.next().await {
                Some(Ok(Message::Text(text))) => {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    if value["id"] == format!("{sequence}.0") {
                        return assert_eq!(value["type"], "heartbeat");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, hears).await.expect("how far it is");
    let (ended_well, code) = tokio::join!(node.terminate(), socket.closed());
    assert!(ended_well, "{}", node.process.log_tail());
    assert_eq!(code, 1012);
}
