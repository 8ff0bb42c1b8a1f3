//! Listeners to Mastodon's streams: what Redis brings is written to those it is for, each with what they are to see.
//!
//! ```text
//! Redis -> Mail, to the reactor of the account, or to all that have listeners -> [mail], in the next turn: one write each
//! "subscribe" -> Question where the database has to be asked, one at a time, in order -> Answer -> Want -> Redis
//! ```
//! A message waits for nobody: who does not take what there is has it behind what it is owed, up to a bound.

mod log;
mod mail;
mod records;
mod shared;

pub(super) use self::{
    mail::Mailbox,
    records::{Listeners, RecordId},
};

use self::records::Record;
use super::{
    Mail, Question, Want,
    run::Reactor,
    table::SlotId,
    talks::{Party, Talk},
};
use crate::{
    dialects::mastodon::{
        Form,
        channel::{AccountId, Channel, TokenId},
        encode,
        filter::Languages,
        hello,
        request::{Command, Error, Named},
        scopes::Scopes,
        stream::Stream,
        thump,
    },
    mastodon::{Admission, Guard, Lens},
    metrics,
    ws::frames::{self, Fault, Incoming, POLICY},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use std::{sync::Arc, time::Instant};

/// Streams of one connection that many listen to: lists, hashtags and public ones.
const MAX_SUBSCRIPTIONS: usize = 1_000;
/// What a client may have said that is not done.
const MAX_WAITING: usize = 1_024;
/// Streams of events that have ended and may come back, on each reactor.
const MAX_GHOSTS: usize = 4_096;

/// A connection that listens.
#[derive(Debug)]
pub struct Listener {
    pub account: AccountId,
    pub token: TokenId,
    pub scopes: Scopes,
    pub sees_all: bool,
    pub languages: Languages,
    pub guard: Option<Guard>,
    pub first: First,
}

#[derive(Debug)]
pub enum First {
    /// A stream of events listens to one thing, and may have been here before.
    Stream { stream: Stream, admission: Admission, last_event_id: Option<Box<str>> },
    /// A WebSocket says what it wants, and may have said so in its address.
    Socket { wanted: Option<Named> },
}

impl Reactor {
    pub(super) fn enter_listener(&mut self, id: SlotId, listener: Listener) {
        let Listener { account, token, scopes, sees_all, languages, guard, first } = listener;
        let form = match first {
            First::Stream { .. } => Form::Events,
            First::Socket { .. } => Form::Socket,
        };
        let mut record = Record::new(account, token, scopes, form, id);
        (record.sees_all, record.languages) = (sees_all, languages);
        if guard.is_some() {
            record.more().guard = guard;
        }
        let record = self.listeners.enter(record);
        self.serial = self.serial.wrapping_add(1);
        let place = self.talks.put(Talk::new(self.serial, Party::Listener(record)));
        let who = self.who(id, self.serial);
        let Some(slot) = self.table.get(id) else { return };
        slot.member = place;
        match first {
            First::Stream { stream, admission, last_event_id } => {
                if let Some(record) = self.listeners.get_mut(record).filter(|_| last_event_id.is_some()) {
                    record.more().last_event_id = last_event_id;
                }
                let lens = self.lens(record, admission);
                self.listeners.subscribe(record, &stream, lens);
                // Once all that it listens to is subscribed.
                let _ = self.ears.wants.send(Want::Standing(who));
            }
            First::Socket { wanted } => {
                // What comes of it is said behind the handshake.
                let listener = self.listeners.get_mut(record);
                if let (Some(listener), Some(named)) = (listener, wanted) {
                    listener.more().waiting.push_back(Command::Subscribe(named));
                }
            }
        }
    }

    /// The head of the answer is written: now what it asked for in its address.
    pub(super) fn begin_listening(&mut self, id: SlotId) {
        if let Some(record) = self.record(id) {
            self.do_what_waits(id, record);
        }
    }

    fn record(&self, id: SlotId) -> Option<RecordId> {
        match self.talks.get(&self.table, id)?.party {
            Party::Listener(record) => Some(record),
            Party::Client(_) | Party::Guest(_) => None,
        }
    }

    fn lens(&self, record: RecordId, Admission { viewer, closed }: Admission) -> Option<Arc<Lens>> {
        let languages = self.listeners.get(record).and_then(|record| record.languages.clone());
        viewer.map(|viewer| Arc::new(Lens { viewer, closed, languages }))
    }

    /// What a client says over WebSocket.
    pub(super) fn hear_listener(&mut self, id: SlotId, bytes: &[u8]) {
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
        talk.extra().inbound.feed(bytes);
        loop {
            let now_s = self.now_s();
            let Some(talk) = self.talks.get_mut(&self.table, id) else { return };
            let incoming = match talk.extra().inbound.pop(&frames::NATIVE) {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break talk.tidy(),
                Err(Fault { code, reason }) => return self.hang_up(id, code, reason),
            };
            if !talk.may_speak(now_s) {
                metrics::dropped("talkative");
                return self.hang_up(id, POLICY, "too many messages");
            }
            match incoming {
                Incoming::Text(text) => {
                    if let Some(command) = Command::parse(&text) {
                        self.asked_for(id, command);
                    }
                }
                Incoming::Ping(payload) => self.say(id, frames::pong(payload), None),
                Incoming::Pong => {
                    let record = self.record(id).and_then(|record| self.listeners.get_mut(record));
                    if let Some(record) = record {
                        record.awaits_pong = false;
                    }
                }
                // Neither comes by these rules.
                Incoming::Binary(_) | Incoming::TooBig => {}
                Incoming::Close(code) => {
                    let answer = code.map_or_else(frames::close_without_code, |code| frames::close(code, ""));
                    return self.goodbye(id, &answer);
                }
            }
        }
    }

    /// Behind what waits.
    fn asked_for(&mut self, id: SlotId, command: Command) {
        let Some(record) = self.record(id) else { return };
        let Some(listener) = self.listeners.get_mut(record) else { return };
        listener.more().waiting.push_back(command);
        if listener.more().waiting.len() > MAX_WAITING {
            metrics::dropped("talkative");
            return self.hang_up(id, POLICY, "too many messages");
        }
        self.do_what_waits(id, record);
    }

    /// In order, until something has to be looked into.
    fn do_what_waits(&mut self, id: SlotId, record: RecordId) {
        loop {
            let Some(listener) = self.listeners.get_mut(record) else { return };
            let (account, sees_all, scopes) = (listener.account, listener.sees_all, listener.scopes());
            let Some(more) = listener.more.as_mut().filter(|more| !more.asking) else { return };
            let Some(command) = more.waiting.pop_front() else { return listener.tidy() };
            match command {
                Command::Unsubscribe(named) => match named.resolve() {
                    Ok(stream) => drop(self.listeners.unsubscribe(record, &stream)),
                    Err(_) => self.say(id, encode::error("Error unsubscribing from channel", None), None),
                },
                Command::Subscribe(named) => match named.allowed(scopes) {
                    Err(error) => self.refuse(id, error),
                    Ok(stream) if !needs_a_look(&stream) => {
                        self.listeners.subscribe(record, &stream, None);
                    }
                    Ok(_) if self.listeners.subscriptions(record) >= MAX_SUBSCRIPTIONS => {
                        self.refuse(id, Error::TooManyStreams);
                    }
                    Ok(stream) => {
                        let Some(serial) = self.talks.get(&self.table, id).map(|talk| talk.serial) else {
                            return;
                        };
                        let who = self.who(id, serial);
                        if let Some(listener) = self.listeners.get_mut(record) {
                            listener.more().asking = true;
                        }
                        let _ = self.ears.questions.send(Question { who, account, sees_all, stream });
                        return;
                    }
                },
            }
        }
    }

    fn refuse(&mut self, id: SlotId, error: Error) {
        metrics::refused("mastodon");
        self.say(id, encode::error(&error.to_string(), Some(error.status())), None);
    }

    /// What came of looking into the first of what a client waits for.
    pub(super) fn admitted(&mut self, id: SlotId, stream: &Stream, admission: Result<Admission, Error>) {
        let Some(record) = self.record(id) else { return };
        let Some(listener) = self.listeners.get_mut(record) else { return };
        listener.more().asking = false;
        match admission {
            Ok(admission) => {
                let lens = self.lens(record, admission);
                self.listeners.subscribe(record, stream, lens);
            }
            Err(error) => self.refuse(id, error),
        }
        self.do_what_waits(id, record);
    }

    /// A stream of events gets all that comes from now on; before that, what it missed.
    pub(super) fn stands(&mut self, id: SlotId) {
        let Some(record) = self.record(id) else { return };
        let (missed, unjudged) = self.missed(record);
        let Some(listener) = self.listeners.get_mut(record).filter(|listener| !listener.is_open) else {
            return;
        };
        listener.is_open = true;
        if let Some(more) = &mut listener.more {
            more.last_event_id = None;
            more.held.extend(unjudged);
        }
        listener.tidy();
        let mut first = BytesMut::from(&hello()[..]);
        for bytes in missed {
            first.put(bytes);
        }
        self.say(id, first.freeze(), None);
        if self.draining {
            self.farewell(id);
        }
    }

    /// Signs of life, when they are due.
    pub(super) fn beat_listener(&mut self, id: SlotId) {
        let Some(record) = self.record(id) else { return };
        let Some(listener) = self.listeners.get_mut(record) else { return };
        let (form, is_open) = (listener.form, listener.is_open);
        // Who takes what it is owed may have a ping behind what it has not read: others look after these.
        let is_owing = self.table.get(id).is_some_and(|slot| slot.owing);
        match form {
            Form::Events if is_open && !is_owing => self.give(id, &thump()),
            Form::Socket if !is_owing => {
                if std::mem::replace(&mut listener.awaits_pong, true) {
                    metrics::dropped("silent");
                    return self.close(id);
                }
                self.give(id, &frames::ping());
            }
            Form::Events | Form::Socket => listener.awaits_pong = false,
        }
    }

    /// Its connection has ended.
    pub(super) fn stop_listening(&mut self, record: RecordId) {
        let Some(listener) = self.listeners.get_mut(record) else { return };
        let replay = self.ears.replay;
        if listener.form == Form::Events && listener.is_open && !replay.is_zero() && !self.draining {
            if let Some(more) = &mut listener.more {
                (more.guard, more.held) = (None, std::collections::VecDeque::new());
            }
            self.listeners.haunt(record, Instant::now() + replay);
        } else {
            self.listeners.remove(record);
        }
    }

    /// From time to time.
    pub(super) fn forget_listeners(&mut self, now: Instant) {
        self.listeners.forget(now, MAX_GHOSTS);
        self.mailbox.forget(now, self.ears.replay);
    }

    /// What Redis is to have subscribed for this reactor.
    pub(super) fn name_channels(&self, to: &tokio::sync::mpsc::UnboundedSender<Vec<Channel>>) {
        // Nobody waits for it any more.
        let _ = to.send(self.listeners.channels());
    }

    pub(super) fn obey(&mut self, mail: Mail) {
        match mail {
            Mail::Kill(channel) => self.kill(&channel),
            Mail::Judge(account) => self.judge_held(account),
            Mail::Post(channel, post) => self.mailbox.put(channel, post),
        }
    }

    /// The token, or the account, is not good any more.
    fn kill(&mut self, channel: &Channel) {
        let slots: Vec<SlotId> = match channel {
            Channel::AccessToken(token) => {
                let theirs = self.listeners.all().filter(|record| record.token == *token);
                theirs.map(|record| record.slot).collect()
            }
            Channel::System(account) => {
                self.listeners.of_account(*account).map(|record| record.slot).collect()
            }
            _ => return,
        };
        for id in slots {
            let Some(slot) = self.table.get(id) else { continue };
            metrics::dropped("killed");
            let last = if slot.dialect.is_socket() { frames::close_without_code() } else { Bytes::new() };
            self.goodbye(id, &last);
        }
    }
}

/// Whether the database has to be asked about it.
fn needs_a_look(stream: &Stream) -> bool {
    matches!(stream, Stream::List { .. }) || stream.is_filtered()
}
