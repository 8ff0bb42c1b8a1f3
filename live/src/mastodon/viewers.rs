//! What the viewers of public and hashtag streams have blocked, muted and filtered: read when they come, again every so
//! often, and at once when Mastodon says that filters have changed. Never for a message.
//!
//! Rules are used for a minute at most: what comes when they are older waits until they are read.

use crate::{
    dialects::mastodon::{
        channel::AccountId,
        filter::{Closed, Languages, Rules},
        keywords::{Description, Filter},
    },
    metrics,
    reactor::{Mail, Reactors},
};
use cratemill_store::{
    bulk::Pool,
    mastodon::{self, Error},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use time::{PrimitiveDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// After a change nobody sees what they do not want to see for longer than this.
const USED_FOR: Duration = Duration::from_mins(1);
/// How often it is looked whose rules are to be read again,
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// and of how many at once.
const AT_ONCE: usize = 256;

/// An account that looks at public or hashtag streams here.
#[derive(Debug)]
pub struct Viewer {
    account: AccountId,
    loaded: RwLock<Loaded>,
    /// How often Mastodon has said that its filters are others.
    changes: AtomicU32,
}

#[derive(Debug, Clone)]
struct Loaded {
    rules: Arc<Rules>,
    /// Of the changes those that they have.
    changes: u32,
    /// Before they were read.
    as_of: Instant,
}

/// A stream as one connection sees it.
#[derive(Debug)]
pub struct Lens {
    pub viewer: Arc<Viewer>,
    pub closed: Closed,
    pub languages: Languages,
}

impl Viewer {
    fn new(account: AccountId, read: mastodon::Rules, as_of: Instant) -> Self {
        let loaded = Loaded { rules: Arc::new(rules(read)), changes: 0, as_of };
        Self { account, loaded: RwLock::new(loaded), changes: AtomicU32::new(0) }
    }

    /// Nothing while they are too old, or changes of filters are not read.
    pub fn rules(&self, now: Instant) -> Option<Arc<Rules>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let is_young = now.saturating_duration_since(loaded.as_of) < USED_FOR;
        (is_young && loaded.changes == self.changes()).then(|| Arc::clone(&loaded.rules))
    }

    fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.loaded.read().unwrap_or_else(PoisonError::into_inner).as_of)
    }

    /// What was read after that moment, and so many changes.
    fn set(&self, new: mastodon::Rules, as_of: Instant, changes: u32) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let new = rules(new);
        // Most are what they were.
        if *loaded.rules != new {
            loaded.rules = Arc::new(new);
        }
        (loaded.as_of, loaded.changes) = (as_of, changes);
    }
}

#[derive(Debug)]
pub(super) struct Viewers {
    pool: Pool,
    refresh_after: Duration,
    all: Mutex<HashMap<AccountId, Weak<Viewer>>>,
    /// How often filters have changed of those who are not here yet, or are being read for the first time.
    missed: AtomicU32,
    to_read: UnboundedSender<AccountId>,
}

impl Viewers {
    pub(super) fn new(pool: Pool, refresh_s: u16) -> (Arc<Self>, UnboundedReceiver<AccountId>) {
        let (to_read, nudged) = unbounded_channel();
        let refresh_after = Duration::from_secs(refresh_s.into());
        (
            Arc::new(Self { pool, refresh_after, all: Mutex::default(), missed: AtomicU32::new(0), to_read }),
            nudged,
        )
    }

    /// With rules that can be used, or that are being read.
    pub(super) async fn get(&self, account: AccountId) -> Result<Arc<Viewer>, Error> {
        let known = self.lock().get(&account).and_then(Weak::upgrade);
        if let Some(viewer) = known.filter(|viewer| viewer.rules(Instant::now()).is_some()) {
            return Ok(viewer);
        }
        let (missed, as_of) = (self.missed.load(Ordering::Acquire), Instant::now());
        let mut read = mastodon::rules(&self.pool, &[account.0]).await?;
        let new = read.remove(&account.0).unwrap_or_default();
        let mut all = self.lock();
        if let Some(viewer) = all.get(&account).and_then(Weak::upgrade) {
            return Ok(viewer);
        }
        let viewer = Arc::new(Viewer::new(account, new, as_of));
        all.insert(account, Arc::downgrade(&viewer));
        // Perhaps these were changed: they may have been read before or after.
        if missed != self.missed.load(Ordering::Acquire) {
            self.void(&viewer);
        }
        Ok(viewer)
    }

    /// The filters of this account are others now: what comes from now on is judged by those.
    pub(super) fn nudge(&self, account: AccountId) {
        let all = self.lock();
        let Some(viewer) = all.get(&account).and_then(Weak::upgrade) else {
            self.missed.fetch_add(1, Ordering::AcqRel);
            return;
        };
        self.void(&viewer);
    }

    /// They are read anew, and what comes meanwhile waits.
    fn void(&self, viewer: &Viewer) {
        viewer.changes.fetch_add(1, Ordering::AcqRel);
        // Whoever takes them ends with the process.
        let _ = self.to_read.send(viewer.account);
    }

    /// What Mastodon said meanwhile was not heard.
    pub(super) fn nudge_all(&self) {
        for account in self.lock().keys() {
            let _ = self.to_read.send(*account);
        }
    }

    /// Whose rules are old; those who have gone are forgotten.
    fn old(&self, now: Instant) -> Vec<AccountId> {
        let mut old = Vec::new();
        self.lock().retain(|account, viewer| {
            let Some(viewer) = viewer.upgrade() else { return false };
            if viewer.age(now) >= self.refresh_after {
                old.push(*account);
            }
            true
        });
        old
    }

