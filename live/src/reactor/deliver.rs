//! What connections get, and what happens when they do not take it.

use super::{
    run::Reactor,
    say::{self, Due},
    socket::{self, Written},
    table::SlotId,
};
use crate::{
    dialects::{Dialect, native::encode::drop_reason},
    engine::{channel::ChannelId, viewer::DropReason},
    metrics,
};
use bytes::Bytes;
use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

/// What all connections of a node that do not take everything may hold together, each counted by itself: they share most of
/// it.
const OWED_BYTES: usize = 256 << 20;

/// Cursors of a channel of which the bytes are kept while its members are told. After a storm each has its own.
const MAX_DUES: usize = 8;
/// A connection that takes little by little what it is owed has so long.
const TRICKLE: Duration = Duration::from_mins(2);

/// A connection in its channel.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) slot: SlotId,
    /// The next message for it.
    pub(super) cursor: u32,
}

#[derive(Debug)]
pub(super) struct Owed {
    bytes: Bytes,
    /// When it last took something.
    since: Instant,
    first: Instant,
}

impl Reactor {
    /// All that is due to the members of a channel.
    pub(super) fn deliver(&mut self, channel: ChannelId) {
        let Some(mut members) = self.members.remove(&channel) else { return };
        let mut told = Telling::default();
        for member in &mut members {
            self.tell(channel, member, &mut told);
        }
        // Before anybody is closed: that takes it from its place among the members.
        self.members.insert(channel, members);
        self.settle(channel, told);
    }

    /// One member. Nobody is closed here.
    fn tell(&mut self, channel: ChannelId, member: &mut Member, told: &mut Telling) {
        let Some(slot) =
            self.table.get(member.slot).filter(|slot| !slot.owing && !slot.leaving && !slot.speaking)
        else {
            return;
        };
        let dialect = slot.dialect;
        // Most are at the same cursor: it was made for the one before.
        let key = (member.cursor, dialect);
        let known = told.dues.iter().rposition(|(known, _)| *known == key);
        let known = known.unwrap_or_else(|| {
            if told.dues.len() >= MAX_DUES {
                told.dues.remove(0);
            }
            told.dues.push((key, say::due(&self.hub, channel, member.cursor, dialect)));
            told.dues.len() - 1
        });
        let due = &told.dues[known].1;
        let Due::Bytes { bytes, next, head, messages } = due else {
            match due {
                Due::TooLate => told.gone.push((member.slot, Some(DropReason::Slow))),
                Due::Broken => told.gone.push((member.slot, Some(DropReason::Broken))),
                Due::Nothing | Due::Bytes { .. } => {}
            }
            return;
        };
        let Some(stream) = &slot.stream else { return };
        member.cursor = *next;
        (slot.heard, slot.told) = (true, true);
        let written = socket::write(stream, bytes);
        if written != Written::Gone {
            told.messages += u64::from(*messages);
        }
        match written {
            Written::All => told.unfinished |= next != head,
            Written::Part(count) => {
                let worst = self.owe(member.slot, rest(bytes, count));
                told.gone.extend(worst.map(|worst| (worst, Some(DropReason::Slow))));
            }
            Written::Gone => told.gone.push((member.slot, None)),
        }
    }

    fn settle(&mut self, channel: ChannelId, told: Telling) {
        metrics::frames(told.messages);
        if told.unfinished {
            self.unfinished.push(channel);
            // A turn follows, also where this is none.
            self.due = true;
        }
        for (slot, reason) in told.gone {
            match reason {
                Some(reason) => self.drop_for(slot, reason),
                None => self.close(slot),
            }
        }
    }

    /// Bytes for one connection, which is owed nothing.
    pub(super) fn give(&mut self, id: SlotId, bytes: &Bytes) {
        let Some(slot) = self.table.get(id) else { return };
        let Some(stream) = &slot.stream else { return };
        slot.heard = true;
        match socket::write(stream, bytes) {
            Written::All => {}
            Written::Part(count) => {
                if let Some(worst) = self.owe(id, rest(bytes, count)) {
                    self.drop_for(worst, DropReason::Slow);
                }
            }
            Written::Gone => self.close(id),
        }
    }

