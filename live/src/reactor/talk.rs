//! WebSockets: what they ask for, and what follows from the answers.

use super::{Answer, Ask, Task, Who, deliver::Member, run::Reactor, say, table::SlotId};
use crate::{
    auth::Holder,
    dialects::native::ws::{self, Request},
    engine::{
        Source,
        channel::{ChannelId, Mark},
        hub,
        viewer::{ResetReason, Since},
    },
    metrics,
    ws::frames::{self, Fault, Inbound, Incoming},
};
use bytes::Bytes;
use cratemill_protocol::topic::Topic;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;

/// Topics of one connection: enough for a dashboard.
const MAX_TOPICS: usize = 50;
/// Subscriptions of one connection that are looked into at once.
const MAX_ASKED: usize = 16;
/// What a client may say at once, and in each second after that.
const BURST: u16 = 100;
const PER_SECOND: u64 = 20;
const MAX_ERROR: usize = 200;
/// Answers that wait for a connection that does not read them.
const MAX_BACKLOG: usize = 128;

/// Going away; another node, or this one a moment later, goes on.
pub(super) const RESTART: u16 = 1012;
pub(super) const TRY_AGAIN: u16 = 1013;
const POLICY: u16 = 1008;

/// One WebSocket. What most have nothing of most of the time is in `extra`.
pub(super) struct Talk {
    serial: u32,
    pub(super) follows: Vec<Follows>,
    extra: Option<Box<Extra>>,
    holder: Arc<Holder>,
    allowance: u16,
    /// Seconds since the reactor began, when the allowance was looked at.
    looked: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Follows {
    pub(super) channel: ChannelId,
    pub(super) place: u32,
}

#[derive(Default)]
struct Extra {
    inbound: Inbound,
    asked: Vec<Asked>,
    tasks: Vec<(Asked, Task)>,
    /// Whole messages that wait for what was owed before them.
    backlog: VecDeque<(Bytes, Option<OwnedSemaphorePermit>)>,
}

/// A topic that was asked for, with the number of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    number: u32,
    /// None once it is not wanted any more: it counts until its answer comes.
    topic: Option<Topic>,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.inbound.is_empty() && self.asked.is_empty() && self.tasks.is_empty() && self.backlog.is_empty()
    }
}

