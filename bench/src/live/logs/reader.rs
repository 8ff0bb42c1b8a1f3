//! One viewer of a log: follows it, and comes back with the id of the last event it saw.

use super::lines::{Fault, Follower};
use crate::live::{clock::now_us, histogram::Histogram};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpStream},
};

/// Far more than a piece of a log takes as JSON.
const MAX_LINE_BYTES: usize = 1 << 20;

/// What viewers of a log tell of themselves.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) following: usize,
    /// That have read the end of the log.
    pub(super) ended: usize,
    pub(super) lines: u64,
    /// From printing to reading, in microseconds, for all lines of a piece that of its first.
    pub(super) delays: Histogram,
    /// Text that was lost, came again or was damaged.
    pub(super) faults: u64,
    pub(super) last_fault: Option<String>,
    /// Connections that ended before the log did.
    pub(super) cuts: u64,
}

pub(super) struct Reader {
    socket: TcpStream,
    follower: Follower,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    id: String,
    pub(super) ended: bool,
}

impl Reader {
    pub(super) fn open(to: SocketAddrV4, path: &str) -> Result<Self> {
        let socket = ask(to, path, "")?;
        let follower = Follower::default();
        Ok(Self { socket, follower, partial: Vec::new(), id: String::new(), ended: false })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// After its connection ended.
    pub(super) fn reopen(&mut self, to: SocketAddrV4, path: &str) -> Result<()> {
        self.socket = ask(to, path, &self.id)?;
        self.partial.clear();
        Ok(())
    }

    /// Reads once. False at the end of the connection.
    pub(super) fn read(&mut self, buffer: &mut [u8], report: &mut Report) -> Result<bool> {
        let count = match self.socket.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error).context("cannot read"),
        };
        let (now, mut bytes) = (now_us(), &buffer[..count]);
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            if self.partial.is_empty() {
                self.line(line, now, report);
            } else {
                let mut partial = std::mem::take(&mut self.partial);
                partial.extend_from_slice(line);
                self.line(&partial, now, report);
                partial.clear();
                self.partial = partial;
            }
            bytes = &rest[1..];
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() > MAX_LINE_BYTES {
            bail!("a line without an end");
        }
        Ok(true)
    }

    /// Sizes of chunks stand between events, on lines of their own: our gateway cuts no event.
    fn line(&mut self, line: &[u8], now: u64, report: &mut Report) {
        if let Some(json) = line.strip_prefix(b"data: ") {
            self.event(json, now, report);
        } else if let Some(id) = line.strip_prefix(b"id: ") {
            self.id = String::from_utf8_lossy(id).into_owned();
        }
    }

    fn event(&mut self, json: &[u8], now: u64, report: &mut Report) {
        if json.ends_with(b"\"final\":true}") {
            self.ended = true;
            report.ended += 1;
            return;
        }
        match self.follower.take(json) {
            Ok(seen) => {
                report.lines += seen.lines;
                if let Some(at_us) = seen.at_us {
                    report.delays.add(now.saturating_sub(at_us), seen.lines);
                }
            }
            Err(fault) => {
                report.faults += 1;
                if let Fault::Place { at, .. } = fault {
                    self.follower.offset = at;
                }
                report.last_fault = Some(fault.to_string());
            }
        }
    }
}

fn ask(to: SocketAddrV4, path: &str, id: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(to).context("cannot connect")?;
    let resume = if id.is_empty() { String::new() } else { format!("last-event-id: {id}\r\n") };
    let headers = format!("host: bench\r\naccept: text/event-stream\r\n{resume}");
    socket.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes())?;
    let mut status = [0; 12];
    socket.read_exact(&mut status).context("no answer")?;
    if status != *b"HTTP/1.1 200" {
        bail!("the answer is {}", String::from_utf8_lossy(&status));
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}