    /// If all together are owed more than there is room for, one has to go.
    pub(super) fn owe(&mut self, id: SlotId, bytes: Bytes) -> Option<SlotId> {
        let slot = self.table.get(id)?;
        slot.owing = true;
        self.listen(id);
        self.owed_bytes += bytes.len();
        let now = Instant::now();
        self.owed.insert(id, Owed { bytes, since: now, first: now });
        self.forgive()
    }

    /// Forgets what the one is owed that is owed most, if there is no room for all. It is to be closed.
    pub(super) fn forgive(&mut self) -> Option<SlotId> {
        if self.owed_bytes <= OWED_BYTES / self.reactors {
            return None;
        }
        let costs =
            |(id, owed): &(&SlotId, &Owed)| (owed.bytes.len() + self.backlog(**id), Reverse(owed.first));
        let id = *self.owed.iter().max_by_key(costs)?.0;
        metrics::overflow();
        self.forget_debt(id);
        Some(id)
    }

    fn forget_debt(&mut self, id: SlotId) {
        let owed = self.owed.remove(&id).map_or(0, |owed| owed.bytes.len());
        self.owed_bytes -= owed + self.clear_backlog(id);
    }

    /// The connection takes bytes again.
    pub(super) fn pay(&mut self, id: SlotId) {
        let Some(mut owed) = self.owed.remove(&id) else { return };
        self.owed_bytes -= owed.bytes.len();
        let Some(slot) = self.table.get(id) else { return };
        let Some(stream) = &slot.stream else { return };
        match socket::write(stream, &owed.bytes) {
            Written::All => self.is_even(id),
            Written::Part(count) => {
                if count > 0 {
                    owed.since = Instant::now();
                }
                owed.bytes = owed.bytes.slice(count..);
                self.owed_bytes += owed.bytes.len();
                self.owed.insert(id, owed);
            }
            Written::Gone => self.close(id),
        }
    }

    /// It has all that it was owed: now what waited behind that.
    fn is_even(&mut self, id: SlotId) {
        let Some(slot) = self.table.get(id) else { return };
        slot.owing = false;
        slot.heard = true;
        while self.say_next(id) {
            if self.table.get(id).is_none_or(|slot| slot.owing) {
                return;
            }
        }
        if self.table.get(id).is_some_and(|slot| slot.leaving) {
            return self.farewell(id);
        }
        self.listen(id);
        self.has_spoken(id);
        self.go_on(id);
    }

    /// What is due to one connection that has taken everything before.
    pub(super) fn go_on(&mut self, id: SlotId) {
        let Some(slot) = self.table.get(id) else { return };
        if !slot.dialect.has_talk() {
            let (channel, place) = (slot.channel, slot.member);
            return self.go_on_in(id, channel, place);
        }
        let mut next = 0;
        while let Some(follows) =
            self.talks.get(&self.table, id).and_then(|talk| talk.follows.get(next)).copied()
        {
            self.go_on_in(id, follows.channel, follows.place);
            next += 1;
        }
    }

    fn go_on_in(&mut self, id: SlotId, channel: ChannelId, place: u32) {
        let place = place as usize;
        let Some(member) = self.members.get(&channel).and_then(|members| members.get(place)) else { return };
        let mut copy = Member { slot: id, cursor: member.cursor };
        let mut told = Telling::default();
        self.tell(channel, &mut copy, &mut told);
        if let Some(member) = self.members.get_mut(&channel).and_then(|members| members.get_mut(place)) {
            member.cursor = copy.cursor;
        }
        self.settle(channel, told);
    }

    /// Whether a connection that is owed something has no hope of getting the rest. One that takes it too late learns so
    /// when it has it.
    pub(super) fn is_stuck(&self, id: SlotId) -> bool {
        self.owed
            .get(&id)
            .is_none_or(|owed| owed.since.elapsed() > self.stuck_after || owed.first.elapsed() > TRICKLE)
    }

    /// To one that got nothing for a while. Its peer may be gone: a write finds out.
    pub(super) fn show_life(&mut self, id: SlotId) {
        let Some(slot) = self.table.get(id) else { return };
        let (dialect, channel, place) = (slot.dialect, slot.channel, slot.member as usize);
        if dialect.beat_s().is_some() || dialect.is_guest() {
            return self.go_on(id);
        }
        let sign = if dialect.has_talk() {
            self.sign_of_life(id, dialect)
        } else {
            let member = self.members.get(&channel).and_then(|members| members.get(place));
            member.and_then(|member| say::alive(&self.hub, channel, member.cursor, dialect))
        };
        let Some(bytes) = sign else { return self.go_on(id) };
        self.give(id, &bytes);
    }

