//! Who listens to what on this reactor: a small record for each connection, those of an account in a row.
//!
//! All connections of an account are with one reactor, which alone knows whether a channel of the account is needed. Only
//! who listens to what many do (public streams, hashtags, lists) has more than its record.

use super::{
    super::{Want, routes::Routes, table::SlotId},
    shared::{Member, Shared},
};
use crate::{
    dialects::mastodon::{
        Form,
        channel::{AccountId, Channel, TokenId},
        filter::Languages,
        post::Post,
        request::Command,
        scopes::Scopes,
        stream::{Label, Stream},
    },
    mastodon::{Guard, Lens},
    metrics,
};
use hashbrown::HashMap;
use std::{collections::VecDeque, sync::Arc, time::Instant};
use tokio::sync::mpsc::UnboundedSender;

/// The place of a record.
pub(in crate::reactor) type RecordId = u32;
const NONE: RecordId = RecordId::MAX;
/// In place of a connection that has ended.
const NOBODY: SlotId = SlotId::MAX;

/// Streams that are the account's own, a bit each.
const USER: u8 = 1;
const USER_NOTIFICATION: u8 = 1 << 1;
const DIRECT: u8 = 1 << 2;

#[allow(clippy::struct_excessive_bools, reason = "each is one thing by itself, and a byte")]
pub(in crate::reactor) struct Record {
    pub(super) account: AccountId,
    pub(super) token: TokenId,
    pub(super) languages: Languages,
    pub(super) more: Option<Box<More>>,
    /// The others of the account.
    next: RecordId,
    previous: RecordId,
    pub(super) slot: SlotId,
    streams: u8,
    pub(super) form: Form,
    pub(super) may_statuses: bool,
    pub(super) may_notifications: bool,
    /// What the operator shows to nobody else too.
    pub(super) sees_all: bool,
    /// It got a ping, and no pong since.
    pub(super) awaits_pong: bool,
    /// It has been told that it listens.
    pub(super) is_open: bool,
}

/// What most have nothing of.
#[derive(Default)]
pub(super) struct More {
    pub(super) subscriptions: Vec<Subscription>,
    /// What it said and that has to wait for what it said before.
    pub(super) waiting: VecDeque<Command>,
    /// What cannot be judged before the viewer's rules can be read again: which subscription, and the message.
    pub(super) held: VecDeque<(Channel, Arc<Post>)>,
    /// Where it left off.
    pub(super) last_event_id: Option<Box<str>>,
    /// Its place among those of its token and address.
    pub(super) guard: Option<Guard>,
    /// Somebody looks into the first of what waits.
    pub(super) asking: bool,
}

/// One to what many listen to.
pub(super) struct Subscription {
    pub(super) stream: Stream,
    pub(super) channel: Channel,
    /// Among the members of the channel.
    pub(super) place: u32,
    pub(super) lens: Option<Arc<Lens>>,
}

impl More {
    fn is_empty(&self) -> bool {
        let quiet = self.subscriptions.is_empty() && self.waiting.is_empty() && self.held.is_empty();
        quiet && self.last_event_id.is_none() && self.guard.is_none() && !self.asking
    }
}

impl Record {
    pub(super) fn new(account: AccountId, token: TokenId, scopes: Scopes, form: Form, slot: SlotId) -> Self {
        Self {
            account,
            token,
            languages: None,
            more: None,
            next: NONE,
            previous: NONE,
            slot,
            streams: 0,
            form,
            may_statuses: scopes.statuses,
            may_notifications: scopes.notifications,
            sees_all: false,
            awaits_pong: false,
            is_open: form == Form::Socket,
        }
    }

    pub(super) fn scopes(&self) -> Scopes {
        Scopes { statuses: self.may_statuses, notifications: self.may_notifications }
    }

    pub(super) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Gives memory back that is not needed.
    pub(super) fn tidy(&mut self) {
        if self.more.as_ref().is_some_and(|more| more.is_empty()) {
            self.more = None;
        } else if let Some(more) = &mut self.more {
            if more.waiting.is_empty() {
                more.waiting = VecDeque::new();
            }
            if more.held.is_empty() {
                more.held = VecDeque::new();
            }
        }
    }

    pub(super) fn is_ghost(&self) -> bool {
        self.slot == NOBODY
    }