    async fn read_again(&self, accounts: &[AccountId], reactors: &Reactors) -> Result<(), Error> {
        let known: Vec<Arc<Viewer>> = {
            let all = self.lock();
            accounts.iter().filter_map(|account| all.get(account)?.upgrade()).collect()
        };
        let as_of = Instant::now();
        let changes: Vec<u32> = known.iter().map(|viewer| viewer.changes()).collect();
        let ids: Vec<i64> = known.iter().map(|viewer| viewer.account.0).collect();
        let mut read = mastodon::rules(&self.pool, &ids).await?;
        for (viewer, changes) in known.iter().zip(changes) {
            let Some(new) = read.remove(&viewer.account.0) else { continue };
            let were_usable = viewer.rules(Instant::now()).is_some();
            viewer.set(new, as_of, changes);
            if !were_usable {
                reactors.mail(Mail::Judge(viewer.account));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Weak<Viewer>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For as long as there are viewers.
pub(super) async fn refresh(
    viewers: Arc<Viewers>,
    mut nudged: UnboundedReceiver<AccountId>,
    reactors: Arc<Reactors>,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut due, mut batch) = (Due::default(), Vec::new());
    loop {
        tokio::select! {
            count = nudged.recv_many(&mut batch, AT_ONCE) => {
                if count == 0 {
                    return;
                }
                due.add(batch.drain(..));
            }
            _ = look.tick() => {
                let status = viewers.pool.status();
                metrics::pg_pool(status.size, status.available, status.waiting);
                due.add(viewers.old(Instant::now()));
            }
        }
        while let Some(part) = due.next() {
            let read = viewers.read_again(&part, &reactors).await;
            let is_read = read.is_ok();
            due.came_of(part, read);
            if !is_read {
                break;
            }
        }
    }
}

/// Whose rules are to be read.
struct Due {
    line: VecDeque<AccountId>,
    known: HashSet<AccountId>,
    /// One whose rules cannot be read must not keep those of others from being read: where it goes wrong they are read in
    /// smaller parts, and come last.
    at_once: usize,
    answers: bool,
}

impl Default for Due {
    fn default() -> Self {
        Self { line: VecDeque::new(), known: HashSet::new(), at_once: AT_ONCE, answers: true }
    }
}

impl Due {
    fn add(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        for account in accounts {
            if self.known.insert(account) {
                self.line.push_back(account);
            }
        }
    }

    fn next(&mut self) -> Option<Vec<AccountId>> {
        let part: Vec<AccountId> = self.line.drain(..self.at_once.min(self.line.len())).collect();
        for account in &part {
            self.known.remove(account);
        }
        if part.is_empty() { None } else { Some(part) }
    }

    fn came_of(&mut self, part: Vec<AccountId>, read: Result<(), Error>) {
        let Err(error) = read else {
            self.at_once = (self.at_once * 2).min(AT_ONCE);
            if !std::mem::replace(&mut self.answers, true) {
                tracing::info!("Mastodon's database answers again");
            }
            return;
        };
        self.at_once = (self.at_once / 2).max(1);
        self.add(part);
        if std::mem::replace(&mut self.answers, false) {
            tracing::warn!(%error, "cannot read what viewers have filtered");
        }
    }
}

fn rules(read: mastodon::Rules) -> Rules {
    let ids = |ids: Vec<i64>| ids.into_iter().map(AccountId).collect();
    Rules {
        hidden: ids(read.hidden),
        hidden_from: ids(read.hidden_from),
        domains: read.domains.into_iter().map(Into::into).collect(),
        filters: read.filters.iter().map(filter).collect(),
    }
}

const AS_JAVASCRIPT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

fn filter(filter: &mastodon::Filter) -> Filter {
    let expires_at = filter.expires_at.map(PrimitiveDateTime::assume_utc);
    let expires_at_text = expires_at.and_then(|at| at.format(AS_JAVASCRIPT).ok());
    let description = Description {
        id: &filter.id.to_string(),
        title: &filter.title,
        context: &filter.context,
        expires_at: expires_at_text.as_deref(),
        filter_action: match filter.action {
            1 => "hide",
            2 => "blur",
            _ => "warn",
        },
    };
    let expires_at_ms = expires_at.and_then(|at| i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok());
    Filter::new(&description, expires_at_ms, filter.keywords.iter().map(|(word, whole)| (&**word, *whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_used_for_a_minute_and_not_once_filters_are_others() {
        let read = Instant::now();
        let viewer = Viewer::new(AccountId(1), mastodon::Rules::default(), read);
        let second = Duration::from_secs(1);
        assert!(viewer.rules(read + 59 * second).is_some());
        assert!(viewer.rules(read + 60 * second).is_none());
        viewer.changes.fetch_add(1, Ordering::AcqRel);
        assert!(viewer.rules(read).is_none());
        viewer.set(mastodon::Rules::default(), read, 0);
        assert!(viewer.rules(read).is_none(), "what was read before the change");
        viewer.set(mastodon::Rules::default(), read + 30 * second, 1);
        assert!(viewer.rules(read + 89 * second).is_some());
    }

    /// All that are read together with it fail.
    #[test]
    fn one_account_that_cannot_be_read_keeps_no_other_from_being_read() {
        let (mut due, mut left) = (Due::default(), HashSet::new());
        due.add((0..1_000).map(AccountId));
        left.extend((0..1_000).map(AccountId));
        let bad = AccountId(7);
        for _ in 0..100 {
            let Some(part) = due.next() else { break };
            let read = if part.contains(&bad) { Err(Error::Silent) } else { Ok(()) };
            if read.is_ok() {
                for account in &part {
                    assert!(left.remove(account));
                }
            }
            due.came_of(part, read);
        }
        assert_eq!(left, HashSet::from([bad]));
        assert_eq!(due.next(), Some(vec![bad]));
    }
}