impl Talk {
    pub(super) fn new(serial: u32, holder: Arc<Holder>) -> Self {
        Self { serial, follows: Vec::new(), extra: None, holder, allowance: BURST, looked: 0 }
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Gives memory back that is not needed.
    fn tidy(&mut self) {
        if self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
    }

    /// Whether the client may say one thing more.
    fn may_speak(&mut self, now_s: u32) -> bool {
        let more = u64::from(now_s.saturating_sub(self.looked)) * PER_SECOND;
        self.looked = now_s;
        self.allowance = u16::try_from(more).unwrap_or(BURST).saturating_add(self.allowance).min(BURST);
        let may = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        may
    }

    fn topics(&self) -> usize {
        let extra = self.extra.as_ref().map_or(0, |extra| extra.asked.len() + extra.tasks.len());
        self.follows.len() + extra
    }
}

impl Reactor {
    pub(super) fn hear(&mut self, id: SlotId, bytes: &[u8]) {
        let Some(talk) = self.talks.get_mut(&id) else { return };
        talk.extra().inbound.feed(bytes);
        loop {
            let Some(talk) = self.talks.get_mut(&id) else { return };
            let incoming = match talk.extra().inbound.pop() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break talk.tidy(),
                Err(Fault { code, reason }) => return self.hang_up(id, code, reason),
            };
            let now_s = u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX);
            if !talk.may_speak(now_s) {
                metrics::dropped("talkative");
                return self.hang_up(id, POLICY, "too many messages");
            }
            match incoming {
                Incoming::Text(text) => self.request(id, &text),
                Incoming::Ping(payload) => self.say(id, frames::pong(payload), None),
                Incoming::Pong => {}
                Incoming::Close(code) => {
                    let answer = code.map_or_else(frames::close_without_code, |code| frames::close(code, ""));
                    return self.goodbye(id, &answer);
                }
            }
        }
    }

    fn request(&mut self, id: SlotId, text: &str) {
        match Request::parse(text) {
            Ok(Request::Subscribe { topic, since }) => {
                if let Err(error) = self.ask(id, &topic, since) {
                    metrics::refused("request");
                    self.say(id, say::text(&ws::error(Some(&topic), &error)), None);
                }
            }
            Ok(Request::Unsubscribe(topic)) => {
                let answer = if self.unsubscribe(id, &topic) {
                    ws::unsubscribed(&topic)
                } else {
                    ws::error(Some(&topic), "not subscribed to this topic")
                };
                self.say(id, say::text(&answer), None);
            }
            Ok(Request::Ping) => self.say(id, say::text(&ws::pong()), None),
            Err(error) => {
                // It repeats what the client said.
                let error: String = error.to_string().chars().take(MAX_ERROR).collect();
                self.say(id, say::text(&ws::error(None, &error)), None);
            }
        }
    }

    fn ask(&mut self, id: SlotId, topic: &Topic, since: Since) -> Result<(), String> {
        if self.follows(id, topic) {
            return Err("subscribed to this topic already".into());
        }
        let Some(talk) = self.talks.get_mut(&id) else { return Ok(()) };
        if talk.topics() >= MAX_TOPICS {
            return Err(format!("at most {MAX_TOPICS} topics on one connection"));
        }
        talk.holder.subscribe(topic).map_err(|denied| denied.to_string())?;
        if talk.extra().asked.len() >= MAX_ASKED {
            return Err(format!("at most {MAX_ASKED} subscriptions at once: wait for their answers"));
        }
        self.serial = self.serial.wrapping_add(1);
        let number = self.serial;
        talk.extra().asked.push(Asked { number, topic: Some(topic.clone()) });
        let who = Who { reactor: self.number, slot: id, serial: talk.serial, ask: number };
        let ask = Ask { who, topic: topic.clone(), since };
        // Whoever takes them ends with the process.
        let _ = self.asks.send(ask);
        Ok(())
    }

    fn follows(&self, id: SlotId, topic: &Topic) -> bool {
        let Some(talk) = self.talks.get(&id) else { return false };
        let elsewhere = talk.extra.as_ref().is_some_and(|extra| {
            let mut asked = extra.asked.iter().chain(extra.tasks.iter().map(|(asked, _)| asked));
            asked.any(|asked| asked.topic.as_ref() == Some(topic))
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
        let Some(talk) = self.talks.get_mut(&id) else { return false };
        if let Some(extra) = &mut talk.extra {
            let is_it = |asked: &Asked| asked.topic.as_ref() == Some(topic);
            if let Some(asked) = extra.asked.iter_mut().find(|asked| is_it(asked)) {
                asked.topic = None;
                return true;
            }
            if let Some(place) = extra.tasks.iter().position(|(asked, _)| is_it(asked)) {
                extra.tasks.swap_remove(place);
                talk.tidy();
                return true;
            }
        }
        let Some(talk) = self.talks.get(&id) else { return false };
        let Some(follows) = self.followed(talk, topic) else { return false };
        if let Some(talk) = self.talks.get_mut(&id) {
            talk.follows.retain(|other| other.channel != follows.channel);
        }
        self.leave(follows.channel, follows.place);
        true
    }

    /// What came of something that a connection asked for; it may have gone, or not want it any more.
    pub(super) fn answered(&mut self, who: Who, answer: Answer) {
        let Some(talk) = self.talks.get_mut(&who.slot).filter(|talk| talk.serial == who.serial) else {
            return;
        };
        let id = who.slot;
        let extra = talk.extra();
        let waited = extra.asked.iter().position(|asked| asked.number == who.ask);
        let asked = waited.and_then(|place| extra.asked.swap_remove(place).topic);
        let followed = extra.tasks.iter().position(|(asked, _)| asked.number == who.ask);
        match answer {
            Answer::Joined { topic, member, cursor, mark, reset } if asked.is_some() => {
                self.join(id, &topic, member, cursor, (mark, reset));
            }
            Answer::Followed { topic, task } if asked.is_some() => {
                extra.tasks.push((Asked { number: who.ask, topic: Some(topic) }, task));
            }
            Answer::Said { bytes, room } if followed.is_some() => self.say(id, bytes, Some(room)),
            Answer::Ended { bytes } if asked.is_some() || followed.is_some() => {
                if let Some(place) = followed {
                    extra.tasks.swap_remove(place);
                }
                self.say(id, bytes, None);
            }
            // It does not want that any more.
            Answer::Joined { .. } | Answer::Followed { .. } | Answer::Said { .. } | Answer::Ended { .. } => {}
        }
        if let Some(talk) = self.talks.get_mut(&id) {
            talk.tidy();
        }
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
        self.say(id, say::text(&ws::subscribed(topic, &position)), None);
        if let Some(reason) = reset {
            self.say(id, say::text(&ws::reset(topic, &position, reason)), None);
        }
        let channel = member.channel;
        let Some(talk) = self.talks.get_mut(&id) else { return };
        let members = self.members.entry(channel).or_default();
        let Ok(place) = u32::try_from(members.len()) else { return };
        members.push(Member { slot: id, cursor });
        talk.follows.push(Follows { channel, place });
        member.keep();
        if self.table.get(id).is_some_and(|slot| !slot.owing) {
            self.go_on(id);
        }
    }

    /// A whole message, now or behind what the connection is owed.
    pub(super) fn say(&mut self, id: SlotId, bytes: Bytes, room: Option<OwnedSemaphorePermit>) {
        let Some(slot) = self.table.get(id) else { return };
        if slot.leaving {
            return;
        }
        if !slot.owing {
            return self.give(id, &bytes);
        }
        let Some(talk) = self.talks.get_mut(&id) else { return };
        talk.extra().backlog.push_back((bytes, room));
        if talk.extra().backlog.len() > MAX_BACKLOG {
            metrics::dropped("slow");
            self.close(id);
        }
    }

    /// The next of what waits; false when nothing does.
    pub(super) fn say_next(&mut self, id: SlotId) -> bool {
        let Some(talk) = self.talks.get_mut(&id) else { return false };
        let Some(next) = talk.extra.as_mut().and_then(|extra| extra.backlog.pop_front()) else {
            return false;
        };
        talk.tidy();
        self.give(id, &next.0);
        true
    }

    pub(super) fn hang_up(&mut self, id: SlotId, code: u16, reason: &str) {
        self.goodbye(id, &frames::close(code, reason));
    }

    /// A sign of life for a WebSocket, with how far all its channels are; nothing where it does not have everything yet.
    pub(super) fn sign_of_life(&self, id: SlotId) -> Option<Bytes> {
        let talk = self.talks.get(&id)?;
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
        Some(say::text(&ws::heartbeat(says_all.then_some(&position))))
    }
}
