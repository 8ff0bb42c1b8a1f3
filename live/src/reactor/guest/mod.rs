//! Clients of CBOR: what they say is done by tasks, one message after the other, and what they have is known from their
//! pongs.
//!
//! ```text
//! messages -> waiting -> Order, as many as wait -> a task -> Answers -> Ready -> the next that wait
//!               | too many: the socket is not read, and its sender waits
//! Issues are written -> ping, once nothing is left to write -> pong: the client has all of them
//! ```
//! Who closes its connection has said something before: that is done all the same.

mod state;

pub use self::state::Said;
pub(super) use self::state::{Guest, Tenths, Work};

use self::state::{Goodbye, Pings};
use super::{
    Who,
    run::{LISTENING, Reactor},
    table::SlotId,
    talks::{Party, Talk},
};
use crate::{
    cbor::{Session, Sessions},
    dialects::{Dialect, cbor::IdForm},
    engine::{Source, hub, viewer::DropReason},
    metrics,
    ws::frames::{self, Fault, Incoming, POLICY, Rules, TRY_AGAIN},
};
use bytes::Bytes;
use cratemill_protocol::{SubscriptionId, topic::Topic};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedSender};

/// All that all clients of a node have said and that is not done, half messages too.
const INBOUND_BYTES: usize = 256 << 20;
/// Messages that wait for the end of a long one.
const MAX_HELD: usize = 1_024;
/// What a client may have said of that at any time.
const SMALL_BYTES: usize = 64 * 1024;
/// A client that says nothing for so many tenths of a second is gone. It answers pings.
const SILENCE: u16 = 100;
/// A ping at least every five seconds: it is looked at once a second, and the first comes in time too.
const PING_AFTER: u16 = 43;
/// A message may take so long to come.
const MESSAGE: u16 = 1_200;

/// What is to be done for a client.
#[derive(Debug)]
pub struct Order {
    pub who: Who,
    pub session: Session,
    pub what: Todo,
}

#[derive(Debug)]
pub enum Todo {
    /// Its connection is here: what it is subscribed to is to be followed.
    Open,
    Messages(Vec<Said>),
    /// It has gone, and all it said is done.
    Closed,
}

/// What reactors need for them.
#[derive(Debug, Clone)]
pub struct Guests {
    pub orders: UnboundedSender<Order>,
    pub sessions: Arc<Sessions>,
    pub rules: Rules,
}

/// One whose connection has ended while somebody does what it said.
pub(super) struct Departed {
    guest: Guest,
    work: Box<Work>,
}

