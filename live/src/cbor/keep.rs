//! What is kept of sessions: how far their clients are, and that they are there at all.

use super::{Cbor, Session, attach};
use cratemill_service::outage::Outage;
use cratemill_store::{patience::in_time, pubsub::sessions};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A node that dies has its clients get again what they took in since the last time.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Sessions of one statement: a connection to the database keeps buffers as long as the longest.
const PART: usize = 512;
/// Notes between two looks for sessions that nobody came back to.
const FORGET_EVERY: u32 = 600;
/// Of those at once; then the next.
const FORGET: i64 = 100;
/// Those with a connection are seen so often, in notes.
const SEEN_EVERY: u32 = 3_600;
/// How often the end of a connection is tried to be noted. If it never is, the next one waits for this node in vain.
const TRIES: usize = 3;

pub(super) async fn run(cbor: Arc<Cbor>, shutdown: CancellationToken) {
    let mut outage = Outage::new("noting how far sessions are");
    let mut every = interval(NOTE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Not all nodes at once.
    let mut ticks: u32 = rand::random_range(0..FORGET_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let noted = note(&cbor, ticks.is_multiple_of(SEEN_EVERY)).await;
        ticks = ticks.wrapping_add(1);
        let forgotten = if ticks.is_multiple_of(FORGET_EVERY) { forget(&cbor).await } else { Ok(()) };
        match noted.and(forgotten) {
            Ok(()) => drop(outage.over()),
            Err(error) => sleep(outage.failed(error)).await,
        }
    }
}

/// How far they are, or only that they are there.
async fn note(cbor: &Cbor, all: bool) -> cratemill_store::Result<()> {
    let news = cbor.sessions.news(all);
    for (number, part) in news.chunks(PART).enumerate() {
        note_part(cbor, part).await.inspect_err(|_| {
            news[number * PART..].iter().for_each(|(session, _)| session.is_not_noted());
        })?;
    }
    Ok(())
}

async fn note_part(cbor: &Cbor, part: &[(Session, u64)]) -> cratemill_store::Result<()> {
    let rows: Vec<_> =
        part.iter().map(|(session, confirmed)| (session.id(), session.epoch(), signed(*confirmed))).collect();
    let noted = async { sessions::confirm(&mut *cbor.pool.acquire().await?, &rows).await };
    let noted: HashSet<Uuid> = in_time(noted).await?.into_iter().collect();
    for (session, _) in part.iter().filter(|(session, _)| !noted.contains(&session.id())) {
        attach::hang_up(cbor, session);
    }
    Ok(())
}

/// Its connection has ended.
pub(super) async fn detach(cbor: &Cbor, session: &Session) {
    // A node that goes away has no time for a database that is.
    let tries = if cbor.gateway.shutdown.is_cancelled() { 1 } else { TRIES };
    for _ in 0..tries {
        let detached = async {
            let mut conn = cbor.pool.acquire().await?;
            sessions::detach(&mut conn, session.id(), session.epoch(), signed(session.confirmed())).await
        };
        match in_time(detached).await {
            Ok(()) => break,
            Err(error) => tracing::warn!(session = %session.id(), %error, "a session's end is not noted yet"),
        }
    }
    cbor.queues.leave_all(session);
    cbor.sessions.remove(session);
}

/// Whoever does not come back, each in a transaction of its own.
async fn forget(cbor: &Cbor) -> cratemill_store::Result<()> {
    loop {
        let old = async { sessions::old(&mut *cbor.pool.acquire().await?, cbor.kept, FORGET).await };
        let old = in_time(old).await?;
        for session in &old {
            let forgotten = async {
                let mut tx = cbor.pool.begin().await?;
                let gone = sessions::forget(&mut tx, *session, cbor.kept).await?;
                tx.commit().await?;
                Ok::<_, cratemill_store::Error>(gone)
            };
            for group in in_time(forgotten).await? {
                cbor.queues.remove(group).await;
            }
        }
        if i64::try_from(old.len()).is_ok_and(|count| count < FORGET) {
            return Ok(());
        }
    }
}

/// A stream does not get that far.
pub(super) fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
