//! Clients of CBOR: what they say is done by tasks, one message after the other, and what they have is known from their
//! pongs.
//!
//! ```text
//! messages -> waiting -> Order, as many as wait -> a task -> Answers -> Ready -> the next that wait
//!               | too many: the socket is not read, and its sender waits
//! Issues are written -> ping, once nothing is left to write -> pong: the client has all of them
//! ```
//! Who closes its connection has said something before: that is done all the same.

use super::{
    Who,
    run::{LISTENING, Reactor},
    table::SlotId,
    talk::Talk,
};
use crate::{
    cbor::Session,
    dialects::{Dialect, cbor::IdForm},
    engine::{Source, channel::ChannelId, hub, viewer::DropReason},
    metrics,
    ws::frames::{self, Fault, Incoming, POLICY, Rules, TRY_AGAIN},
};
use bytes::Bytes;
use nix::sys::epoll::EpollEvent;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;

/// Messages that wait before the socket is not read any more,
const MAX_WAITING: usize = 256;
/// and their bytes.
const MAX_WAITING_BYTES: usize = 256 * 1024;
/// All that all clients of a node have said and that is not done, half messages too.
const INBOUND_BYTES: usize = 256 << 20;
/// Messages that wait for the end of a long one.
const MAX_HELD: usize = 1_024;
/// What a client may have said of that at any time.
const SMALL_BYTES: usize = 64 * 1024;
/// A client that says nothing for so long is gone. It answers pings.
const SILENCE_MS: u32 = 10_000;
/// A ping at least every five seconds: it is looked at once a second, and the first comes in time too.
const PING_AFTER_MS: u32 = 4_300;
/// A message may take so long to come.
const MESSAGE_MS: u32 = 120_000;

