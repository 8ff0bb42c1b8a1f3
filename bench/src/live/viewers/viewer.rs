//! One viewer: connects, asks, follows, and comes back with the id of the last event it saw.
//!
//! ```text
//! away -> connecting -> asked -> following -> away
//!            |            |
//!            +------------+--- failed: away
//! ```

use super::{
    report::Report,
    stream::{Parser, Seen, TEXT},
};
use crate::live::clock::now_us;
use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollEvent, EpollFlags},
        socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt,
        },
    },
};
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd,
};

/// Younger than this, an event is the newest of a topic with two a second: who was cut and sees one has caught up.
const FRESH_US: u64 = 600_000;

const HANDSHAKE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
const MASKED: u8 = 0x80;

/// What a viewer asks for.
pub(super) struct Asks {
    pub(super) path: String,
    /// What a WebSocket says first; empty for a stream of events.
    pub(super) subscribe: String,
}

#[derive(Debug, Default)]
pub(super) struct Viewer {
    state: State,
    parser: Parser,
    /// Of the last event; 0 before the first.
    pub(super) number: u64,
    behind: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Away,
    Connecting(TcpStream),
    Asked(TcpStream),
    Following(TcpStream),
}

pub(super) enum Progress {
    None,
    Follows,
    /// The connection ended, after it followed.
    Cut,
}

impl Viewer {
    pub(super) fn connect(
        &mut self,
        epoll: &Epoll,
        place: u64,
        from: Ipv4Addr,
        to: SocketAddrV4,
    ) -> Result<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)
            .context("cannot have one more socket")?;
        // A port is then taken for each server anew, and there are 28,000 for each.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {to}")),
        }
        epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLOUT, place))?;
        self.parser.restart();
        self.state = State::Connecting(TcpStream::from(fd));
        Ok(())
    }

    /// Does what its socket is ready for. After an error the viewer is away and never followed.
    pub(super) fn advance(
        &mut self,
        epoll: &Epoll,
        place: u64,
        asks: impl FnOnce() -> Asks,
        buffer: &mut [u8],
        report: &mut Report,
    ) -> Result<Progress> {
        match std::mem::take(&mut self.state) {
            State::Away => Ok(Progress::None),
            State::Connecting(socket) => {
                if let Some(error) = socket.take_error()? {
                    return Err(error).context("not connected");
                }
                self.ask(&socket, &asks()).context("cannot ask")?;
                epoll.modify(&socket, &mut EpollEvent::new(EpollFlags::EPOLLIN, place))?;
                self.state = State::Asked(socket);
                Ok(Progress::None)
            }
            State::Asked(socket) => match self.read(&socket, buffer, report)? {
                Heard::Events => {
                    self.state = State::Asked(socket);
                    Ok(Progress::None)
                }
                Heard::Status(101) => {
                    subscribe(&socket, &asks().subscribe).context("cannot subscribe")?;
                    self.state = State::Asked(socket);
                    Ok(Progress::None)
                }
                Heard::Status(200) => {
                    self.state = State::Following(socket);
                    Ok(Progress::Follows)
                }
                Heard::Status(status) => bail!("status {status}"),
                Heard::End => bail!("it closes"),
            },
            State::Following(socket) => {
                match self.read(&socket, buffer, report) {
                    Ok(Heard::Events) => {
                        self.state = State::Following(socket);
                        return Ok(Progress::None);
                    }
                    Ok(_) => {}
                    Err(error) => report.last_failure = Some(format!("{error:#}")),
                }
                if !std::mem::replace(&mut self.behind, true) {
                    report.behind += 1;
                }
                Ok(Progress::Cut)
            }
        }
    }

    fn ask(&self, mut socket: &TcpStream, Asks { path, subscribe }: &Asks) -> io::Result<()> {
        let id = String::from_utf8_lossy(self.parser.id());
        let wants = if subscribe.is_empty() {
            let resume = if id.is_empty() { String::new() } else { format!("last-event-id: {id}\r\n") };
            format!("accept: text/event-stream\r\n{resume}")
        } else {
            HANDSHAKE.to_owned()
        };
        let headers = format!("host: bench\r\n{wants}");
        // Far less than the buffer of a new connection.
        socket.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes())
    }

    fn read(&mut self, mut socket: &TcpStream, buffer: &mut [u8], report: &mut Report) -> Result<Heard> {
        let count = match socket.read(buffer) {
            Ok(0) => return Ok(Heard::End),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(Heard::Events);
            }
            Err(error) => return Err(error).context("cannot read"),
        };
        let (Self { parser, number, behind, .. }, now) = (self, now_us());
        let mut heard = Heard::Events;
        parser.feed(&buffer[..count], |seen| match seen {
            Seen::Status(status) => heard = Heard::Status(status),
            // What a WebSocket waits for is what an answer is to others.
            Seen::Subscribed => heard = Heard::Status(200),
            Seen::End => heard = Heard::End,
            Seen::Event { number: next, at_us } => {
                let delay = now.saturating_sub(at_us);
                report.events += 1;
                report.delays.add(delay, 1);
                match next.checked_sub(*number) {
                    None | Some(0) => report.repeated += 1,
                    Some(step) if *number > 0 => report.missed += step - 1,
                    Some(_) => {}
                }
                *number = next.max(*number);
                if *behind && delay <= FRESH_US {
                    *behind = false;
                    report.behind -= 1;
                    report.caught_up_us = now;
                }
            }
        })?;
        Ok(heard)
    }
}

/// In a frame of a client: masked, with a mask that changes nothing.
fn subscribe(mut socket: &TcpStream, message: &str) -> io::Result<()> {
    let length = u8::try_from(message.len()).ok().filter(|length| *length < 126);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    let mut frame = vec![TEXT, MASKED | length, 0, 0, 0, 0];
    frame.extend(message.as_bytes());
    socket.write_all(&frame)
}

/// What one read brought, beside events.
enum Heard {
    Events,
    Status(u16),
    End,
}
