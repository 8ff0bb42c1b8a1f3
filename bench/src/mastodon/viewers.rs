//! Viewers over WebSocket: thousands in one thread that counts their messages and looks at nothing else of them.

use super::farm::token;
use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Viewers that connect at once.
const CONNECTING: usize = 64;
const EVENTS: usize = 1_024;
const READ_BYTES: usize = 256 << 10;
const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;
/// Without a payload, and masked with nothing.
const PONG: [u8; 6] = [0x8A, 0x80, 0, 0, 0, 0];

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    bytes: AtomicU64,
    /// Connections that the server has closed.
    gone: AtomicUsize,
    stop: AtomicBool,
}

/// Dropping it closes the connections.
pub(super) struct Viewers {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// One connection, as far as a message has come.
struct Viewer {
    stream: TcpStream,
    /// Of the head of a frame.
    head: Vec<u8>,
    /// Of the payload that is left.
    left: usize,
}

impl Viewers {
    /// Each opens `stream` with the token of the account that `account` says.
    pub(super) async fn open(
        to: SocketAddr,
        count: usize,
        stream: &str,
        account: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let connect = |number| connect(to, stream, account(number));
        let viewers: Vec<Viewer> =
            stream::iter((0..count).map(connect)).buffered(CONNECTING).try_collect().await?;
        let counts = Arc::<Counts>::default();
        let theirs = Arc::clone(&counts);
        let thread = std::thread::spawn(move || {
            if let Err(error) = read(viewers, &theirs) {
                eprintln!("viewers: {error:#}");
                theirs.gone.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { counts, thread: Some(thread) })
    }

    pub(super) fn messages(&self) -> Result<u64> {
        let gone = self.counts.gone.load(Ordering::Relaxed);
        ensure!(gone == 0, "the server closed {gone} connections");
        Ok(self.counts.messages.load(Ordering::Relaxed))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn connect(to: SocketAddr, stream: &str, account: usize) -> Result<Viewer> {
    let mut socket = tokio::net::TcpStream::connect(to).await?;
    let path = format!("/api/v1/streaming?stream={stream}&access_token={}", token(account));
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    // Byte by byte: what comes behind it is not the head's.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, socket.read_u8()).await.context("no answer")??);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "refused: {}", String::from_utf8_lossy(&head));
    Ok(Viewer { stream: socket.into_std()?, head: Vec::new(), left: 0 })
}

fn read(mut viewers: Vec<Viewer>, counts: &Counts) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (number, viewer) in viewers.iter().enumerate() {
        epoll.add(&viewer.stream, EpollEvent::new(EpollFlags::EPOLLIN, number.try_into()?))?;
    }
    let (mut events, mut buffer) = (vec![EpollEvent::empty(); EVENTS], vec![0; READ_BYTES]);
    while !counts.stop.load(Ordering::Relaxed) {
        let count = match epoll.wait(&mut events, EpollTimeout::from(100_u8)) {
            Err(nix::errno::Errno::EINTR) => 0,
            count => count?,
        };
        for event in &events[..count] {
            let viewer = &mut viewers[usize::try_from(event.data())?];
            if viewer.advance(&mut buffer, counts).is_err() {
                counts.gone.fetch_add(1, Ordering::Relaxed);
                epoll.delete(&viewer.stream)?;
            }
        }
    }
    Ok(())
}

impl Viewer {
    fn advance(&mut self, buffer: &mut [u8], counts: &Counts) -> Result<()> {
        let count = match self.stream.read(buffer) {
            Ok(0) => bail!("closed"),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        counts.bytes.fetch_add(count as u64, Ordering::Relaxed);
        let (mut bytes, mut messages) = (&buffer[..count], 0);
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            (self.left, bytes) = (self.left - skipped, &bytes[skipped..]);
            let Some(first) = bytes.first() else { break };
            self.head.push(*first);
            bytes = &bytes[1..];
            let Some(length) = length(&self.head) else { continue };
            match self.head[0] {
                TEXT => messages += 1,
                PING => std::io::Write::write_all(&mut self.stream, &PONG)?,
                CLOSE => bail!("closed with a word"),
                _ => {}
            }
            self.left = length;
            self.head.clear();
        }
        counts.messages.fetch_add(messages, Ordering::Relaxed);
        Ok(())
    }
}

/// Of the payload, once the head of the frame is whole.
fn length(head: &[u8]) -> Option<usize> {
    match *head {
        [_, 126, high, low] => Some(usize::from(u16::from_be_bytes([high, low]))),
        [_, 127, ref rest @ ..] => {
            Some(usize::try_from(u64::from_be_bytes(rest.try_into().ok()?)).unwrap_or(usize::MAX))
        }
        [_, 126, ..] | [] | [_] => None,
        [_, length, ..] => Some(usize::from(length)),
    }
}
