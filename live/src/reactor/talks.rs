//! The WebSockets of a reactor: what it knows of each.

use super::{
    Task,
    guest::{Guest, Work},
    listeners::RecordId,
    table::{SlotId, Table},
};
use crate::{
    auth::Holder,
    engine::{channel::ChannelId, viewer::Since},
    ws::frames::Inbound,
};
use bytes::Bytes;
use cratemill_protocol::topic::Topic;
use smallvec::SmallVec;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;

/// Topics that take no memory of their own.
const INLINE: usize = 2;
/// What a client may say at once, and in each second after that.
const BURST: u16 = 100;
const PER_SECOND: u64 = 20;
/// The same for listeners to Mastodon, which ask for all they show at the beginning.
const LISTENERS_BURST: u16 = 2_000;
const LISTENERS_PER_SECOND: u64 = 50;

/// WebSockets of a reactor, each at the place that its slot names: nothing is kept for one beside its `Talk`.
#[derive(Default)]
pub(super) struct Talks {
    all: Vec<Option<Talk>>,
    free: Vec<u32>,
}

impl Talks {
    pub(super) fn get(&self, table: &Table, id: SlotId) -> Option<&Talk> {
        self.all.get(table.talk(id)?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, table: &Table, id: SlotId) -> Option<&mut Talk> {
        self.all.get_mut(table.talk(id)?)?.as_mut()
    }

    /// Returns its place.
    pub(super) fn put(&mut self, talk: Talk) -> u32 {
        if let Some(place) = self.free.pop() {
            self.all[place as usize] = Some(talk);
            return place;
        }
        self.all.push(Some(talk));
        // There are no more of them than slots.
        u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn remove(&mut self, place: u32) -> Option<Talk> {
        let removed = self.all.get_mut(place as usize).and_then(Option::take);
        if removed.is_some() {
            self.free.push(place);
        }
        if self.free.len() == self.all.len() {
            // Gives memory back once nobody is there.
            *self = Self::default();
        }
        removed
    }
}

/// One WebSocket. What most have nothing of most of the time is in `extra`.
pub(super) struct Talk {
    pub(super) serial: u32,
    pub(super) follows: SmallVec<[Follows; INLINE]>,
    pub(super) extra: Option<Box<Extra>>,
    pub(super) party: Party,
    allowance: u16,
    /// Seconds since the reactor began, when the allowance was looked at.
    looked: u32,
}

pub(super) enum Party {
    /// One of ours, and what it may ask for.
    Client(Arc<Holder>),
    Guest(Guest),
    /// What it listens to stands in its record.
    Listener(RecordId),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Follows {
    pub(super) channel: ChannelId,
    pub(super) place: u32,
}

#[derive(Default)]
pub(super) struct Extra {
    pub(super) inbound: Inbound,
    /// In the order of asking.
    pub(super) asked: Vec<Asked>,
    pub(super) tasks: Vec<(Followed, Task)>,
    pub(super) backlog: Backlog,
    /// Why it is let go, once it has what it is owed.
    pub(super) last_words: Option<Bytes>,
    /// Of a guest.
    pub(super) work: Option<Box<Work>>,
}

/// Whole messages that wait for what was owed before them.
#[derive(Default)]
pub(super) struct Backlog {
    messages: VecDeque<(Bytes, Option<OwnedSemaphorePermit>)>,
    bytes: usize,
}

impl Backlog {
    pub(super) fn push(&mut self, bytes: Bytes, room: Option<OwnedSemaphorePermit>) {
        self.bytes += bytes.len();
        self.messages.push_back((bytes, room));
    }

    pub(super) fn pop(&mut self) -> Option<(Bytes, Option<OwnedSemaphorePermit>)> {
        let next = self.messages.pop_front()?;
        self.bytes -= next.0.len();
        Some(next)
    }

    /// How many bytes it was.
    pub(super) fn clear(&mut self) -> usize {
        self.messages.clear();
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A topic that was asked for.
pub(super) struct Asked {
    pub(super) number: u32,
    /// None once it is not wanted any more: it counts until its answer comes.
    pub(super) topic: Option<Topic>,
    /// Until it is looked into.
    pub(super) since: Option<Since>,
    /// Whoever looks into it sees that it is still here.
    pub(super) wanted: Arc<()>,
}

/// A topic that a task reads, with the number under which it was asked for.
pub(super) struct Followed {
    pub(super) number: u32,
    pub(super) topic: Topic,
}

impl Extra {
    fn is_empty(&self) -> bool {
        let no_work = self.work.as_ref().is_none_or(|work| work.is_empty());
        let asks_nothing = self.asked.is_empty() && self.tasks.is_empty();
        let owes_nothing = self.backlog.len() == 0 && self.last_words.is_none();
        self.inbound.is_empty() && owes_nothing && asks_nothing && no_work
    }
}

impl Talk {
    pub(super) fn new(serial: u32, party: Party) -> Self {
        let allowance = if matches!(party, Party::Listener(_)) { LISTENERS_BURST } else { BURST };
        Self { serial, follows: SmallVec::new(), extra: None, party, allowance, looked: 0 }
    }

    pub(super) fn guest(&mut self) -> Option<&mut Guest> {
        match &mut self.party {
            Party::Client(_) | Party::Listener(_) => None,
            Party::Guest(guest) => Some(guest),
        }
    }

    /// What a guest is in the middle of; [`Talk::tidy`] is to follow.
    pub(super) fn work(&mut self) -> Option<(&mut Guest, &mut Work)> {
        match &mut self.party {
            Party::Client(_) | Party::Listener(_) => None,
            Party::Guest(guest) => {
                Some((guest, self.extra.get_or_insert_default().work.get_or_insert_default()))
            }
        }
    }

    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Gives memory back that is not needed.
    pub(super) fn tidy(&mut self) {
        if self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
    }

    /// Whether the client may say one thing more.
    pub(super) fn may_speak(&mut self, now_s: u32) -> bool {
        let (burst, per_second) = match self.party {
            Party::Client(_) | Party::Guest(_) => (BURST, PER_SECOND),
            Party::Listener(_) => (LISTENERS_BURST, LISTENERS_PER_SECOND),
        };
        let more = u64::from(now_s.saturating_sub(self.looked)) * per_second;
        self.looked = now_s;
        self.allowance = u16::try_from(more).unwrap_or(burst).saturating_add(self.allowance).min(burst);
        let may = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        may
    }

    pub(super) fn topics(&self) -> usize {
        let extra = self.extra.as_ref().map_or(0, |extra| extra.asked.len() + extra.tasks.len());
        self.follows.len() + extra
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_that_waits_is_small() {
        assert!(size_of::<Option<Talk>>() <= 72, "{}", size_of::<Option<Talk>>());
    }
}
