//! The entries, and one question at a time about each.

use super::validity::{Stamp, Validity};
use quick_cache::sync::Cache;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// As many as are asked for within seconds at the busiest; the least used go first. One has about 1.5 kB, most of it a
/// presigned URL.
const ENTRIES: usize = 50_000;
/// Who waits this long for another's question about the same entry asks for itself: the other may hang, or have found
/// nothing, and that is not shared.
const JOIN_WAIT: Duration = Duration::from_millis(250);

/// What is forgotten stays until it is asked for again or pushed out, and is used by nobody: see [`Validity`].
#[derive(Debug)]
pub(super) struct Entries<V> {
    entries: Cache<String, Arc<Entry<V>>>,
    validity: Mutex<Validity>,
}

#[derive(Debug)]
struct Entry<V> {
    stamp: Stamp,
    value: V,
}

impl<V> Default for Entries<V> {
    fn default() -> Self {
        Self { entries: Cache::new(ENTRIES), validity: Mutex::default() }
    }
}

impl<V: Clone> Entries<V> {
    pub(super) fn validity(&self) -> MutexGuard<'_, Validity> {
        self.validity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept under `key`, or what `load` finds, which is then kept for `life`. An error is kept nowhere.
    pub(super) async fn get<E, F>(&self, key: &str, life: Duration, load: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        if !self.validity().holds(Instant::now()) {
            return load().await;
        }
        if let Some(entry) = self.entries.get(key) {
            if self.usable(&entry) {
                return Ok(entry.value.clone());
            }
            self.entries.remove_if(key, |other| Arc::ptr_eq(other, &entry));
        }
        let joined = tokio::time::timeout(JOIN_WAIT, self.entries.get_value_or_guard_async(key)).await;
        let guard = match joined {
            // What another has read before a change must not be given to who asks after it.
            Ok(Ok(entry)) if self.usable(&entry) => return Ok(entry.value.clone()),
            Ok(Err(guard)) => guard,
            Ok(Ok(_)) | Err(_) => return load().await,
        };
        // From before the question, so that a change that it did not see forgets its answer.
        let stamp = self.validity().stamp(Instant::now(), life);
        let value = load().await?;
        if let Some(stamp) = stamp.filter(|stamp| self.validity().usable(*stamp, Instant::now())) {
            // An error says that it was pushed out meanwhile.
            let _ = guard.insert(Arc::new(Entry { stamp, value: value.clone() }));
        }
        Ok(value)
    }

    pub(super) fn peek(&self, key: &str) -> Option<V> {
        let entry = self.entries.get(key)?;
        self.usable(&entry).then(|| entry.value.clone())
    }

    pub(super) fn also_as(&self, other: &str, key: &str) {
        if let Some(entry) = self.entries.get(key) {
            self.entries.insert(other.to_owned(), entry);
        }
    }

    fn usable(&self, entry: &Entry<V>) -> bool {
        self.validity().usable(entry.stamp, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tokio::sync::oneshot;

    const LIFE: Duration = Duration::from_hours(1);

    fn entries() -> Arc<Entries<u32>> {
        let entries = Arc::new(Entries::default());
        look(&entries, 1);
        entries
    }

    /// A look that holds until the test is over, however long the machine takes for it.
    fn look(entries: &Entries<u32>, generation: i64) {
        entries.validity().looked(generation, Instant::now() + LIFE);
    }

    async fn get(entries: &Entries<u32>, found: u32) -> u32 {
        entries.get("key", LIFE, || async { Ok::<_, Infallible>(found) }).await.unwrap()
    }

    /// A question that is under way, how to answer it, and what its asker gets.
    async fn asking(
        entries: &Arc<Entries<u32>>,
    ) -> (oneshot::Sender<u32>, tokio::task::JoinHandle<Result<u32, oneshot::error::RecvError>>) {
        let (answer, answered) = oneshot::channel();
        let (begun, begins) = oneshot::channel();
        let entries = Arc::clone(entries);
        let load = || async {
            begun.send(()).unwrap();
            answered.await
        };
        let asker = tokio::spawn(async move { entries.get("key", LIFE, load).await });
        begins.await.unwrap();
        (answer, asker)
    }

    #[tokio::test]
    async fn what_was_found_is_used_again_and_an_error_is_not() {
        let entries = entries();
        assert_eq!(entries.get("key", LIFE, || async { Err::<u32, _>("away") }).await, Err("away"));
        assert_eq!(get(&entries, 1).await, 1);
        assert_eq!(get(&entries, 2).await, 1);
        look(&entries, 2);
        assert_eq!(get(&entries, 3).await, 3);
        assert_eq!(get(&entries, 4).await, 3);
    }

    #[tokio::test]
    async fn another_name_lasts_no_longer() {
        let entries = entries();
        entries.also_as("/other", "key");
        assert_eq!(entries.peek("/other"), None);
        assert_eq!(get(&entries, 1).await, 1);
        entries.also_as("/other", "key");
        assert_eq!((entries.peek("/other"), entries.peek("key")), (Some(1), Some(1)));
        look(&entries, 2);
        assert_eq!((entries.peek("/other"), entries.peek("key")), (None, None));
    }

    #[tokio::test]
    async fn without_a_look_everything_is_asked_for() {
        let entries = Entries::default();
        assert_eq!((get(&entries, 1).await, get(&entries, 2).await), (1, 2));
        assert_eq!(entries.entries.len(), 0);
    }

    #[tokio::test]
    async fn those_who_ask_at_once_ask_once() {
        let entries = entries();
        let (answer, first) = asking(&entries).await;
        let others = futures_util::future::join_all((0..10).map(|_| get(&entries, 99)));
        let (others, ()) = futures_util::future::join(others, async { answer.send(5).unwrap() }).await;
        assert_eq!(others, [5; 10]);
        assert_eq!(first.await.unwrap(), Ok(5));
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_is_not_kept_after_it() {
        let entries = entries();
        let (answer, first) = asking(&entries).await;
        look(&entries, 2);
        answer.send(5).unwrap();
        assert_eq!(first.await.unwrap(), Ok(5), "it had asked before");
        assert_eq!(get(&entries, 6).await, 6);
    }

    #[tokio::test]
    async fn who_waits_for_one_that_hangs_asks_for_itself() {
        let entries = entries();
        let (answer, first) = asking(&entries).await;
        assert_eq!(get(&entries, 6).await, 6);
        answer.send(5).unwrap();
        assert_eq!(first.await.unwrap(), Ok(5));
        assert_eq!(get(&entries, 7).await, 5);
    }
}