/// What is to be done for a client.
#[derive(Debug)]
pub struct Order {
    pub who: Who,
    pub session: Arc<Session>,
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

/// What a client said.
#[derive(Debug)]
pub enum Said {
    Command(Vec<u8>),
    Text,
    TooBig,
}

impl Said {
    fn bytes(&self) -> usize {
        match self {
            Self::Command(bytes) => bytes.len(),
            Self::Text | Self::TooBig => 0,
        }
    }
}

pub(super) struct Guest {
    session: Arc<Session>,
    waiting: VecDeque<Said>,
    waiting_bytes: usize,
    /// Of what somebody does.
    working_bytes: usize,
    /// What it has said, as it is counted among that of all.
    counted: usize,
    /// Somebody does what it said.
    busy: bool,
    paused: bool,
    /// It said goodbye: so it is answered when all is done.
    goodbye: Option<Goodbye>,
    /// Milliseconds of the reactor, which begin anew every few weeks: when it said something,
    heard_ms: u32,
    /// and when it got a ping.
    pinged_ms: u32,
    /// And since when it is in the middle of a message.
    half_since_ms: Option<u32>,
    /// Pings that it did not answer.
    pings: u8,
    /// With the first of them it had everything up to there.
    pinged_at: Option<u64>,
    /// What waits for the end of a message of several frames,
    held: VecDeque<Bytes>,
    /// all of which are there.
    is_said: bool,
}

/// With a code, or without.
#[derive(Debug, Clone, Copy)]
struct Goodbye(Option<u16>);

impl Guest {
    pub(super) fn new(session: Arc<Session>, now_ms: u32) -> Self {
        Self {
            session,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            working_bytes: 0,
            counted: 0,
            busy: true,
            paused: false,
            goodbye: None,
            heard_ms: now_ms,
            pinged_ms: now_ms,
            half_since_ms: None,
            pings: 0,
            pinged_at: None,
            held: VecDeque::new(),
            is_said: false,
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING || self.waiting_bytes >= MAX_WAITING_BYTES
    }

    /// The first of the pings that are out is answered: pongs come in their order, behind all that was written before.
    fn answered(&mut self) {
        if let Some(sequence) = self.pinged_at.take() {
            self.session.confirm(sequence);
        }
        self.pings = self.pings.saturating_sub(1);
    }

    /// What waits, for a task.
    fn take(&mut self) -> Vec<Said> {
        self.working_bytes = std::mem::take(&mut self.waiting_bytes);
        let all = self.waiting.drain(..).collect();
        self.waiting = VecDeque::new();
        all
    }
}

impl Reactor {
    pub(super) fn now_s(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    #[allow(clippy::cast_possible_truncation, reason = "it begins anew")]
    pub(super) fn now_ms(&self) -> u32 {
        self.began.elapsed().as_millis() as u32
    }

    fn guest(&mut self, id: SlotId) -> Option<&mut Guest> {
        self.talks.get_mut(&self.table, id)?.guest.as_deref_mut()
    }

    fn order(&mut self, id: SlotId, what: Todo) {
        let Some(talk) = self.talks.get(&self.table, id) else { return };
        let Some(guest) = &talk.guest else { return };
        let who = Who { reactor: self.number, slot: id, serial: talk.serial, ask: 0 };
        // Whoever takes them ends with the process.
        let _ = self.orders.send(Order { who, session: Arc::clone(&guest.session), what });
    }

    /// The connection is here.
    pub(super) fn open_guest(&mut self, id: SlotId) {
        self.order(id, Todo::Open);
    }

    pub(super) fn hear_guest(&mut self, id: SlotId, bytes: &[u8]) {
        let (now_ms, rules) = (self.now_ms(), self.rules);
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        if let Some(guest) = &mut talk.guest {
            guest.heard_ms = now_ms;
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
        let Some(guest) = &mut talk.guest else { return };
        // What comes behind a goodbye is nothing.
        if guest.goodbye.is_some() {
            return;
        }
        let said = match incoming {
            Incoming::Binary(bytes) => Said::Command(bytes),
            Incoming::Text(_) => Said::Text,
            Incoming::TooBig => Said::TooBig,
            Incoming::Ping(payload) => return self.say_now(id, frames::pong(payload), None),
            Incoming::Pong => return guest.answered(),
            Incoming::Close(code) => {
                guest.goodbye = Some(Goodbye(code));
                return;
            }
        };
        // The next one has its own time.
        guest.half_since_ms = None;
        guest.waiting_bytes += said.bytes();
        guest.waiting.push_back(said);
    }

    /// What it has said counts among what all have.
    fn count_guest(&mut self, id: SlotId) {
        let now_ms = self.now_ms();
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let half = talk.extra.as_ref().map_or(0, |extra| extra.inbound.len());
        let Some(guest) = &mut talk.guest else { return };
        guest.half_since_ms = if half > 0 { guest.half_since_ms.or(Some(now_ms)) } else { None };
        let (was, is) = (guest.counted, half + guest.waiting_bytes + guest.working_bytes);
        guest.counted = is;
        self.inbound_bytes = self.inbound_bytes + is - was;
        talk.tidy();
        if is > SMALL_BYTES && is > was && self.inbound_bytes > INBOUND_BYTES / self.reactors {
            metrics::dropped("busy");
            self.hang_up(id, TRY_AGAIN, "this node has too much to do, try again");
        }
    }

    /// To a task, if none is at it; else its socket is not read where too much waits.
    fn hand_out(&mut self, id: SlotId) {
        let Some(guest) = self.guest(id) else { return };
        if !guest.busy && !guest.waiting.is_empty() {
            guest.busy = true;
            let messages = guest.take();
            self.order(id, Todo::Messages(messages));
        }
        let Some(guest) = self.guest(id) else { return };
        if let Some(Goodbye(code)) = guest.goodbye.filter(|_| !guest.busy) {
            let answer = code.map_or_else(frames::close_without_code, |code| frames::close(code, ""));
            // It reads until this comes, so that it has what was written before.
            if let Some(sequence) = self.written(id) {
                self.confirm(id, sequence);
            }
            return self.goodbye(id, &answer);
        }
        let paused = guest.is_full();
        if std::mem::replace(&mut guest.paused, paused) != paused {
            self.listen(id);
        }
    }

    /// All it said is done.
    pub(super) fn is_done(&mut self, who: Who) {
        if let Some(mut guest) = self.departed.remove(&who.serial) {
            if guest.waiting.is_empty() {
                return self.see_off(who, &guest);
            }
            let (session, what) = (Arc::clone(&guest.session), Todo::Messages(guest.take()));
            let _ = self.orders.send(Order { who, session, what });
            self.departed.insert(who.serial, guest);
            return;
        }
        let talk = self.talks.get_mut(&self.table, who.slot).filter(|talk| talk.serial == who.serial);
        let Some(guest) = talk.and_then(|talk| talk.guest.as_deref_mut()) else { return };
        (guest.busy, guest.working_bytes) = (false, 0);
        self.count_guest(who.slot);
        self.hand_out(who.slot);
    }

    fn see_off(&mut self, who: Who, guest: &Guest) {
        self.inbound_bytes -= guest.counted;
        let _ = self.orders.send(Order { who, session: Arc::clone(&guest.session), what: Todo::Closed });
    }

    /// Its connection has ended: once what it said is done, so has it.
    pub(super) fn depart(&mut self, slot: SlotId, talk: &mut Talk) {
        let Some(guest) = talk.guest.take() else { return };
        let who = Who { reactor: self.number, slot, serial: talk.serial, ask: 0 };
        if guest.busy {
            self.departed.insert(talk.serial, guest);
        } else {
            self.see_off(who, &guest);
        }
    }

    /// Another connection gets what comes from `cursor` on.
    pub(super) fn follow(&mut self, id: SlotId, member: hub::Member, cursor: u32) {
        self.enlist(id, member, cursor);
        if self.table.get(id).is_some_and(|slot| !slot.owing) {
            self.go_on(id);
        }
    }

    pub(super) fn unfollow(&mut self, id: SlotId, channel: ChannelId) {
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let Some(place) = talk.follows.iter().position(|follows| follows.channel == channel) else { return };
        let follows = talk.follows.remove(place);
        self.leave(follows.channel, follows.place);
    }

    pub(super) fn settled(&mut self, id: SlotId) {
        if let Some(guest) = self.guest(id) {
            guest.session.settle();
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
            || !self.guest(id)?.session.is_settled()
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
        if let Some(guest) = self.guest(id) {
            guest.session.confirm(sequence);
        }
    }

    /// Once a second.
    pub(super) fn look_after_guest(&mut self, id: SlotId) {
        let now_ms = self.now_ms();
        let Some(slot) = self.table.get(id) else { return };
        let (owing, told) = (slot.owing, slot.told);
        let Some(guest) = self.guest(id) else { return };
        // Who is not read, or takes what it is owed, has nothing to answer: others look after these.
        if owing || guest.paused {
            guest.heard_ms = now_ms;
            guest.half_since_ms = guest.half_since_ms.map(|_| now_ms);
            return;
        }
        if now_ms.wrapping_sub(guest.heard_ms) >= SILENCE_MS {
            metrics::dropped("silent");
            return self.hang_up(id, POLICY, "no pong for ten seconds");
        }
        if guest.half_since_ms.is_some_and(|since| now_ms.wrapping_sub(since) >= MESSAGE_MS) {
            return self.hang_up(id, POLICY, "a message takes too long");
        }
        let regular = now_ms.wrapping_sub(guest.pinged_ms) >= PING_AFTER_MS;
        if !(regular || (told && guest.pings == 0)) {
            return;
        }
        // The client answered, but not each ping by itself.
        let answers = now_ms.wrapping_sub(guest.heard_ms) < now_ms.wrapping_sub(guest.pinged_ms);
        if regular && answers {
            (guest.pings, guest.pinged_at) = (0, None);
        }
        guest.pinged_ms = now_ms;
        let is_first = guest.pings == 0;
        guest.pings = guest.pings.saturating_add(1);
        if is_first {
            let written = self.written(id);
            if let Some(guest) = self.guest(id) {
                guest.pinged_at = written;
            }
            if let Some(slot) = self.table.get(id) {
                slot.told = written.is_none() && told;
            }
        }
        self.give(id, &frames::ping());
    }

    /// What is waited for at a socket that has everything.
    pub(super) fn listen(&mut self, id: SlotId) {
        let paused = self.guest(id).is_some_and(|guest| guest.paused);
        let is_guest = self.guest(id).is_some();
        let mut flags = LISTENING;
        if is_guest {
            // What it said before it went is read first.
            flags.remove(nix::sys::epoll::EpollFlags::EPOLLRDHUP);
        }
        if paused {
            flags.remove(nix::sys::epoll::EpollFlags::EPOLLIN);
        }
        let Some(slot) = self.table.get(id) else { return };
        if slot.owing {
            flags.insert(nix::sys::epoll::EpollFlags::EPOLLOUT);
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
        if let Some(guest) = self.guest(id) {
            guest.is_said = is_last;
        }
        self.say_now(id, bytes, Some(room));
        if self.table.get(id).is_some_and(|slot| !slot.owing) && is_last {
            self.has_spoken(id);
            self.go_on(id);
        }
    }

    pub(super) fn hold(&mut self, id: SlotId, bytes: Bytes) {
        let Some(guest) = self.guest(id) else { return };
        guest.held.push_back(bytes);
        if guest.held.len() > MAX_HELD {
            self.drop_for(id, DropReason::Slow);
        }
    }

    /// A message of several frames is written, if it is: then what waited for that.
    pub(super) fn has_spoken(&mut self, id: SlotId) {
        let Some(guest) = self.guest(id).filter(|guest| guest.is_said) else { return };
        guest.is_said = false;
        let held = std::mem::take(&mut guest.held);
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
