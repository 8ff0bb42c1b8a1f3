//! What a reactor says, in the dialect of its connections.

use crate::{
    dialects::Dialect,
    engine::{
        channel::{ChannelId, Entry},
        hub::Hub,
    },
};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// One write: the sooner the next connection has its turn, and what a stuck one holds.
const WRITE_BYTES: usize = 64 * 1024;
/// And no more messages than this.
const AT_ONCE: usize = 512;

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
        dialect.message(&entry.frame, &topics, &entry.mark.position(&sources), &mut out);
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
pub(super) fn alive(hub: &Hub, channel: ChannelId, cursor: u32, dialect: Dialect) -> Option<Bytes> {
    hub.channels(|channels, mark| {
        let channel =
            channels.get(channel).filter(|channel| !channel.broken && channel.ring.head() == cursor)?;
        Some(dialect.alive(Some(&mark.position(&channel.sources))))
    })
}
