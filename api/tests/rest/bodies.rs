//! Downloads over real sockets: bytes as they are sent, in constant memory, and to clients that mean harm.

use crate::support::{Node, Servers, TARGET, published};
use cratemill_protocol::Sha256Hex;
use cratemill_store::PgPool;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::Notify,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than all buffers of the kernel on the way, which hold [`IN_KERNEL`] at most, by default.
const LARGE: usize = 64 << 20;
/// Two sockets from the store to the node, and one to the client with a small buffer: 6 MiB to read, 4 to write.
const IN_KERNEL: u64 = 24 << 20;

fn path() -> String {
    format!("/api/v1/crates/demo/1.0.0/{TARGET}/tarball")
}

/// Serves the node's routes as its process does.
fn listen(node: &Node) -> SocketAddr {
    let listener = cratemill_service::http::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(cratemill_service::http::serve(listener, node.router(), CancellationToken::new()));
    address
}

/// Passes bytes on to the object store and back, and counts those that come back.
async fn counting_proxy(to: SocketAddr, passed: Arc<AtomicU64>, more: Arc<Notify>) -> SocketAddr {
    async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: impl Fn(u64)) {
        let mut part = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut part).await {
            if to.write_all(&part[..length]).await.is_err() {
                return;
            }
            count(length as u64);
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (ask, give) = client.into_split();
            let (answer, question) = TcpStream::connect(to).await.unwrap().into_split();
            tokio::spawn(pass(ask, question, |_| ()));
            let (passed, more) = (Arc::clone(&passed), Arc::clone(&more));
            tokio::spawn(pass(answer, give, move |length| {
                passed.fetch_add(length, Ordering::Relaxed);
                more.notify_one();
            }));
        }
    });
    address
}

/// A client whose socket holds little.
async fn ask(address: SocketAddr, request: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    client.write_all(request).await.unwrap();
    client
}

/// The node reads from the store what its client takes, and no more: what is on the way is in the kernel's buffers.
#[sqlx::test(migrations = "../migrations")]
async fn a_node_holds_no_more_of_a_file_than_a_few_chunks(pool: PgPool) {
    let servers = Servers::start().await;
    let bytes = vec![7; LARGE];
    published(&servers.node(pool.clone(), &[]).await, "demo", "1.0.0", &bytes).await;
    let (passed, more) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let store = servers.s3.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = counting_proxy(store, Arc::clone(&passed), Arc::clone(&more)).await;
    let endpoint = format!("--s3-endpoint=http://{proxy}");
    let node = servers.node(pool, &[&endpoint]).await;
    let address = listen(&node);

    let request = format!("GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", path());
    let mut client = ask(address, request.as_bytes()).await;
    assert_eq!(client.read_u8().await.unwrap(), b'H');
    // Until nothing moves: the client does not read, so that nothing will.
    while timeout(Duration::from_secs(1), more.notified()).await.is_ok() {}
    let held = passed.load(Ordering::Relaxed);
    assert!(held < IN_KERNEL, "{held} bytes have left the store, and the client has taken none");

    let mut rest = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut rest)).await.unwrap().unwrap();
    let head = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(Sha256Hex::of(&rest[head..]), Sha256Hex::of(&bytes));
}

/// A request as bytes, and the first line and the head of its answer.
async fn raw(address: SocketAddr, request: &[u8]) -> (String, String) {
    let mut client = ask(address, request).await;
    let mut answer = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    (head.lines().next().unwrap_or_default().to_owned(), head)
}

