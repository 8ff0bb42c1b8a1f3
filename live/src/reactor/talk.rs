//! WebSockets: what they ask for, and what follows from the answers.

use super::{
    Answer, Ask, Asker,
    deliver::Member,
    run::Reactor,
    table::SlotId,
    talks::{Asked, Followed, Follows, Party, Talk},
};
use crate::{
    dialects::{Dialect, Request, Said},
    engine::{
        Source,
        channel::Mark,
        hub,
        viewer::{DropReason, ResetReason, Since},
    },
    metrics,
    ws::frames::{self, Fault, Incoming, POLICY},
};
use bytes::Bytes;
use cratemill_protocol::topic::Topic;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Topics of one connection: enough for a dashboard.
const MAX_TOPICS: usize = 50;
/// Subscriptions of one connection that are looked into at once: the others wait, and cost nobody else anything.
const ASKED_AT_ONCE: usize = 2;
const MAX_ERROR: usize = 200;
/// Answers that wait for a connection that does not read them.
const MAX_BACKLOG: usize = 128;

impl Reactor {
    pub(super) fn hear(&mut self, id: SlotId, bytes: &[u8]) {
        match self.table.get(id).map(|slot| slot.dialect) {
            Some(dialect) if dialect.is_guest() => return self.hear_guest(id, bytes),
            Some(dialect) if dialect.is_listener() => return self.hear_listener(id, bytes),
            _ => {}
        }
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        talk.extra().inbound.feed(bytes);
        loop {
            let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
            let incoming = match talk.extra().inbound.pop(&frames::NATIVE) {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break talk.tidy(),
                Err(Fault { code, reason }) => return self.hang_up(id, code, reason),
            };
            let now_s = u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX);
            let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
            if !talk.may_speak(now_s) {
                metrics::dropped("talkative");
                return self.hang_up(id, POLICY, "too many messages");
            }
            match incoming {
                Incoming::Text(text) => self.request(id, &text),
                Incoming::Ping(payload) => self.say(id, frames::pong(payload), None),
                // Neither comes by these rules.
                Incoming::Binary(_) | Incoming::TooBig | Incoming::Pong => {}
                Incoming::Close(code) => {
                    let answer = code.map_or_else(frames::close_without_code, |code| frames::close(code, ""));
                    return self.goodbye(id, &answer);
                }
            }
        }
    }

    fn request(&mut self, id: SlotId, text: &str) {
        let Some(dialect) = self.table.get(id).map(|slot| slot.dialect) else { return };
        match dialect.request(text) {
            Ok(Request::Subscribe { topic, since }) => {
                if let Err(error) = self.ask(id, &topic, since) {
                    metrics::refused("request");
                    self.say(id, dialect.say(Said::Error(Some(&topic), &error)), None);
                }
            }
            Ok(Request::Unsubscribe(topic)) => {
                let answer = if self.unsubscribe(id, &topic) {
                    Said::Unsubscribed(&topic)
                } else {
                    Said::Error(Some(&topic), "not subscribed to this topic")
                };
                self.say(id, dialect.say(answer), None);
            }
            Ok(Request::Ping) => self.say(id, dialect.say(Said::Pong), None),
            Err(error) => {
                // It repeats what the client said.
                let error: String = error.to_string().chars().take(MAX_ERROR).collect();
                self.say(id, dialect.say(Said::Error(None, &error)), None);
            }
        }
    }

    fn ask(&mut self, id: SlotId, topic: &Topic, since: Since) -> Result<(), String> {
        if self.follows(id, topic) {
            return Err("subscribed to this topic already".into());
        }
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return Ok(()) };
        if talk.topics() >= MAX_TOPICS {
            return Err(format!("at most {MAX_TOPICS} topics on one connection"));
        }
        let Party::Client(holder) = &talk.party else { return Ok(()) };
        holder.subscribe(topic).map_err(|denied| denied.to_string())?;
        self.serial = self.serial.wrapping_add(1);
        let asked = Asked {
            number: self.serial,
            topic: Some(topic.clone()),
            since: Some(since),
            wanted: Arc::default(),
        };
        talk.extra().asked.push(asked);
        self.look_into_next(id);
        Ok(())
    }

    /// What a connection asked for, if not too much of it is being looked into.
    fn look_into_next(&mut self, id: SlotId) {
        let Some(serial) = self.talks.get(&self.table, id).map(|talk| talk.serial) else { return };
        let who = self.who(id, serial);
        let Some(extra) = self.talks.get_mut(&self.table, id).and_then(|talk| talk.extra.as_mut()) else {
            return;
        };
        for asked in extra.asked.iter_mut().take(ASKED_AT_ONCE) {
            let (Some(topic), Some(since)) = (asked.topic.clone(), asked.since.take()) else { continue };
            let asker = Asker { who, ask: asked.number };
            let ask = Ask { asker, topic, since, wanted: Arc::downgrade(&asked.wanted) };
            // Whoever takes them ends with the process.
            let _ = self.asks.send(ask);
        }
    }

    fn follows(&self, id: SlotId, topic: &Topic) -> bool {
        let Some(talk) = self.talks.get(&self.table, id) else { return false };
        let elsewhere = talk.extra.as_ref().is_some_and(|extra| {
            extra.asked.iter().any(|asked| asked.topic.as_ref() == Some(topic))
                || extra.tasks.iter().any(|(followed, _)| followed.topic == *topic)
        });
        elsewhere || self.followed(talk, topic).is_some()
    }

    fn followed(&self, talk: &Talk, topic: &Topic) -> Option<Follows> {
        self.hub.channels(|channels, _| {
            let is_it = |follows: &&Follows| {
                channels.get(follows.channel).is_some_and(|channel| channel.topics.contains(topic))
            };
            talk.follows.iter().find(is_it).copied()
        })
    }

    fn unsubscribe(&mut self, id: SlotId, topic: &Topic) -> bool {
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return false };
        if let Some(extra) = &mut talk.extra {
            if let Some(place) = extra.asked.iter().position(|asked| asked.topic.as_ref() == Some(topic)) {
                if extra.asked[place].since.is_some() {
                    extra.asked.remove(place);
                } else {
                    extra.asked[place].topic = None;
                }
                talk.tidy();
                return true;
            }
            if let Some(place) = extra.tasks.iter().position(|(followed, _)| followed.topic == *topic) {
                extra.tasks.swap_remove(place);
                talk.tidy();
                return true;
            }
        }
        self.follows_no_more(id, topic)
    }

    /// False if it does not follow that.
    pub(super) fn follows_no_more(&mut self, id: SlotId, topic: &Topic) -> bool {
        let Some(talk) = self.talks.get(&self.table, id) else { return false };
        let Some(follows) = self.followed(talk, topic) else { return false };
        if let Some(talk) = self.talks.get_mut(&self.table, id) {
            talk.follows.retain(|other| other.channel != follows.channel);
        }
        self.leave(follows.channel, follows.place);
        true
    }

    /// What came of something that a connection asked for; it may have gone, or not want it any more.
    pub(super) fn answered(&mut self, Asker { who, ask }: Asker, answer: Answer) {
        let answer = match answer {
            Answer::Push(bytes) => return self.push(who, bytes),
            Answer::Piece { bytes, is_last, room } => return self.piece(who, bytes, is_last, room),
            Answer::Done => return self.is_done(who),
            answer => answer,
        };
        let Some(talk) = self.talks.get_mut(&self.table, who.slot).filter(|talk| talk.serial == who.serial)
        else {
            return;
        };
        let id = who.slot;
        let answer = match answer {
            Answer::Follow { member, cursor } => return self.follow(id, member, cursor),
            Answer::Unfollow(subscription) => return self.unfollow(id, subscription),
            Answer::Settled => return self.settled(id),
            Answer::Speak(ids) => return self.speak(id, ids),
            Answer::Admitted(stream, admission) => return self.admitted(id, &stream, admission),
            Answer::Stands => return self.stands(id),
            Answer::HangUp { code, reason } => return self.hang_up(id, code, reason),
            answer => answer,
        };
        let extra = talk.extra();
        let asked = extra.asked.iter().position(|asked| asked.number == ask);
        let asked = asked.and_then(|place| extra.asked.remove(place).topic);
        let followed = extra.tasks.iter().position(|(followed, _)| followed.number == ask);
        match (answer, asked) {
            (Answer::Joined { member, cursor, mark, reset }, Some(topic)) => {
                self.join(id, &topic, member, cursor, (mark, reset));
            }
            (Answer::Followed { task }, Some(topic)) => {
                extra.tasks.push((Followed { number: ask, topic }, task));
            }
            (Answer::Said { bytes, room }, None) if followed.is_some() => self.say(id, bytes, Some(room)),
            (Answer::Ended { bytes }, asked) if asked.is_some() || followed.is_some() => {
                if let Some(place) = followed {
                    extra.tasks.swap_remove(place);
                }
                self.say(id, bytes, None);
            }
            // It does not want that any more.
            _ => {}
        }
        if let Some(talk) = self.talks.get_mut(&self.table, id) {
            talk.tidy();
        }
        self.look_into_next(id);
    }

    fn join(
        &mut self,
        id: SlotId,
        topic: &Topic,
        member: hub::Member,
        cursor: u32,
        (mark, reset): (Mark, Option<ResetReason>),
    ) {
        let sources = [Source::of_topic(topic)];
        let position = mark.position(&sources);
        let Some(dialect) = self.table.get(id).map(|slot| slot.dialect) else { return };
        self.say(id, dialect.say(Said::Subscribed(topic, &position)), None);
        if let Some(reason) = reset {
            self.say(id, dialect.say(Said::Reset(topic, &position, reason)), None);
        }
        self.enlist(id, member, cursor);
        if self.table.get(id).is_some_and(|slot| !slot.owing) {
            self.go_on(id);
        }
    }

    /// A connection follows one channel more.
    pub(super) fn enlist(&mut self, id: SlotId, member: hub::Member, cursor: u32) {
        debug_assert_eq!(member.reactor, self.number, "the hub counts it for another one");
        let channel = member.channel;
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        let members = self.members.entry(channel).or_default();
        let Ok(place) = u32::try_from(members.len()) else { return };
        members.push(Member { slot: id, cursor });
        talk.follows.push(Follows { channel, place });
        member.keep();
    }

    /// Whether it is a client of CBOR.
    pub(super) fn is_guest(&mut self, id: SlotId) -> bool {
        self.table.get(id).is_some_and(|slot| slot.dialect.is_guest())
    }

    /// A whole message, now or behind what the connection is owed.
    pub(super) fn say(&mut self, id: SlotId, bytes: Bytes, room: Option<OwnedSemaphorePermit>) {
        let Some(slot) = self.table.get(id) else { return };
        if slot.leaving {
            return;
        }
        if slot.speaking {
            return self.hold(id, bytes);
        }
        self.say_now(id, bytes, room);
    }

    /// Also in the middle of a message of several frames.
    pub(super) fn say_now(&mut self, id: SlotId, bytes: Bytes, room: Option<OwnedSemaphorePermit>) {
        let Some(slot) = self.table.get(id) else { return };
        if !slot.owing {
            return self.give(id, &bytes);
        }
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        self.owed_bytes += bytes.len();
        // Of a listener's the bytes are bound, most of which are of messages.
        let most = if matches!(talk.party, Party::Listener(_)) { usize::MAX } else { MAX_BACKLOG };
        talk.extra().backlog.push(bytes, room);
        if talk.extra().backlog.len() > most {
            return self.drop_for(id, DropReason::Slow);
        }
        if let Some(worst) = self.forgive() {
            self.drop_for(worst, DropReason::Slow);
        }
    }

    /// Bytes of what waits behind what a connection is owed.
    pub(super) fn backlog(&self, id: SlotId) -> usize {
        let extra = self.talks.get(&self.table, id).and_then(|talk| talk.extra.as_ref());
        extra.map_or(0, |extra| extra.backlog.bytes())
    }

    /// Forgets it; how many bytes it was.
    pub(super) fn clear_backlog(&mut self, id: SlotId) -> usize {
        let extra = self.talks.get_mut(&self.table, id).and_then(|talk| talk.extra.as_mut());
        extra.map_or(0, |extra| extra.backlog.clear())
    }

    /// The next of what waits; false when nothing does.
    pub(super) fn say_next(&mut self, id: SlotId) -> bool {
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return false };
        let Some(next) = talk.extra.as_mut().and_then(|extra| extra.backlog.pop()) else {
            return false;
        };
        talk.tidy();
        self.owed_bytes -= next.0.len();
        self.give(id, &next.0);
        true
    }

    pub(super) fn hang_up(&mut self, id: SlotId, code: u16, reason: &str) {
        self.goodbye(id, &frames::close(code, reason));
    }

    /// A sign of life for a WebSocket, with how far all its channels are; nothing where it does not have everything yet.
    pub(super) fn sign_of_life(&self, id: SlotId, dialect: Dialect) -> Option<Bytes> {
        let talk = self.talks.get(&self.table, id)?;
        let mark = self.hub.channels(|channels, mark| {
            for follows in &talk.follows {
                let member = self.members.get(&follows.channel)?.get(follows.place as usize)?;
                let channel = channels.get(follows.channel).filter(|channel| !channel.broken)?;
                if channel.ring.head() != member.cursor {
                    return None;
                }
            }
            Some(mark)
        })?;
        let position = mark.position(&[Source::Events, Source::Topics]);
        // What a task reads may be further back, and what is asked for is nowhere yet.
        let elsewhere =
            talk.extra.as_ref().is_some_and(|extra| !extra.asked.is_empty() || !extra.tasks.is_empty());
        let says_all = !talk.follows.is_empty() && !elsewhere;
        Some(dialect.alive(says_all.then_some(&position)))
    }
}