    /// Under which names it gets what comes on a channel of its account.
    pub(super) fn labels(&self, channel: &Channel) -> [Option<Label>; 2] {
        let own = |bit: u8, stream: &Stream| (self.streams & bit != 0).then(|| stream.label());
        match channel {
            Channel::Home(_) => [own(USER, &Stream::User), None],
            Channel::Notifications(_) => {
                let user = own(USER, &Stream::User).filter(|_| self.may_notifications);
                [user, own(USER_NOTIFICATION, &Stream::UserNotification)]
            }
            Channel::Direct(_) => [own(DIRECT, &Stream::Direct), None],
            _ => [None, None],
        }
    }

    /// Those that get the same of their account's channels have the same.
    pub(super) fn kind(&self) -> (u8, bool, Form) {
        (self.streams, self.may_notifications, self.form)
    }

    fn needs(&self, channel: &Channel) -> bool {
        match channel {
            Channel::AccessToken(token) => self.token == *token,
            Channel::System(_) => true,
            channel => self.labels(channel).iter().any(Option::is_some),
        }
    }

    fn bit(stream: &Stream) -> Option<u8> {
        match stream {
            Stream::User => Some(USER),
            Stream::UserNotification => Some(USER_NOTIFICATION),
            Stream::Direct => Some(DIRECT),
            Stream::List { .. } | Stream::Public { .. } | Stream::Hashtag { .. } => None,
        }
    }

    fn streams(&self) -> impl Iterator<Item = Stream> {
        let own = [Stream::User, Stream::UserNotification, Stream::Direct];
        let streams = self.streams;
        own.into_iter().filter(move |stream| Self::bit(stream).is_some_and(|bit| streams & bit != 0))
    }
}

pub(in crate::reactor) struct Listeners {
    records: Vec<Option<Record>>,
    free: Vec<RecordId>,
    /// The first of each account.
    accounts: HashMap<AccountId, RecordId>,
    shared: HashMap<Channel, Shared>,
    /// Streams of events that have ended, and until when they are waited for.
    ghosts: VecDeque<(Instant, RecordId)>,
    /// Streams of events, the ended ones included.
    events: usize,
    wants: UnboundedSender<Want>,
    routes: Arc<Routes>,
    reactor: usize,
}

impl Listeners {
    pub(in crate::reactor) fn new(wants: UnboundedSender<Want>, routes: Arc<Routes>, reactor: usize) -> Self {
        Self {
            records: Vec::new(),
            free: Vec::new(),
            accounts: HashMap::new(),
            shared: HashMap::new(),
            ghosts: VecDeque::new(),
            events: 0,
            wants,
            routes,
            reactor,
        }
    }

    pub(super) fn get(&self, id: RecordId) -> Option<&Record> {
        self.records.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: RecordId) -> Option<&mut Record> {
        self.records.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().flatten()
    }

    pub(super) fn of_account(&self, account: AccountId) -> impl Iterator<Item = &Record> {
        let first = self.accounts.get(&account).and_then(|first| self.get(*first));
        std::iter::successors(first, |record| self.get(record.next))
    }

    fn is_needed(&self, account: AccountId, channel: &Channel) -> bool {
        self.of_account(account).any(|record| record.needs(channel))
    }

    /// Whoever has the other end ends with the process.
    fn want(&self, want: Want) {
        let _ = self.wants.send(want);
    }

    fn subscribe_all(&self, channels: impl IntoIterator<Item = Channel>) {
        for channel in channels {
            metrics::redis_subscriptions(1.0);
            self.want(Want::Subscribe(channel));
        }
    }

    fn unsubscribe_all(&self, channels: impl IntoIterator<Item = Channel>) {
        for channel in channels {
            metrics::redis_subscriptions(-1.0);
            self.want(Want::Unsubscribe(channel));
        }
    }

    /// A connection; from now on it hears when its token or its account is no good any more.
    pub(super) fn enter(&mut self, mut record: Record) -> RecordId {
        let (account, token) = (record.account, record.token);
        let mut new = Vec::new();
        if !self.is_needed(account, &Channel::AccessToken(token)) {
            new.push(Channel::AccessToken(token));
        }
        self.events += usize::from(record.form == Form::Events);
        let form = record.form;
        let first = self.accounts.get(&account).copied();
        record.next = first.unwrap_or(NONE);
        let id = if let Some(id) = self.free.pop() {
            self.records[id as usize] = Some(record);
            id
        } else {
            self.records.push(Some(record));
            // There are no more of them than slots, and some that have gone.
            RecordId::try_from(self.records.len() - 1).unwrap_or(NONE)
        };
        match first.and_then(|first| self.get_mut(first)) {
            Some(first) => first.previous = id,
            None => new.push(Channel::System(account)),
        }
        self.accounts.insert(account, id);
        self.subscribe_all(new);
        metrics::mastodon_client(form, 1.0);
        id
    }

