//! A session as its node has it: between the reactor that has its connection and the tasks that do what it asks for.

use super::sessions::Sessions;
use crate::{
    dialects::cbor::{DataForm, IdForm},
    reactor::Who,
};
use std::sync::Arc;
use uuid::Uuid;

/// What there is of each connection, in one table of all: a small allocation for each would lie among those of requests, of
/// which nothing is left, and keep their pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) id: Uuid,
    /// Up to this message of the stream the client has everything.
    confirmed: u64,
    who: Who,
    /// Counts its connections: what one of before still writes is void.
    pub(super) epoch: u32,
    /// Subscriptions that are there and not followed yet: until they are nobody can say what the client has.
    unsettled: u16,
    /// Handles of it. One that has as many as can be counted stays.
    pub(super) handles: u16,
    stage: Stage,
    /// What is confirmed is not in the database.
    is_news: bool,
    ids: IdForm,
    data: DataForm,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// No reactor has its connection yet.
    #[default]
    Coming,
    Here,
    /// Another connection has the session, before a reactor has this one,
    Late,
    /// or after.
    Leaving,
}

impl Record {
    pub(super) fn new(id: Uuid, epoch: i64, confirmed: u64) -> Self {
        // Nobody connects as often. Until what it is subscribed to is followed, it is not settled.
        let epoch = u32::try_from(epoch).unwrap_or(u32::MAX);
        Self { id, epoch, confirmed, unsettled: 1, ..Self::default() }
    }

    fn confirm(&mut self, sequence: u64) {
        if sequence > self.confirmed {
            (self.confirmed, self.is_news) = (sequence, true);
        }
    }

    /// How far it is, if that is not noted; or in any case.
    pub(super) fn news(&mut self, always: bool) -> Option<u64> {
        (std::mem::take(&mut self.is_news) || always).then_some(self.confirmed)
    }
}

/// Holds on to a session, whose record goes with the last handle.
#[derive(Debug)]
pub struct Session {
    all: Arc<Sessions>,
    place: u32,
}

impl Clone for Session {
    fn clone(&self) -> Self {
        self.all.hold(self.place);
        Self::counted(&self.all, self.place)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.all.release(self.place);
    }
}

impl Session {
    /// A handle that is counted already.
    pub(super) fn counted(all: &Arc<Sessions>, place: u32) -> Self {
        Self { all: Arc::clone(all), place }
    }

    fn record<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        self.all.record(self.place, change)
    }

    pub(super) fn place(&self) -> u32 {
        self.place
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.place == other.place
    }

    pub fn id(&self) -> Uuid {
        self.record(|record| record.id)
    }

    pub fn epoch(&self) -> i64 {
        self.record(|record| record.epoch.into())
    }

    pub fn confirmed(&self) -> u64 {
        self.record(|record| record.confirmed)
    }

    /// The client has everything up to there.
    pub fn confirm(&self, sequence: u64) {
        self.record(|record| record.confirm(sequence));
    }

    pub(super) fn unsettle(&self) {
        self.record(|record| record.unsettled = record.unsettled.saturating_add(1));
    }

    /// What was to be followed is.
    pub fn settle(&self) {
        self.record(|record| record.unsettled = record.unsettled.saturating_sub(1));
    }

    pub fn is_settled(&self) -> bool {
        self.record(|record| record.unsettled == 0)
    }

    /// It could not be noted.
    pub(super) fn is_not_noted(&self) {
        self.record(|record| record.is_news = true);
    }

    /// A reactor has its connection. False if another connection has the session by now.
    pub(super) fn arrive(&self, who: Who) -> bool {
        self.record(|record| {
            record.who = who;
            record.stage = if record.stage == Stage::Coming { Stage::Here } else { Stage::Leaving };
            record.stage == Stage::Here
        })
    }

    /// Another connection has it. Returns this one, once it is with a reactor.
    pub(super) fn supersede(&self) -> Option<Who> {
        self.record(|record| {
            let is_here = matches!(record.stage, Stage::Here | Stage::Leaving);
            record.stage = if is_here { Stage::Leaving } else { Stage::Late };
            is_here.then_some(record.who)
        })
    }

    /// How its client writes.
    pub(super) fn forms(&self) -> (IdForm, DataForm) {
        self.record(|record| (record.ids, record.data))
    }

    /// Whether it writes ids in another way than before.
    pub(super) fn writes(&self, ids: IdForm, data: Option<DataForm>) -> bool {
        self.record(|record| {
            record.data = data.unwrap_or(record.data);
            std::mem::replace(&mut record.ids, ids) != ids
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Record>() <= 48, "{}", size_of::<Record>());
    }

    #[test]
    fn what_is_confirmed_is_news_once() {
        let mut record = Record::new(Uuid::nil(), 1, 5);
        record.confirm(4);
        assert_eq!(record.news(false), None);
        record.confirm(6);
        assert_eq!((record.news(false), record.news(false), record.news(true)), (Some(6), None, Some(6)));
    }

    #[test]
    fn who_comes_too_late_leaves() {
        let all = Sessions::new();
        let (session, _) = all.begin(Uuid::nil(), 1, 0);
        assert!(session.supersede().is_none());
        assert!(!session.arrive(Who::default()));
        assert!(session.supersede().is_some());
        let (session, older) = all.begin(Uuid::nil(), 2, 0);
        assert!(older.is_some() && session.arrive(Who::default()));
        assert!(session.supersede().is_some());
    }
}
