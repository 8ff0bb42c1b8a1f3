//! The connections of a reactor: twenty bytes each.

use crate::{dialects::Dialect, engine::channel::ChannelId};
use std::net::TcpStream;

pub(super) type SlotId = u32;

#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is one thing by itself, and a byte")]
pub(super) struct Slot {
    /// None for a slot that is free.
    pub(super) stream: Option<TcpStream>,
    /// What it follows, and
    pub(super) channel: ChannelId,
    /// its place among the members. Of a WebSocket, its place among the talks, where what it follows stands.
    pub(super) member: u32,
    pub(super) dialect: Dialect,
    /// It did not take everything: what it is owed stands elsewhere.
    pub(super) owing: bool,
    /// It got something since the sweep came by.
    pub(super) heard: bool,
    /// It got something that it has not confirmed.
    pub(super) told: bool,
    /// It is in the middle of a message of several frames.
    pub(super) speaking: bool,
    /// It says goodbye once it has what it is owed.
    pub(super) leaving: bool,
    /// Sweeps since then.
    pub(super) silent: u8,
    /// Times that it sent us something: nothing is expected of it.
    pub(super) noise: u8,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    /// Freed, but the events at hand may still name them.
    freed: Vec<SlotId>,
    taken: usize,
}

impl Table {
    pub(super) fn put(&mut self, slot: Slot) -> Option<SlotId> {
        let id = if let Some(id) = self.free.pop() {
            self.slots[id as usize] = slot;
            id
        } else {
            let id = SlotId::try_from(self.slots.len()).ok()?;
            self.slots.push(slot);
            id
        };
        self.taken += 1;
        Some(id)
    }

    pub(super) fn get(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(id as usize).filter(|slot| slot.stream.is_some())
    }

    /// The place of a WebSocket among the talks.
    pub(super) fn talk(&self, id: SlotId) -> Option<usize> {
        let slot = self.slots.get(id as usize).filter(|slot| slot.stream.is_some())?;
        slot.dialect.has_talk().then_some(slot.member as usize)
    }

    /// It is not used again before [`Table::reuse`].
    pub(super) fn take(&mut self, id: SlotId) -> Option<Slot> {
        let slot = self.slots.get_mut(id as usize).filter(|slot| slot.stream.is_some())?;
        self.freed.push(id);
        self.taken -= 1;
        Some(std::mem::take(slot))
    }

    pub(super) fn reuse(&mut self) {
        self.free.append(&mut self.freed);
    }

    /// Slots, the free ones included.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Gives memory back once nobody is there.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.slots.capacity() > 0 {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_waits_is_small() {
        assert!(size_of::<Slot>() <= 20, "{}", size_of::<Slot>());
    }
}