    /// It has gone for good.
    pub(super) fn remove(&mut self, id: RecordId) {
        for stream in &self.streams_of(id) {
            self.unsubscribe(id, stream);
        }
        let Some(record) = self.records.get_mut(id as usize).and_then(Option::take) else { return };
        self.free.push(id);
        let Record { account, token, next, previous, form, slot, .. } = record;
        self.events -= usize::from(form == Form::Events);
        if slot != NOBODY {
            metrics::mastodon_client(form, -1.0);
        }
        if let Some(next) = self.get_mut(next) {
            next.previous = previous;
        }
        let mut gone = Vec::new();
        if let Some(previous) = self.get_mut(previous) {
            previous.next = next;
        } else if next == NONE {
            self.accounts.remove(&account);
            gone.push(Channel::System(account));
        } else {
            self.accounts.insert(account, next);
        }
        if !self.is_needed(account, &Channel::AccessToken(token)) {
            gone.push(Channel::AccessToken(token));
        }
        self.unsubscribe_all(gone);
        self.shrink();
    }

    /// Gives memory back once nobody is there.
    fn shrink(&mut self) {
        if self.free.len() == self.records.len() {
            (self.records, self.free) = (Vec::new(), Vec::new());
            (self.accounts, self.shared) = (HashMap::new(), HashMap::new());
        }
    }

    /// Nothing if it listens to that already.
    pub(super) fn subscribe(&mut self, id: RecordId, stream: &Stream, lens: Option<Arc<Lens>>) -> bool {
        let Some(record) = self.get(id) else { return false };
        let (account, scopes, form) = (record.account, record.scopes(), record.form);
        let mut channels = stream.channels(account, scopes);
        if let Some(bit) = Record::bit(stream) {
            if record.streams & bit != 0 {
                return false;
            }
            channels.retain(|channel| !self.is_needed(account, channel));
            if let Some(record) = self.get_mut(id) {
                record.streams |= bit;
            }
            self.subscribe_all(channels);
        } else if let Some(channel) = channels.pop() {
            if self.subscription(id, stream).is_some() {
                return false;
            }
            self.join(id, Subscription { stream: stream.clone(), channel, place: 0, lens });
        }
        metrics::mastodon_channel(form, stream.name(), 1.0);
        true
    }

    /// False if it does not listen to that.
    pub(super) fn unsubscribe(&mut self, id: RecordId, stream: &Stream) -> bool {
        let Some(record) = self.get(id) else { return false };
        let (account, scopes, form) = (record.account, record.scopes(), record.form);
        let is_ghost = record.is_ghost();
        if let Some(bit) = Record::bit(stream) {
            if record.streams & bit == 0 {
                return false;
            }
            if let Some(record) = self.get_mut(id) {
                record.streams &= !bit;
            }
            let mut channels = stream.channels(account, scopes);
            channels.retain(|channel| !self.is_needed(account, channel));
            self.unsubscribe_all(channels);
        } else {
            let Some(at) = self.subscription(id, stream) else { return false };
            let Some(record) = self.get_mut(id) else { return false };
            let subscription = record.more().subscriptions.swap_remove(at);
            self.leave(&subscription, id);
        }
        if !is_ghost {
            metrics::mastodon_channel(form, stream.name(), -1.0);
        }
        true
    }

    /// What a connection has asked for.
    fn streams_of(&self, id: RecordId) -> Vec<Stream> {
        let Some(record) = self.get(id) else { return Vec::new() };
        let shared = record.more.iter().flat_map(|more| &more.subscriptions);
        record.streams().chain(shared.map(|subscription| subscription.stream.clone())).collect()
    }

    fn subscription(&self, id: RecordId, stream: &Stream) -> Option<usize> {
        let more = self.get(id)?.more.as_ref()?;
        more.subscriptions.iter().position(|subscription| subscription.stream.is_same(stream))
    }

    /// How many it has of those that many listen to.
    pub(super) fn subscriptions(&self, id: RecordId) -> usize {
        let more = self.get(id).and_then(|record| record.more.as_ref());
        more.map_or(0, |more| more.subscriptions.len())
    }