impl Reactor {
    pub(super) fn now_s(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    #[allow(clippy::cast_possible_truncation, reason = "it begins anew")]
    pub(super) fn now(&self) -> Tenths {
        Tenths((self.began.elapsed().as_millis() / 100) as u16)
    }

    fn guest(&mut self, id: SlotId) -> Option<&mut Guest> {
        self.talks.get_mut(&self.table, id)?.guest()
    }

    fn work(&mut self, id: SlotId) -> Option<(&mut Guest, &mut Work)> {
        self.talks.get_mut(&self.table, id)?.work()
    }

    fn session(&mut self, id: SlotId) -> Option<Session> {
        let sessions = Arc::clone(&self.guests.sessions);
        Some(sessions.unpack(&self.guest(id)?.session))
    }

    fn order(&mut self, id: SlotId, what: Todo) {
        let sessions = Arc::clone(&self.guests.sessions);
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let serial = talk.serial;
        let Some(guest) = talk.guest() else { return };
        let session = sessions.unpack(&guest.session);
        // Whoever takes them ends with the process.
        let _ = self.guests.orders.send(Order { who: self.who(id, serial), session, what });
    }

    /// The connection is here.
    pub(super) fn open_guest(&mut self, id: SlotId) {
        self.order(id, Todo::Open);
    }

    pub(super) fn hear_guest(&mut self, id: SlotId, bytes: &[u8]) {
        let (now, rules) = (self.now(), self.guests.rules);
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        if let Some(guest) = talk.guest() {
            guest.heard = now;
        }
        talk.extra().inbound.feed(bytes);
        loop {
            let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
            match talk.extra().inbound.pop(&rules) {
                Ok(None) => break,
                Ok(Some(incoming)) => self.heard(id, incoming),
                Err(Fault { code, reason }) => return self.hang_up(id, code, reason),
            }
        }
        self.count_guest(id);
        self.hand_out(id);
    }

    fn heard(&mut self, id: SlotId, incoming: Incoming) {
        let now_s = self.now_s();
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let is_ping = matches!(incoming, Incoming::Ping(_));
        if is_ping && !talk.may_speak(now_s) {
            metrics::dropped("talkative");
            return self.hang_up(id, POLICY, "too many pings");
        }
        let Some((guest, work)) = talk.work() else { return };
        // What comes behind a goodbye is nothing.
        if work.goodbye.is_some() {
            return;
        }
        let said = match incoming {
            Incoming::Binary(bytes) => Said::Command(bytes),
            Incoming::Text(_) => Said::Text,
            Incoming::TooBig => Said::TooBig,
            Incoming::Ping(payload) => return self.say_now(id, frames::pong(payload), None),
            Incoming::Pong => {
                // The first of the pings that are out is answered: pongs come in their order, behind all that was written
                // before.
                guest.pings.one_less();
                return self.answered_ping(id);
            }
            Incoming::Close(code) => {
                work.goodbye = Some(Goodbye(code));
                return;
            }
        };
        // The next one has its own time.
        work.half_since = None;
        work.waiting_bytes += said.bytes();
        work.waiting.push_back(said);
    }

    /// The first of the pings that are out.
    fn answered_ping(&mut self, id: SlotId) {
        let last = self.hub.channels(|_, mark| mark.get(Source::Pubsub));
        if let Some(sequence) = self.guest(id).and_then(|guest| guest.take_note(last)) {
            self.confirm(id, sequence);
        }
    }

    /// What it has said counts among what all have.
    fn count_guest(&mut self, id: SlotId) {
        let now = self.now();
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let half = talk.extra.as_ref().map_or(0, |extra| extra.inbound.len());
        let Some((_, work)) = talk.work() else { return };
        work.half_since = if half > 0 { work.half_since.or(Some(now)) } else { None };
        let (was, is) = (work.counted, half + work.waiting_bytes + work.working_bytes);
        work.counted = is;
        self.inbound_bytes = self.inbound_bytes + is - was;
        talk.tidy();
        if is > SMALL_BYTES && is > was && self.inbound_bytes > INBOUND_BYTES / self.reactors {
            metrics::dropped("busy");
            self.hang_up(id, TRY_AGAIN, "this node has too much to do, try again");
        }
    }

    /// To a task, if none is at it; else its socket is not read where too much waits.
    fn hand_out(&mut self, id: SlotId) {
        let Some((guest, work)) = self.work(id) else { return };
        if !guest.busy && !work.waiting.is_empty() {
            guest.busy = true;
            let messages = work.take();
            self.order(id, Todo::Messages(messages));
        }
        let Some((guest, work)) = self.work(id) else { return };
        if let Some(Goodbye(code)) = work.goodbye.filter(|_| !guest.busy) {
            let answer = code.map_or_else(frames::close_without_code, |code| frames::close(code, ""));
            // It reads until this comes, so that it has what was written before.
            if let Some(sequence) = self.written(id) {
                self.confirm(id, sequence);
            }
            return self.goodbye(id, &answer);
        }
        let paused = work.is_full();
        let changed = std::mem::replace(&mut guest.paused, paused) != paused;
        if let Some(talk) = self.talks.get_mut(&self.table, id) {
            talk.tidy();
        }
        if changed {
            self.listen(id);
        }
    }

    /// All it said is done.
    pub(super) fn is_done(&mut self, who: Who) {
        if let Some(mut departed) = self.departed.remove(&who.serial) {
            if departed.work.waiting.is_empty() {
                return self.see_off(who, departed);
            }
            let session = self.guests.sessions.unpack(&departed.guest.session);
            let what = Todo::Messages(departed.work.take());
            let _ = self.guests.orders.send(Order { who, session, what });
            self.departed.insert(who.serial, departed);
            return;
        }
        let talk = self.talks.get_mut(&self.table, who.slot).filter(|talk| talk.serial == who.serial);
        let Some((guest, work)) = talk.and_then(Talk::work) else { return };
        (guest.busy, work.working_bytes) = (false, 0);
        self.count_guest(who.slot);
        self.hand_out(who.slot);
    }

    fn see_off(&mut self, who: Who, Departed { guest, work }: Departed) {
        self.inbound_bytes -= work.counted;
        let session = self.guests.sessions.give(guest.session);
        let _ = self.guests.orders.send(Order { who, session, what: Todo::Closed });
    }

    /// Its connection has ended: once what it said is done, so has it.
    pub(super) fn depart(&mut self, slot: SlotId, talk: Talk) {
        let Talk { serial, party, extra, .. } = talk;
        let guest = match party {
            Party::Guest(guest) => guest,
            Party::Listener(record) => return self.stop_listening(record),
            Party::Client(_) => return,
        };
        let work = extra.and_then(|extra| extra.work).unwrap_or_default();
        let (who, mut departed) = (self.who(slot, serial), Departed { guest, work });
        if departed.guest.busy {
            self.departed.insert(serial, departed);
        } else {
            // What it said and nobody has taken yet is done too.
            departed.guest.busy = true;
            self.departed.insert(serial, departed);
            self.is_done(who);
        }
    }

    /// Another connection gets what comes from `cursor` on.
    pub(super) fn follow(&mut self, id: SlotId, member: hub::Member, cursor: u32) {
        // Whatever the database believed.
        let follows = self.talks.get(&self.table, id).map(|talk| &talk.follows);
        if follows.is_some_and(|follows| follows.iter().any(|follows| follows.channel == member.channel)) {
            return;
        }
        self.enlist(id, member, cursor);
        if self.table.get(id).is_some_and(|slot| !slot.owing) {
            self.go_on(id);
        }
    }

    pub(super) fn unfollow(&mut self, id: SlotId, subscription: SubscriptionId) {
        self.follows_no_more(id, &Topic::Publications(subscription));
    }

    pub(super) fn settled(&mut self, id: SlotId) {
        if let Some(session) = self.session(id) {
            session.settle();
        }
    }

    pub(super) fn speak(&mut self, id: SlotId, ids: IdForm) {
        if let Some(slot) = self.table.get(id) {
            slot.dialect = Dialect::Cbor(ids);
        }
    }

    /// Up to where all that it follows is written, as far as anybody can say.
    fn written(&mut self, id: SlotId) -> Option<u64> {
        if self.table.get(id).is_none_or(|slot| slot.owing || slot.speaking)
            || !self.session(id)?.is_settled()
        {
            return None;
        }
        let talk = self.talks.get(&self.table, id)?;
        self.hub.channels(|channels, mark| {
            let mut written = mark.get(Source::Pubsub);
            for follows in &talk.follows {
                let member = self.members.get(&follows.channel)?.get(follows.place as usize)?;
                let channel = channels.get(follows.channel).filter(|channel| !channel.broken)?;
                // The first that is still to come.
                if let Some(next) = channel.ring.from(member.cursor)?.next() {
                    written = written.min(next.frame.sequence.saturating_sub(1));
                }
            }
            Some(written)
        })
    }

    fn confirm(&mut self, id: SlotId, sequence: u64) {
        if let Some(session) = self.session(id) {
            session.confirm(sequence);
        }
    }

    /// Once a second.
    pub(super) fn look_after_guest(&mut self, id: SlotId) {
        let now = self.now();
        let Some(slot) = self.table.get(id) else { return };
        let (owing, told) = (slot.owing, slot.told);
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let work = talk.extra.as_mut().and_then(|extra| extra.work.as_mut());
        let Party::Guest(guest) = &mut talk.party else { return };
        // Who is not read, or takes what it is owed, has nothing to answer: others look after these.
        if owing || guest.paused {
            guest.heard = now;
            if let Some(since) = work.and_then(|work| work.half_since.as_mut()) {
                *since = now;
            }
            return;
        }
        if now.since(guest.heard) >= SILENCE {
            metrics::dropped("silent");
            return self.hang_up(id, POLICY, "no pong for ten seconds");
        }
        let half_since = work.as_ref().and_then(|work| work.half_since);
        if half_since.is_some_and(|since| now.since(since) >= MESSAGE) {
            return self.hang_up(id, POLICY, "a message takes too long");
        }
        let regular = now.since(guest.pinged) >= PING_AFTER;
        if !(regular || (told && !guest.pings.are_out())) {
            return;
        }
        // The client answered, but not each ping by itself.
        if regular && guest.pings.is_answered() {
            guest.pings = Pings::default();
        }
        guest.pinged = now;
        let is_first = !guest.pings.are_out();
        guest.pings.one_more();
        if is_first {
            let written = self.written(id);
            if let Some(guest) = self.guest(id) {
                guest.note(written);
            }
            if let Some(slot) = self.table.get(id) {
                slot.told = written.is_none() && told;
            }
        }
        self.give(id, &frames::ping());
    }

    /// What is waited for at a socket that has everything.
    pub(super) fn listen(&mut self, id: SlotId) {
        let guest = self.guest(id);
        let (is_guest, paused) = (guest.is_some(), guest.is_some_and(|guest| guest.paused));
        let mut flags = LISTENING;
        if is_guest {
            // What it said before it went is read first.
            flags.remove(EpollFlags::EPOLLRDHUP);
        }
        if paused {
            flags.remove(EpollFlags::EPOLLIN);
        }
        let Some(slot) = self.table.get(id) else { return };
        if slot.owing {
            flags.insert(EpollFlags::EPOLLOUT);
        }
        if let Some(stream) = &slot.stream {
            // If it fails, the sweep ends the connection.
            let _ = self.epoll.modify(stream, &mut EpollEvent::new(flags, id.into()));
        }
    }

    /// A frame of a message. What else is to be said waits for the last of them.
    pub(super) fn piece(&mut self, who: Who, bytes: Bytes, is_last: bool, room: OwnedSemaphorePermit) {
        let id = who.slot;
        if self.talks.get(&self.table, id).is_none_or(|talk| talk.serial != who.serial) {
            return;
        }
        let Some(slot) = self.table.get(id).filter(|slot| !slot.leaving) else { return };
        (slot.speaking, slot.told) = (true, true);
        if let Some((_, work)) = self.work(id) {
            work.is_said = is_last;
        }
        self.say_now(id, bytes, Some(room));
        if self.table.get(id).is_some_and(|slot| !slot.owing) && is_last {
            self.has_spoken(id);
            self.go_on(id);
        }
    }

    pub(super) fn hold(&mut self, id: SlotId, bytes: Bytes) {
        let Some((_, work)) = self.work(id) else { return };
        work.held.push_back(bytes);
        if work.held.len() > MAX_HELD {
            self.drop_for(id, DropReason::Slow);
        }
    }

    /// A message of several frames is written, if it is: then what waited for that.
    pub(super) fn has_spoken(&mut self, id: SlotId) {
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let work = talk.extra.as_mut().and_then(|extra| extra.work.as_mut());
        let Some(work) = work.filter(|work| work.is_said) else { return };
        work.is_said = false;
        let held = std::mem::take(&mut work.held);
        talk.tidy();
        if let Some(slot) = self.table.get(id) {
            slot.speaking = false;
        }
        for bytes in held {
            self.say(id, bytes, None);
        }
    }

    /// Whole messages for a client, now or behind what it is owed.
    pub(super) fn push(&mut self, who: Who, bytes: Bytes) {
        if self.talks.get(&self.table, who.slot).is_some_and(|talk| talk.serial == who.serial) {
            if let Some(slot) = self.table.get(who.slot) {
                slot.told = true;
            }
            self.say(who.slot, bytes, None);
        }
    }
}

/// As the operator says.
pub fn rules(max_message: usize) -> Rules {
    Rules { max_message, max_frames: 4_096, binary: true }
}
