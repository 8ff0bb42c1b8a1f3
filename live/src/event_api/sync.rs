//! The latest published event of every name, for who comes new: in pages, in the order of the stream.
//!
//! What is latest up to a place of the stream never changes, so that all who begin at the same place share each page; an
//! event that is no longer the latest of its name comes live to whoever did not get it here.

use crate::dialects::event_api;
use bytes::{Bytes, BytesMut};
use cratemill_store::{PgPool, events::latest, patience::in_time};
use quick_cache::{Weighter, sync::Cache};
use std::time::{Duration, Instant};
use tokio::{sync::Mutex, time::sleep};

/// Events of one page,
const PAGE: i64 = 256;
/// and their bytes, but for the last.
const PAGE_BYTES: i64 = 192 * 1024;
/// Pages that are kept for others who begin at the same place.
const KEPT_BYTES: u64 = 16 << 20;
/// The stream may begin anew, at a place that there was before.
const KEPT: Duration = Duration::from_secs(5);
/// How long what is published may take to be noted: two statements.
const NOTING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[derive(Debug, Clone)]
pub(super) struct Page {
    /// Encoded; empty where there is nothing.
    pub(super) bytes: Bytes,
    /// Up to there it is all, which is where the next page begins.
    pub(super) last: i64,
    read: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bytewise;

impl Weighter<(i64, i64), Page> for Bytewise {
    fn weight(&self, _: &(i64, i64), page: &Page) -> u64 {
        page.bytes.len() as u64 + 128
    }
}

#[derive(Debug)]
pub(super) struct Sync {
    pool: PgPool,
    noted: Mutex<Option<(Instant, i64)>>,
    pages: Cache<(i64, i64), Page, Bytewise>,
}

impl Sync {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, noted: Mutex::default(), pages: Cache::with_weighter(1_024, KEPT_BYTES, Bytewise) }
    }

    /// Where a sync ends whose viewer goes on with the stream: `now`, unless that is not noted in time.
    pub(super) async fn end(&self, now: u64) -> cratemill_store::Result<i64> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let deadline = Instant::now() + NOTING;
        loop {
            let noted = self.noted().await?;
            if noted >= now || Instant::now() >= deadline {
                return Ok(noted.min(now));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Up to where all is noted. Whoever asks while another one does, or a moment later, has the same answer.
    async fn noted(&self) -> cratemill_store::Result<i64> {
        let mut noted = self.noted.lock().await;
        if let Some((at, sequence)) = *noted
            && at.elapsed() < LOOK_AGAIN
        {
            return Ok(sequence);
        }
        let asked = async { latest::noted(&mut *self.pool.acquire().await?).await };
        let sequence = in_time(asked).await?;
        *noted = Some((Instant::now(), sequence));
        Ok(sequence)
    }

    /// What comes after one place, up to and with `end`.
    pub(super) async fn page(&self, after: i64, end: i64) -> cratemill_store::Result<Page> {
        let key = (after, end);
        loop {
            match self.pages.get_value_or_guard_async(&key).await {
                Ok(page) if page.read.elapsed() < KEPT => return Ok(page),
                Ok(_) => drop(self.pages.remove(&key)),
                Err(guard) => {
                    let page = self.read(after, end).await?;
                    let _ = guard.insert(page.clone());
                    return Ok(page);
                }
            }
        }
    }

    async fn read(&self, after: i64, end: i64) -> cratemill_store::Result<Page> {
        let read = Instant::now();
        let events = async {
            let mut conn = self.pool.acquire().await?;
            latest::page(&mut conn, after, end, PAGE, PAGE_BYTES).await
        };
        let events = in_time(events).await?;
        let mut out = BytesMut::new();
        for event in &events {
            event_api::event(event.sequence, &event.event, &event.data, &mut out);
        }
        let bytes: i64 = events.iter().map(|event| i64::try_from(event.data.len()).unwrap_or(i64::MAX)).sum();
        let is_last = i64::try_from(events.len()).is_ok_and(|count| count < PAGE) && bytes <= PAGE_BYTES;
        let last = events.last().map_or(end, |event| if is_last { end } else { event.sequence });
        Ok(Page { bytes: out.freeze(), last, read })
    }
}