    fn join(&mut self, id: RecordId, mut subscription: Subscription) {
        let Some(form) = self.get(id).map(|record| record.form) else { return };
        let channel = subscription.channel.clone();
        if !self.shared.contains_key(&channel) {
            self.routes.add(&channel, self.reactor, &self.wants);
        }
        let shared = self.shared.entry(channel).or_default();
        let label = subscription.stream.label();
        subscription.place = shared.join(id, form, &label, subscription.lens.clone());
        if let Some(record) = self.get_mut(id) {
            // Most have one.
            record.more().subscriptions.reserve_exact(1);
            record.more().subscriptions.push(subscription);
        }
    }

    fn leave(&mut self, subscription: &Subscription, id: RecordId) {
        let channel = &subscription.channel;
        let Some(shared) = self.shared.get_mut(channel) else { return };
        let moved = shared.leave(subscription.place);
        if shared.is_empty() {
            self.shared.remove(channel);
            self.routes.remove(channel, self.reactor, &self.wants);
        }
        let Some(moved) = moved.filter(|moved| *moved != id).and_then(|moved| self.get_mut(moved)) else {
            return;
        };
        let mut theirs = moved.more.iter_mut().flat_map(|more| &mut more.subscriptions);
        if let Some(theirs) = theirs.find(|theirs| theirs.channel == *channel) {
            theirs.place = subscription.place;
        }
    }

    /// Those who listen to what many do; it has to be given back.
    pub(super) fn take_shared(&mut self, channel: &Channel) -> Option<Shared> {
        self.shared.get_mut(channel).map(std::mem::take)
    }

    pub(super) fn give_back(&mut self, channel: &Channel, shared: Shared) {
        if let Some(place) = self.shared.get_mut(channel) {
            *place = shared;
        }
    }

    pub(super) fn member(&self, id: RecordId, channel: &Channel) -> Option<(&Shared, &Member)> {
        let more = self.get(id)?.more.as_ref()?;
        let theirs = more.subscriptions.iter().find(|theirs| theirs.channel == *channel)?;
        let shared = self.shared.get(channel)?;
        Some((shared, shared.get(theirs.place)?))
    }

    /// What one connection listens to.
    pub(super) fn channels_of(&self, id: RecordId) -> Vec<Channel> {
        let Some(record) = self.get(id) else { return Vec::new() };
        let own = record.streams().flat_map(|stream| stream.channels(record.account, record.scopes()));
        let shared = record.more.iter().flat_map(|more| &more.subscriptions);
        own.chain(shared.map(|subscription| subscription.channel.clone())).collect()
    }

    /// A stream of events whose connection has ended: what it listened to is listened to for a while, for it may come back.
    pub(super) fn haunt(&mut self, id: RecordId, until: Instant) {
        let streams = self.streams_of(id);
        let Some(record) = self.get_mut(id) else { return };
        record.slot = NOBODY;
        metrics::mastodon_client(record.form, -1.0);
        for stream in streams {
            metrics::mastodon_channel(record.form, stream.name(), -1.0);
        }
        self.ghosts.push_back((until, id));
    }

    /// Those that did not come back, and the first ones where they are too many.
    pub(super) fn forget(&mut self, now: Instant, most: usize) {
        while let Some((until, id)) = self.ghosts.front().copied() {
            if now < until && self.ghosts.len() <= most {
                return;
            }
            self.ghosts.pop_front();
            self.remove(id);
        }
    }

    /// Whether anybody may want to know what there was.
    pub(super) fn has_events(&self) -> bool {
        self.events > 0
    }

    /// Every channel that is needed here. Of those that many listen to another reactor may name the same.
    pub(super) fn channels(&self) -> Vec<Channel> {
        let mut all: Vec<Channel> = self.shared.keys().cloned().collect();
        for (account, _) in &self.accounts {
            let account = *account;
            let own = [
                Channel::Home(account),
                Channel::Notifications(account),
                Channel::Direct(account),
                Channel::System(account),
            ];
            all.extend(own.into_iter().filter(|channel| self.is_needed(account, channel)));
        }
        let mut tokens: Vec<TokenId> = self.all().map(|record| record.token).collect();
        tokens.sort_unstable_by_key(|token| token.0);
        tokens.dedup();
        all.extend(tokens.into_iter().map(Channel::AccessToken));
        all
    }
}

#[cfg(test)]
mod tests;
