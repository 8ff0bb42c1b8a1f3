//! A session as its node has it: between the reactor that has its connection and the tasks that do what it asks for.

use super::queue::Group;
use crate::{
    dialects::cbor::{DataForm, IdForm},
    engine::channel::ChannelId,
    reactor::Who,
};
use cratemill_protocol::SubscriptionId;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;
use uuid::Uuid;

#[derive(Debug)]
pub struct Session {
    pub id: Uuid,
    /// Counts its connections: what one of before still writes is void.
    pub epoch: i64,
    /// Up to this message of the stream the client has everything.
    confirmed: AtomicU64,
    /// And that is in the database.
    noted: AtomicU64,
    /// Subscriptions that are there and not followed yet: until they are nobody can say what the client has.
    unsettled: AtomicU32,
    state: Mutex<State>,
}

/// What only the task changes whose turn it is.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Once a reactor has its connection.
    pub(super) who: Option<Who>,
    /// Another connection has the session.
    pub(super) superseded: bool,
    /// Subscriptions that it gets everything of.
    pub(super) follows: Vec<(SubscriptionId, ChannelId)>,
    pub(super) groups: Vec<Group>,
    pub(super) ids: IdForm,
    pub(super) data: DataForm,
}

impl Session {
    pub(super) fn new(id: Uuid, epoch: i64, confirmed: u64) -> Self {
        Self {
            id,
            epoch,
            confirmed: AtomicU64::new(confirmed),
            noted: AtomicU64::new(confirmed),
            // Until what it is subscribed to is followed.
            unsettled: AtomicU32::new(1),
            state: Mutex::default(),
        }
    }

    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// The client has everything up to there.
    pub fn confirm(&self, sequence: u64) {
        self.confirmed.fetch_max(sequence, Ordering::Relaxed);
    }

    pub(super) fn unsettle(&self) {
        self.unsettled.fetch_add(1, Ordering::Relaxed);
    }

    /// What was to be followed is.
    pub fn settle(&self) {
        self.unsettled.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed) == 0
    }

    /// How far it is, if that is not noted.
    pub(super) fn news(&self) -> Option<u64> {
        let confirmed = self.confirmed();
        (self.noted.swap(confirmed, Ordering::Relaxed) != confirmed).then_some(confirmed)
    }

    /// It could not be noted.
    pub(super) fn is_not_noted(&self) {
        self.noted.store(0, Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forms(&self) -> (IdForm, DataForm) {
        let state = self.state();
        (state.ids, state.data)
    }
}

/// The sessions whose connections this node has.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: Mutex<HashMap<Uuid, Arc<Session>>>,
    ended: Notify,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Session>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Arc<Session>> {
        self.lock().get(&id).cloned()
    }

    /// The newest connection has the session: of two the older one is returned, which has to go.
    pub(super) fn add(&self, session: &Arc<Session>) -> Option<Arc<Session>> {
        let mut all = self.lock();
        if all.get(&session.id).is_some_and(|there| there.epoch > session.epoch) {
            return Some(Arc::clone(session));
        }
        all.insert(session.id, Arc::clone(session))
    }

    pub(super) fn remove(&self, session: &Arc<Session>) {
        let mut all = self.lock();
        if all.get(&session.id).is_some_and(|there| Arc::ptr_eq(there, session)) {
            all.remove(&session.id);
            if all.is_empty() {
                // Gives memory back once nobody is there.
                *all = HashMap::new();
            }
        }
        drop(all);
        self.ended.notify_waiters();
    }

    /// Waits until this one has ended.
    pub(super) async fn ends(&self, session: &Arc<Session>) {
        loop {
            let ended = self.ended.notified();
            let is_there = self.get(session.id).is_some_and(|there| Arc::ptr_eq(&there, session));
            if !is_there {
                return;
            }
            ended.await;
        }
    }

    pub(super) fn list(&self) -> Vec<Arc<Session>> {
        self.lock().values().cloned().collect()
    }
}
