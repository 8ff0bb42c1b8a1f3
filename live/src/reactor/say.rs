//! What a reactor says, in the dialect of its connections.

use crate::{
    dialects::native::{encode, ws},
    engine::{
        channel::{ChannelId, Entry},
        hub::Hub,
        position::Position,
        viewer::{DropReason, Item, What},
    },
    ws::frames,
};
use bytes::{Bytes, BytesMut};
use cratemill_protocol::topic::Topic;
use std::sync::Arc;

/// One write: the sooner the next connection has its turn, and what a stuck one holds.
const WRITE_BYTES: usize = 64 * 1024;
/// And no more messages than this.
const AT_ONCE: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Events,
    WebSocket,
}

/// What is due at a cursor.
#[derive(Debug, Clone)]
pub(super) enum Due {
    /// These bytes bring a connection to `next`; `head` is where it has everything.
    Bytes {
        bytes: Bytes,
        next: u32,
        head: u32,
        messages: u32,
    },
    Nothing,
    /// The ring has forgotten it.
    TooLate,
    Broken,
}

pub(super) fn due(hub: &Hub, channel: ChannelId, cursor: u32, dialect: Dialect) -> Due {
    // Encoding takes longer than taking them, and the lock is everybody's.
    let taken = hub.channels(|channels, _| {
        let channel = channels.get(channel).filter(|channel| !channel.broken).ok_or(Due::Broken)?;
        let entries: Vec<Entry> =
            channel.ring.from(cursor).ok_or(Due::TooLate)?.take(AT_ONCE).cloned().collect();
        Ok((entries, channel.ring.head(), Arc::clone(&channel.topics), channel.sources.clone()))
    });
    let (entries, head, topics, sources) = match taken {
        Ok(taken) => taken,
        Err(due) => return due,
    };
    let (mut out, mut messages) = (BytesMut::new(), 0);
    for entry in &entries {
        let position = entry.mark.position(&sources);
        match dialect {
            Dialect::Events => message(entry, position, &mut out),
            Dialect::WebSocket => ws_message(entry, &topics, &position, &mut out),
        }
        messages += 1;
        if out.len() >= WRITE_BYTES {
            break;
        }
    }
    if messages == 0 {
        return Due::Nothing;
    }
    Due::Bytes { bytes: out.freeze(), next: cursor.wrapping_add(messages), head, messages }
}

/// A sign of life with the position, for a connection that has everything.
pub(super) fn alive(hub: &Hub, channel: ChannelId, cursor: u32) -> Option<Bytes> {
    hub.channels(|channels, mark| {
        let channel =
            channels.get(channel).filter(|channel| !channel.broken && channel.ring.head() == cursor)?;
        let mut out = BytesMut::new();
        encode::item(&Item { what: What::Alive, position: mark.position(&channel.sources) }, &mut out);
        Some(out.freeze())
    })
}

fn message(entry: &Entry, position: Position, out: &mut BytesMut) {
    encode::item(&Item { what: What::Frame(Arc::clone(&entry.frame)), position }, out);
}

/// A WebSocket has a channel for each of its topics.
fn ws_message(entry: &Entry, topics: &[Topic], position: &Position, out: &mut BytesMut) {
    for topic in topics {
        frames::put_text(&ws::event(&topic.to_string(), &entry.frame, position), out);
    }
}

pub(super) fn text(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    frames::put_text(message, &mut out);
    out.freeze()
}

pub(super) fn dropped(reason: DropReason) -> Bytes {
    encode::dropped(reason)
}

pub(super) fn draining() -> Bytes {
    encode::draining()
}
