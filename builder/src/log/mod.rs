//! The log of one attempt: the build's output and our own notes, in order, as numbered events.
//!
//! A handle can be cloned to each pipe; a pump turns what they write into events. Everything is bounded, so a server
//! that takes nothing holds the build's output back; nothing is dropped but what exceeds the job's own limit.

mod buffer;
mod pace;

pub use buffer::Stream;

use crate::events::{Abandoned, Events};
use buffer::{Buffer, Chunk};
use bytes::Bytes;
use cratemill_protocol::{Stage, builder::Event};
use pace::Pace;
use std::time::Instant;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep_until};
use tokio_util::sync::CancellationToken;

/// Reads of one pipe are at most this; with [`PIECES`] it bounds what waits for the pump.
pub const READ_BYTES: usize = 16 * 1024;
const PIECES: usize = 8;

#[derive(Debug)]
enum Piece {
    Output(Stream, Bytes),
    Note(String),
    Stage(Stage),
}

#[derive(Debug, Clone)]
pub struct Log {
    pieces: mpsc::Sender<Piece>,
    overflow: CancellationToken,
}

#[derive(Debug)]
pub struct Pump(JoinHandle<Result<(), Abandoned>>);

impl Log {
    pub fn start(events: Events, max_bytes: u64, max_chunk: usize) -> (Self, Pump) {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let overflow = CancellationToken::new();
        let buffer = Buffer::new(max_bytes, max_chunk);
        let pump = tokio::spawn(pump(receiver, events, buffer, overflow.clone()));
        (Self { pieces, overflow }, Pump(pump))
    }

    pub async fn output(&self, stream: Stream, bytes: Bytes) -> Result<(), Abandoned> {
        self.pieces.send(Piece::Output(stream, bytes)).await.map_err(|_| Abandoned)
    }

    /// A line of our own.
    pub async fn note(&self, line: impl Into<String>) -> Result<(), Abandoned> {
        self.pieces.send(Piece::Note(line.into())).await.map_err(|_| Abandoned)
    }

    pub async fn stage(&self, stage: Stage) -> Result<(), Abandoned> {
        self.pieces.send(Piece::Stage(stage)).await.map_err(|_| Abandoned)
    }

    /// Cancelled when the job has printed more than it may.
    pub fn overflow(&self) -> &CancellationToken {
        &self.overflow
    }
}

impl Pump {
    /// Waits until all that was written is on its way; every [`Log`] handle must be gone.
    pub async fn finish(self) -> Result<(), Abandoned> {
        self.0.await.unwrap_or(Err(Abandoned))
    }
}

async fn pump(
    mut pieces: mpsc::Receiver<Piece>,
    events: Events,
    mut buffer: Buffer,
    overflow: CancellationToken,
) -> Result<(), Abandoned> {
    let mut pace = Pace::default();
    loop {
        let flush_at = buffer.waits_since().map(|since| tokio::time::Instant::from_std(pace.due(since)));
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            () = sleep_until(flush_at.unwrap_or_else(tokio::time::Instant::now)), if flush_at.is_some() => {
                pace.went(Instant::now());
                send(&events, buffer.take()).await?;
                continue;
            }
        };
        match piece {
            Some(Piece::Output(stream, bytes)) => {
                if buffer.push(stream, &bytes, Instant::now()).is_err() {
                    overflow.cancel();
                }
                if buffer.is_full() {
                    send(&events, buffer.take()).await?;
                }
            }
            Some(Piece::Note(line)) => {
                buffer.note(&line, Instant::now());
                send(&events, buffer.take()).await?;
            }
            Some(Piece::Stage(stage)) => {
                buffer.end_characters();
                send(&events, buffer.take()).await?;
                events.send(Event::Stage { stage }).await?;
            }
            None => {
                buffer.end_characters();
                return send(&events, buffer.take()).await;
            }
        }
    }
}

async fn send(events: &Events, chunks: Vec<Chunk>) -> Result<(), Abandoned> {
    for Chunk { offset, text } in chunks {
        events.send(Event::Log { offset, text }).await?;
    }
    Ok(())
}