    /// Tells it why, if it still takes that.
    pub(super) fn drop_for(&mut self, id: SlotId, reason: DropReason) {
        let Some(slot) = self.table.get(id) else { return };
        // One that does not take its last words either was counted before.
        if !slot.leaving {
            metrics::dropped(drop_reason(reason));
        }
        let (last, is_listener) = (slot.dialect.dropped(reason), slot.dialect.is_listener());
        // It is told once it has what it was in the middle of, if it ever takes that.
        if is_listener && slot.owing && !slot.leaving && self.owed.contains_key(&id) {
            slot.leaving = true;
            self.owed_bytes -= self.clear_backlog(id);
            if let Some(talk) = self.talks.get_mut(&self.table, id) {
                talk.extra().last_words = Some(last);
            }
            return;
        }
        self.goodbye(id, &last);
    }

    /// The node goes away: once the connection has what it is owed, it is told.
    pub(super) fn farewell(&mut self, id: SlotId) {
        self.go_on(id);
        let Some(slot) = self.table.get(id) else { return };
        if !std::mem::replace(&mut slot.leaving, true) {
            metrics::dropped("draining");
        }
        if slot.owing {
            return;
        }
        let draining = slot.dialect.draining();
        let extra = self.talks.get_mut(&self.table, id).and_then(|talk| talk.extra.as_mut());
        let last = extra.and_then(|extra| extra.last_words.take()).unwrap_or(draining);
        self.goodbye(id, &last);
    }

    /// The last bytes, if the connection can still take any.
    pub(super) fn goodbye(&mut self, id: SlotId, last: &Bytes) {
        if let Some(slot) = self.table.get(id).filter(|slot| !slot.owing)
            && let Some(stream) = &slot.stream
        {
            // It goes either way.
            let _ = socket::write(stream, last);
        }
        self.close(id);
    }

    pub(super) fn close(&mut self, id: SlotId) {
        self.forget_debt(id);
        let Some(slot) = self.table.get(id) else { return };
        let (talks, channel, member) = (slot.dialect.has_talk(), slot.channel, slot.member);
        if talks {
            while let Some(follows) = self.talks.get_mut(&self.table, id).and_then(|talk| talk.follows.pop())
            {
                self.leave(follows.channel, follows.place);
            }
            if let Some(talk) = self.talks.remove(member) {
                self.depart(id, talk);
            }
        } else {
            self.leave(channel, member);
        }
        if let Some(stream) = self.table.take(id).and_then(|slot| slot.stream) {
            socket::close(&stream);
        }
        self.seats.give_back();
    }

    /// Takes a member out of its channel; the last one gets its place.
    pub(super) fn leave(&mut self, channel: ChannelId, place: u32) {
        self.hub.leave(channel, self.number);
        let Some(members) = self.members.get_mut(&channel) else { return };
        if (place as usize) < members.len() {
            members.swap_remove(place as usize);
        }
        let moved = members.get(place as usize).map(|member| member.slot);
        if members.is_empty() {
            self.members.remove(&channel);
        }
        let Some(moved) = moved else { return };
        let in_talk = self.talks.get_mut(&self.table, moved).map(|talk| &mut talk.follows);
        if let Some(follows) = in_talk {
            for follows in follows.iter_mut().filter(|follows| follows.channel == channel) {
                follows.place = place;
            }
        } else if let Some(slot) = self.table.get(moved) {
            slot.member = place;
        }
    }
}

/// What comes up while the members of a channel are told.
#[derive(Default)]
struct Telling {
    dues: Vec<((u32, Dialect), Due)>,
    messages: u64,
    /// Somebody took all of a write and there is more.
    unfinished: bool,
    /// And why, if they can be told.
    gone: Vec<(SlotId, Option<DropReason>)>,
}

/// What was not taken: shared with others, unless that would keep much more than it is.
pub(super) fn rest(bytes: &Bytes, count: usize) -> Bytes {
    if count * 2 > bytes.len() { Bytes::copy_from_slice(&bytes[count..]) } else { bytes.slice(count..) }
}
