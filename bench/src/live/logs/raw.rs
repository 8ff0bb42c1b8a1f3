//! What this machine can do at most: one thread that writes the same bytes to the same viewers, and does nothing else.

use super::{
    flood::{PIECE_BYTES, VIEWERS},
    lines::{self, LINE_BYTES},
    readers::Readers,
};
use crate::{
    live::clock::now_us,
    statistics::{count, hundredths},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};
use tokio::{task::spawn_blocking, time::Instant};

const PIECES: u64 = 2_000;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const END_TIMEOUT: Duration = Duration::from_mins(1);

pub(super) async fn measure() -> Result<Value> {
    let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr()?.port());
    let mut readers = Readers::start(to, "/", VIEWERS)?;
    let viewers = spawn_blocking(move || accept(&listener)).await??;
    readers.report().await?;
    let started = Instant::now();
    let lines = spawn_blocking(move || write(viewers)).await??;
    let report = readers.ended(VIEWERS, END_TIMEOUT).await?;
    let time = started.elapsed();
    readers.stop().await?;
    let per_s = count(usize::try_from(report.lines)? / VIEWERS) / time.as_secs_f64();
    println!(
        "  plain writes: {lines} lines to {VIEWERS} viewers, {per_s:.0} lines a second, {} faults",
        report.faults
    );
    Ok(json!({ "log_raw_lines_per_s": hundredths(per_s).round() }))
}

fn accept(listener: &TcpListener) -> Result<Vec<TcpStream>> {
    let mut viewers = Vec::new();
    while viewers.len() < VIEWERS {
        let (mut viewer, _) = listener.accept()?;
        // A request is one small write.
        let _ = viewer.read(&mut [0; 1_024])?;
        viewer.write_all(HEAD)?;
        viewer.set_nodelay(true)?;
        viewers.push(viewer);
    }
    Ok(viewers)
}

/// Each piece to each viewer in turn; one that has no room is waited for.
fn write(mut viewers: Vec<TcpStream>) -> Result<u64> {
    let (mut line, mut offset) = (0, 0);
    for _ in 0..PIECES {
        let mut text = String::new();
        while text.len() < PIECE_BYTES {
            lines::put(line, now_us(), &mut text);
            line += 1;
        }
        let json = serde_json::to_string(&text)?;
        let event = format!(
            "id: {offset}\nevent: log\ndata: {{\"topic\":\"job.1.log\",\"attempt\":1,\"offset\":{offset},\"text\":{json}}}\n\n"
        );
        for viewer in &mut viewers {
            viewer.write_all(event.as_bytes()).context("a viewer is gone")?;
        }
        offset = line * LINE_BYTES;
    }
    for viewer in &mut viewers {
        viewer.write_all(b"data: {\"final\":true}\n\n")?;
    }
    Ok(line)
}
