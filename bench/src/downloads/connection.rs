//! A client's keep-alive connection, as cheap as it can be: one request at a time, and nothing is kept of an answer.

use super::answer::{self, Head};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A head with a presigned URL is below one kilobyte, a problem's answer below two.
const MAX_ANSWER: usize = 16 << 10;
/// On loopback a server that lives accepts at once, or has its queue full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// Why there is no answer. The connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the request was not sent: {0}")]
    NotSent(io::Error),
    /// The server may have done what was asked.
    #[error("the request was sent, and no answer came: {0}")]
    Cut(io::Error),
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; MAX_ANSWER], filled: 0 })
    }

    /// Sends a request and reads all of its answer; the body is dropped.
    pub(super) async fn ask(&mut self, request: &[u8]) -> Result<Head, Failure> {
        self.filled = 0;
        // What was written in part is no request yet.
        self.stream.write_all(request).await.map_err(Failure::NotSent)?;
        let head = self.read_head().await.map_err(Failure::Cut)?;
        let end = head.length + head.body;
        if end > MAX_ANSWER {
            let error = io::Error::new(io::ErrorKind::InvalidData, "an answer that is too large");
            return Err(Failure::Cut(error));
        }
        // A complete redirect was answered, even if its empty or explaining body breaks off.
        while self.filled < end {
            if self.read().await.is_err() {
                return Ok(Head { closes: true, ..head });
            }
        }
        Ok(head)
    }

    /// As text, the head of the last answer.
    pub(super) fn text(&self, head: &Head) -> String {
        String::from_utf8_lossy(&self.buffer[..head.length]).into_owned()
    }

    async fn read_head(&mut self) -> io::Result<Head> {
        loop {
            self.read().await?;
            let parsed = answer::parse(&self.buffer[..self.filled]);
            if let Some(head) = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                return Ok(head);
            }
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            // Also where the buffer is full: then nothing can be read any more.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.filled += count;
                Ok(())
            }
        }
    }
}

/// A request for a path, by a client of that name; without one it has none.
pub(super) fn request(path: &str, agent: &str, more: &str) -> Vec<u8> {
    let agent = if agent.is_empty() { String::new() } else { format!("user-agent: {agent}\r\n") };
    format!("GET {path} HTTP/1.1\r\nhost: cratemill.bench\r\n{agent}{more}\r\n").into_bytes()
}
