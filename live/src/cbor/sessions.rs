//! The sessions whose connections this node has.

use super::session::{Record, Session};
use hashbrown::HashTable;
use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use uuid::Uuid;

#[derive(Debug, Default)]
pub struct Sessions {
    inner: Mutex<Inner>,
    hasher: RandomState,
    ended: Notify,
}

/// A handle for who has very many and the table at hand: it is counted, and does not count itself.
#[derive(Debug)]
pub struct Packed(u32);

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    free: Vec<u32>,
    /// Places of the newest of each id.
    by_id: HashTable<u32>,
}

impl Inner {
    fn hold(&mut self, place: u32) {
        let handles = &mut self.records[place as usize].handles;
        *handles = handles.saturating_add(1);
    }
}

impl Sessions {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn pack(&self, session: &Session) -> Packed {
        self.hold(session.place());
        Packed(session.place())
    }

    /// One handle more of what is packed.
    pub fn unpack(self: &Arc<Self>, Packed(place): &Packed) -> Session {
        self.hold(*place);
        Session::counted(self, *place)
    }

    /// The packed handle itself.
    pub fn give(self: &Arc<Self>, Packed(place): Packed) -> Session {
        Session::counted(self, place)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, id: Uuid) -> u64 {
        self.hasher.hash_one(id)
    }

    /// One handle more.
    pub(super) fn hold(&self, place: u32) {
        self.lock().hold(place);
    }

    /// Whoever has a handle of it has its place.
    pub(super) fn record<T>(&self, place: u32, change: impl FnOnce(&mut Record) -> T) -> T {
        change(&mut self.lock().records[place as usize])
    }

    /// A connection has the session; of two the newest has it, and the older one is returned, which has to go.
    pub fn begin(self: &Arc<Self>, id: Uuid, epoch: i64, confirmed: u64) -> (Session, Option<Session>) {
        let mut record = Record::new(id, epoch, confirmed);
        record.handles = 1;
        let (epoch, hash) = (record.epoch, self.hash(id));
        let mut inner = self.lock();
        let place = if let Some(place) = inner.free.pop() {
            inner.records[place as usize] = record;
            place
        } else {
            inner.records.push(record);
            // There are no more of them than descriptors.
            u32::try_from(inner.records.len() - 1).unwrap_or(u32::MAX)
        };
        let Inner { records, by_id, .. } = &mut *inner;
        let older = match by_id.find_mut(hash, |place| records[*place as usize].id == id) {
            None => {
                by_id.insert_unique(hash, place, |place| self.hash(records[*place as usize].id));
                None
            }
            Some(there) if records[*there as usize].epoch > epoch => Some(place),
            Some(there) => Some(std::mem::replace(there, place)),
        };
        if let Some(older) = older {
            inner.hold(older);
        }
        (Session::counted(self, place), older.map(|older| Session::counted(self, older)))
    }

    pub(super) fn get(self: &Arc<Self>, id: Uuid) -> Option<Session> {
        let mut inner = self.lock();
        let Inner { records, by_id, .. } = &*inner;
        let place = *by_id.find(self.hash(id), |place| records[*place as usize].id == id)?;
        inner.hold(place);
        Some(Session::counted(self, place))
    }

    /// Nobody finds it any more.
    pub(super) fn remove(&self, session: &Session) {
        let id = session.id();
        if let Ok(entry) = self.lock().by_id.find_entry(self.hash(id), |place| *place == session.place()) {
            entry.remove();
        }
        self.ended.notify_waiters();
    }

    /// A handle less; the last one takes the record with it.
    pub(super) fn release(&self, place: u32) {
        let mut inner = self.lock();
        let Inner { records, free, by_id } = &mut *inner;
        let record = &mut records[place as usize];
        if record.handles == u16::MAX {
            return;
        }
        record.handles -= 1;
        if record.handles > 0 {
            return;
        }
        if let Ok(entry) = by_id.find_entry(self.hash(record.id), |other| *other == place) {
            entry.remove();
        }
        free.push(place);
        if free.len() == records.len() {
            // Gives memory back once nobody is there.
            *inner = Inner::default();
        }
    }

    /// Waits until this one has ended.
    pub(super) async fn ends(self: &Arc<Self>, session: &Session) {
        loop {
            let ended = self.ended.notified();
            if !self.get(session.id()).is_some_and(|there| there.is(session)) {
                return;
            }
            ended.await;
        }
    }

    /// How far those are of which that is not noted; or all.
    pub(super) fn news(self: &Arc<Self>, all: bool) -> Vec<(Session, u64)> {
        let mut inner = self.lock();
        let Inner { records, by_id, .. } = &mut *inner;
        let news = by_id.iter().filter_map(|place| {
            let record = &mut records[*place as usize];
            let confirmed = record.news(all)?;
            record.handles = record.handles.saturating_add(1);
            Some((Session::counted(self, *place), confirmed))
        });
        news.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_connection_has_the_session() {
        let sessions = Sessions::new();
        let id = Uuid::from_u128(1);
        let (second, older) = sessions.begin(id, 2, 0);
        assert!(older.is_none());
        let (first, older) = sessions.begin(id, 1, 0);
        assert!(older.unwrap().is(&first));
        sessions.remove(&first);
        assert!(sessions.get(id).unwrap().is(&second));
        let (third, older) = sessions.begin(id, 3, 0);
        assert!(older.unwrap().is(&second));
        sessions.remove(&second);
        assert!(sessions.get(id).unwrap().is(&third));
        sessions.remove(&third);
        assert!(sessions.get(id).is_none());
    }

    #[test]
    fn a_place_is_used_again_when_nobody_holds_it() {
        let sessions = Sessions::new();
        let [first, second, third] = [1, 2, 3].map(|n| sessions.begin(Uuid::from_u128(n), 1, 0).0);
        third.confirm(7);
        let news = sessions.news(false);
        assert_eq!(news.iter().map(|(session, to)| (session.place(), *to)).collect::<Vec<_>>(), [(2, 7)]);
        let (packed, place) = (sessions.pack(&second), second.place());
        drop(second);
        let held = sessions.unpack(&packed);
        drop(sessions.give(packed));
        let (fourth, _) = sessions.begin(Uuid::from_u128(4), 1, 0);
        assert_eq!((held.place(), fourth.place()), (place, 3));
        drop(held);
        assert!(sessions.get(Uuid::from_u128(2)).is_none());
        let (fifth, _) = sessions.begin(Uuid::from_u128(5), 1, 0);
        assert_eq!((fifth.place(), fifth.confirmed()), (place, 0));
        drop((first, third, fourth, fifth, news));
        assert_eq!(sessions.lock().records.capacity(), 0);
    }
}
