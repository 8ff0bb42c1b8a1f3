//! Thousands who read, and among them two who do not: these cost only themselves.

use crate::{
    farm::{Farm, Node, PATIENCE},
    viewer::Viewer,
    websocket::Socket,
};
use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sqlx::PgPool;
use std::{net::Ipv4Addr, time::Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

const READERS: usize = 5_000;
/// Who connect at once, each group from an address of its own: the node's backlog holds them.
const GROUP: usize = 500;
const ASK: &[u8] = b"GET /live/events?topic=builds HTTP/1.1\r\nhost: x\r\n\r\n";
const DROPPED: &str = "cratemill_live_viewers_dropped_total{reason=\"slow\"} ";
/// More than the kernel holds for one that does not read, together.
const LONG: u64 = 10;
const LONG_BYTES: usize = 20_000;
/// As much of a line as tells what it is.
const LINE_BYTES: usize = 32;

/// One of many: it keeps nothing of what it read but its place.
struct Reader {
    stream: TcpStream,
    /// The start of the line that it is in.
    line: String,
    /// Of the last line that had one.
    id: u64,
    /// Events, each of which had the id after that of the one before.
    events: u64,
}

impl Reader {
    async fn open(node: &Node, address: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let mut stream = socket.connect(([127, 0, 0, 1], node.port).into()).await.unwrap();
        stream.write_all(ASK).await.unwrap();
        let mut this = Self { stream, line: String::new(), id: u64::MAX, events: 0 };
        while this.id == u64::MAX {
            this.read().await;
        }
        this
    }

    /// Reads until it has seen so many events.
    async fn reach(&mut self, events: u64) {
        while self.events < events {
            self.read().await;
        }
        assert_eq!((self.events, self.id), (events, events));
    }

    async fn read(&mut self) {
        self.stream.readable().await.unwrap();
        let mut buffer = [0; 16 * 1024];
        let count = match self.stream.try_read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        };
        assert!(count > 0, "closed after {} events", self.events);
        let mut rest = std::str::from_utf8(&buffer[..count]).unwrap();
        while let Some((end, after)) = rest.split_once('\n') {
            self.put(end);
            self.line_ends();
            rest = after;
        }
        self.put(rest);
    }

    fn put(&mut self, text: &str) {
        let room = LINE_BYTES - self.line.len();
        self.line.push_str(&text[..text.len().min(room)]);
    }

    fn line_ends(&mut self) {
        if let Some(id) = self.line.strip_prefix("id: ") {
            self.id = id.parse().unwrap();
        } else if let Some(name) = self.line.strip_prefix("event: ") {
            assert_eq!(name, "job");
            self.events += 1;
            assert_eq!(self.id, self.events, "each once and in order");
        }
        self.line.clear();
    }
}

async fn readers(node: &Node) -> Vec<Reader> {
    let mut readers = Vec::new();
    for group in 0..READERS / GROUP {
        let address = Ipv4Addr::new(127, 0, 0, 2 + u8::try_from(group).unwrap());
        readers.extend(join_all((0..GROUP).map(|_| Reader::open(node, address))).await);
    }
    readers
}

/// The kernel takes little for it.
async fn narrow(node: &Node) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(([127, 0, 0, 1], node.port).into()).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn two_that_stop_reading_delay_none_of_five_thousand_and_resume(pool: PgPool) {
    // For the node too, which inherits it.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard > 2 * READERS as u64, "{hard} open files are too few");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("VIEWER_HEARTBEAT_S", "1")]).await;
    let other = farm.node().await;
    let mut readers = readers(&node).await;
    let mut stuck = narrow(&node).await;
    stuck.write_all(ASK).await.unwrap();
    let mut rest = Vec::new();
    // It has its place then.
    while !rest.ends_with(b"\nid: 0\n\n") {
        assert!(stuck.read_buf(&mut rest).await.unwrap() > 0);
    }
    let mut stuck_socket = Socket::open_on(narrow(&node).await).await;
    let first_id = stuck_socket.subscribe("builds", None).await;

    // All get each event, before the next, while two take nothing, are owed more and more, and are let go.
    let (mut events, text, began) = (0, "x".repeat(LONG_BYTES), Instant::now());
    while events <= LONG || node.metric(DROPPED).await < 2.0 {
        assert!(began.elapsed() < 6 * PATIENCE, "nobody is let go");
        farm.long_job_event(events, if events < LONG { &text } else { "" }).await;
        events += 1;
        let all = join_all(readers.iter_mut().map(|reader| reader.reach(events)));
        tokio::time::timeout(PATIENCE, all)
            .await
            .unwrap_or_else(|_| panic!("event {events} is not with all"));
    }
    node.metric_is("cratemill_live_viewers ", 5_000.0).await;
    assert!((node.metric(DROPPED).await - 2.0).abs() < 0.5, "only the two");

    // The kernel may end it with an error.
    let _ = tokio::time::timeout(PATIENCE, stuck.read_to_end(&mut rest)).await.expect("it is closed");
    let rest = String::from_utf8(rest).unwrap();
    let whole = &rest[..rest.rfind("\n\n").unwrap()];
    let seen = whole.matches("event: job").count() as u64;
    assert!(seen < LONG, "{seen}");
    let last_id = whole.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
    let mut resumed = Viewer::resume(&other, &["builds"], last_id).await;
    for number in seen..events {
        assert_eq!(number_of(&resumed.expect("job").await), number);
    }
    let rest = stuck_socket.rest().await;
    let seen: Vec<_> = rest.iter().map(|message| number_of(&message["data"])).collect();
    assert!(
        seen.len() < usize::try_from(LONG).unwrap() && seen.iter().copied().eq(0..seen.len() as u64),
        "{seen:?}"
    );
    let last_id = rest.last().map_or(&*first_id, |message| message["id"].as_str().unwrap());
    let mut resumed = Socket::open(&other).await;
    resumed.subscribe("builds", Some(last_id)).await;
    for number in seen.len() as u64..events {
        assert_eq!(number_of(&resumed.next().await["data"]), number);
    }
}

fn number_of(data: &serde_json::Value) -> u64 {
    data["message"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap()
}
