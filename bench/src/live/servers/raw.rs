//! The limit of the machine for one write to each viewer and event: sockets in a list, and a loop over them.

use anyhow::{Context, Result};
use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

pub(in crate::live) const FOLLOW_PATH: &str = "/follow";
pub(in crate::live) const PUBLISH_PATH: &str = "/publish";
/// The bench sends events that are far shorter.
const MAX_BODY: usize = 64 << 10;

type Viewers = Arc<Mutex<Vec<TcpStream>>>;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let listener = TcpListener::bind(arguments.listen).context("cannot listen")?;
    let viewers = Viewers::default();
    for stream in listener.incoming() {
        let mut reader = BufReader::with_capacity(1 << 10, stream?);
        // A client that is gone again costs nobody else anything.
        let Ok(Some((path, length))) = head(&mut reader) else { continue };
        if path == PUBLISH_PATH {
            let viewers = Arc::clone(&viewers);
            thread::spawn(move || publish(reader, length, &viewers));
        } else {
            let _ = follow(reader.into_inner(), &viewers);
        }
    }
    Ok(())
}

fn follow(mut stream: TcpStream, viewers: &Viewers) -> Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    viewers.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    Ok(())
}

/// The head of the first request has been read, its body has not.
fn publish(mut reader: BufReader<TcpStream>, mut length: usize, viewers: &Viewers) -> Result<()> {
    for sequence in 1_u64.. {
        let mut body = vec![0; length.min(MAX_BODY)];
        reader.read_exact(&mut body)?;
        let frame = [format!("id: {sequence}\nevent: queue\ndata: ").as_bytes(), &body, b"\n\n"].concat();
        viewers.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|viewer| {
            // Who takes nothing for a moment misses it: nothing is kept here.
            viewer.write(&frame).err().is_none_or(|error| error.kind() == ErrorKind::WouldBlock)
        });
        reader.get_mut().write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")?;
        match head(&mut reader)? {
            Some((_, next)) => length = next,
            None => break,
        }
    }
    Ok(())
}

/// The path of a request, and the length of its body; nothing at the end of the connection.
fn head(reader: &mut BufReader<TcpStream>) -> Result<Option<(String, usize)>> {
    let (mut line, mut path, mut length) = (String::new(), None, 0);
    while reader.read_line(&mut line)? > 0 {
        let text = line.trim_end();
        if text.is_empty() {
            return Ok(path.map(|path| (path, length)));
        }
        if path.is_none() {
            path = text.split(' ').nth(1).map(str::to_owned);
        }
        if let Some(value) = text.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        line.clear();
    }
    Ok(None)
}