#[sqlx::test(migrations = "../migrations")]
async fn hostile_requests_are_refused_or_answered(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool, &[]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    let address = listen(&node);
    let good = path();
    let tag = format!("\"{}\"", Sha256Hex::of(b"bytes"));
    let long =
        |parts: [&str; 4]| format!("/api/v1/crates/{}/{}/{}/{}", parts[0], parts[1], parts[2], parts[3]);
    let (many, name) = ("range: bytes=0-1\r\n".repeat(60), "a".repeat(10_000));
    let ua = |bytes: &[u8]| [b"user-agent: ", bytes, b"\r\n"].concat();
    let version = format!("1.0.0-{name}");
    let features = format!("{good}?features=default{}", ",f".repeat(5_000));
    for (path, headers, status) in [
        (&good, ua(&[b'a'; 8_000]), 200),
        (&good, ua(b"curl/8 \xff\xfe\x80"), 200),
        (&good, [ua(b"one"), ua(b"two")].concat(), 200),
        (&good, many.clone().into(), 200),
        (&good, "range: bytes=0-1\r\n".repeat(200).into(), 431),
        (&good, format!("range: bytes={}-\r\n", "9".repeat(5_000)).into(), 416),
        (&good, format!("range: bytes=-{}\r\n", "9".repeat(5_000)).into(), 206),
        (&good, format!("range: bytes={}\r\n", "0-0,".repeat(2_000)).into(), 200),
        (&good, b"range: bytes=\xff-\xfe\r\n".to_vec(), 200),
        (&good, b"range: bytes=--1\r\n".to_vec(), 200),
        (&good, format!("if-none-match: {}\"x\"\r\n", "\"y\",".repeat(2_000)).into(), 200),
        (&good, format!("if-none-match: {}{tag}\r\n", "\"y\",".repeat(2_000)).into(), 304),
        (&good, b"if-none-match: \xff\r\nif-range: \xff\r\n".to_vec(), 200),
        (&good, b"x-request-id: \xff\r\nx-request-id: a\r\n".to_vec(), 200),
        (&good, b"content-length: 5\r\n\r\nhello".to_vec(), 200),
        (&good, b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n".to_vec(), 400),
        (&long([&name, "1.0.0", TARGET, "tarball"]), vec![], 404),
        (&long(["demo", &version, TARGET, "tarball"]), vec![], 404),
        (&long(["demo", &name, TARGET, "tarball"]), vec![], 404),
        (&long(["demo", "1.0.0", &name, "tarball"]), vec![], 404),
        (&long(["demo", "1.0.0", TARGET, &name]), vec![], 404),
        (&long(["demo", "1.0.0%00", TARGET, "tarball"]), vec![], 404),
        (&long(["demo%00", "1.0.0", TARGET, "tarball"]), vec![], 404),
        (&long(["demo", "1.0.0", "any%00", "tarball"]), vec![], 404),
        (&long(["demo", "1.0.0", TARGET, "tarball%00"]), vec![], 404),
        (&long(["demo", "1.0.0%2f..%2f1.0.0", TARGET, "tarball"]), vec![], 404),
        (&long(["..", "1.0.0", TARGET, "tarball"]), vec![], 404),
        (&long(["d%c3%a9mo", "1.0.0", TARGET, "tarball"]), vec![], 404),
        (&long(["%ff", "1.0.0", TARGET, "tarball"]), vec![], 400),
        (&long(["demo", "%ff", TARGET, "tarball"]), vec![], 400),
        (&long(["demo", "-1", TARGET, "tarball"]), vec![], 404),
        (&long(["demo", "99999999999999999999.0.0", TARGET, "tarball"]), vec![], 404),
        (&format!("{good}?features=%00"), vec![], 400),
        (&format!("{good}?features=default&features=default"), vec![], 400),
        (&features, vec![], 404),
    ] {
        let start = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        let request = [start.as_bytes(), &headers, b"\r\n"].concat();
        let (line, _) = raw(address, &request).await;
        let shown = String::from_utf8_lossy(&headers);
        assert!(line.starts_with(&format!("http/1.1 {status}")), "{line}: {path:.80} {shown:.40}");
    }
    // A condition that holds says nothing of a body, and to a HEAD what it would be.
    for (method, length) in [("GET", false), ("HEAD", true)] {
        let request =
            format!("{method} {good} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nif-none-match: *\r\n\r\n");
        let (line, head) = raw(address, request.as_bytes()).await;
        assert!(line.starts_with("http/1.1 304"), "{line}");
        assert_eq!(head.contains("content-length: 5"), length, "{head}");
        assert!(!head.contains("content-length: 0"), "{head}");
    }
}
