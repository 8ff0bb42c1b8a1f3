//! People who use the event API: over connections of their own, as plain as can be, so that they cost little.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const COLLECTION: &str = "6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77";

pub(super) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A token of somebody new.
pub(super) async fn log_in(address: SocketAddr) -> Result<String> {
    let who =
        json!({"username": format!("bench-{}", now_us()), "password": "bench", "collection_id": COLLECTION});
    let client = reqwest::Client::new();
    let post = |path: &str| client.post(format!("http://{address}{path}")).json(&who).send();
    post("/users").await?.error_for_status()?;
    let answer: Value = post("/login").await?.error_for_status()?.json().await?;
    Ok(answer["jwt"].as_str().context("no token")?.to_owned())
}

/// One who inserts.
pub(super) struct Inserter {
    stream: TcpStream,
    address: SocketAddr,
    token: String,
    buffer: Vec<u8>,
}

impl Inserter {
    pub(super) async fn connect(address: SocketAddr, token: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, token: token.to_owned(), buffer: vec![0; 8_192] })
    }

    /// An event whose data is the time at which it is sent; returns when it is inserted.
    pub(super) async fn insert(&mut self, name: &str, timestamp: i64) -> Result<()> {
        let body = format!(
            "{{\"event\":\"{name}\",\"collection_id\":\"{COLLECTION}\",\"timestamp\":{timestamp},\"data\":{}}}",
            now_us()
        );
        let request = format!(
            "POST /insert HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        // Answers are shorter than the buffer, and come whole, head and all, one at a time.
        let mut length = 0;
        loop {
            let read = timeout(PATIENCE, self.stream.read(&mut self.buffer[length..])).await??;
            ensure!(read > 0, "the connection ended");
            length += read;
            if self.buffer[..length].ends_with(b"}}") {
                break;
            }
        }
        ensure!(
            self.buffer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&self.buffer[..length])
        );
        Ok(())
    }
}

/// One who watches.
pub(super) struct Watcher {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
}

impl Watcher {
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET /events HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
        let mut this = Self { stream, buffer: vec![0; 256 << 10], line: Vec::new() };
        let mut first = [0; 12];
        timeout(PATIENCE, this.stream.read_exact(&mut first)).await??;
        ensure!(&first == b"HTTP/1.1 200", "refused: {}", String::from_utf8_lossy(&first));
        Ok(this)
    }

    /// What came of the next read: the data of events, and not what is said of the connection.
    pub(super) async fn read(&mut self, mut see: impl FnMut(&[u8])) -> Result<()> {
        let read = match timeout(PATIENCE, self.stream.read(&mut self.buffer)).await? {
            Ok(0) | Err(_) => bail!("the connection ended"),
            Ok(read) => read,
        };
        for line in self.buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(line);
            if self.line.ends_with(b"\n") {
                if let Some(data) = self.line.strip_prefix(b"data: ") {
                    let data = data.trim_ascii_end();
                    if !matches!(data, b"ping" | b"connected") {
                        see(data);
                    }
                }
                self.line.clear();
            }
        }
        Ok(())
    }
}
