//! Inserting what comes at the same moment in one statement: each waits for the disk once, however many they are.
//!
//! An answer comes after the commit. A database that is away for a moment is waited for; a batch that is tried again has
//! the same ids, so that what was committed without an answer is not inserted twice.

use super::error::Error;
use crate::metrics;
use cratemill_protocol::subjects;
use cratemill_service::{backoff::Backoff, bus::Bus};
use cratemill_store::{
    PgPool, database,
    events::insert::{Inserted, NewEvent, insert},
    patience::in_time,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Events of one statement.
const BATCH: usize = 512;
/// All that wait, by their bytes.
const MAX_BYTES: usize = 32 << 20;
/// And beside them: a row of its own, and who waits.
const EVENT_BYTES: usize = 512;
/// How long a client waits for the database.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Asked {
    event: NewEvent,
    answer: oneshot::Sender<Option<Inserted>>,
    room: OwnedSemaphorePermit,
}

#[derive(Debug, Clone)]
pub(super) struct Inserter {
    asks: mpsc::UnboundedSender<Asked>,
    room: Arc<Semaphore>,
}

impl Inserter {
    /// And what does the work, until the process drains and nobody asks any more.
    pub(super) fn new(
        pool: PgPool,
        bus: Bus,
        most_per_user: u32,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        // Bounded by the room.
        let (asks, asked) = mpsc::unbounded_channel();
        let work = Work { pool, bus, most_per_user };
        (Self { asks, room: Arc::new(Semaphore::new(MAX_BYTES)) }, work.run(asked, shutdown))
    }

    pub(super) async fn insert(&self, event: NewEvent) -> Result<Inserted, Error> {
        let bytes = event.data.len() + event.event.len() + EVENT_BYTES;
        let room = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        let room = room.map_err(|_| Error::Away("more is inserted than the database takes"))?;
        let (answer, answered) = oneshot::channel();
        let asked = Asked { event, answer, room };
        self.asks.send(asked).map_err(|_| Error::Away("this node is going away"))?;
        answered.await.ok().flatten().ok_or(Error::Away("the database is away"))
    }
}

struct Work {
    pool: PgPool,
    bus: Bus,
    most_per_user: u32,
}

impl Work {
    async fn run(self, mut asked: mpsc::UnboundedReceiver<Asked>, shutdown: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let count = tokio::select! {
                biased;
                count = asked.recv_many(&mut batch, BATCH) => count,
                () = shutdown.cancelled() => 0,
            };
            if count == 0 {
                return;
            }
            let (events, answers): (Vec<_>, Vec<_>) =
                batch.drain(..).map(|Asked { event, answer, room }| (event, (answer, room))).unzip();
            let inserted = self.insert(&events).await;
            let earliest = events.iter().map(|event| event.timestamp).min();
            for (nth, (answer, room)) in answers.into_iter().enumerate() {
                let _ = answer.send(inserted.as_ref().and_then(|inserted| inserted.get(nth).copied()));
                drop(room);
            }
            if let Some(earliest) = earliest.filter(|_| inserted.is_some()) {
                metrics::event_api_inserted(events.len());
                self.bus.hint_of(subjects::SCHEDULE, earliest.to_string()).await;
            }
        }
    }

    /// Nothing if the database did not take them in time.
    async fn insert(&self, events: &[NewEvent]) -> Option<Vec<Inserted>> {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let tried = async {
                let mut conn = self.pool.acquire().await?;
                insert(&mut conn, events, self.most_per_user.into()).await
            };
            let error = match tokio::time::timeout_at(deadline, in_time(tried)).await {
                Ok(Ok(inserted)) => return Some(inserted),
                Ok(Err(error)) => error,
                Err(_) => {
                    tracing::warn!(events = events.len(), "the database did not take events in time");
                    return None;
                }
            };
            let wait = backoff.next_wait();
            tracing::warn!(events = events.len(), %error, "events are not inserted yet");
            if database::is_permanent(&error) || Instant::now() + wait >= deadline {
                return None;
            }
            tokio::time::sleep(wait).await;
        }
    }
}
