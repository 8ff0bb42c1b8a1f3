//! What a reactor asks of a socket.

use nix::sys::socket::{setsockopt, sockopt};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

/// What the kernel keeps for a connection that takes nothing; without it, it would grow to megabytes.
const SEND_BYTES: usize = 64 * 1024;
pub(super) const READ_BYTES: usize = 4 * 1024;
/// What is read of a connection that is closed.
const MAX_UNREAD: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    All,
    /// So much of it; the socket takes no more for now.
    Part(usize),
    Gone,
}

pub(super) fn write(mut stream: &TcpStream, bytes: &[u8]) -> Written {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Written::Gone,
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Written::Part(written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Written::Gone,
        }
    }
    Written::All
}

/// What there is, or nothing; none when the peer is gone, or only listens, which we do not tell apart.
pub(super) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> Option<usize> {
    match stream.read(buffer) {
        Ok(0) => None,
        Ok(count) => Some(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(0),
        Err(_) => None,
    }
}

pub(super) fn bound_kernel_memory(stream: &TcpStream) {
    // Without the bound it works too.
    let _ = setsockopt(stream, sockopt::SndBuf, &SEND_BYTES);
}

/// What was written still arrives, whatever the peer had sent.
pub(super) fn close(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    // Closing a socket with unread bytes would take back what was written. Whoever goes on sending loses it.
    let (mut stream, mut bytes) = (stream, [0; READ_BYTES]);
    for _ in 0..MAX_UNREAD / READ_BYTES {
        if !matches!(stream.read(&mut bytes), Ok(READ_BYTES)) {
            break;
        }
    }
}
