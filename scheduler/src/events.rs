//! Events of the event API: those that are due go to the stream, once each, by timestamp and insertion.
//!
//! ```text
//! begin a term -> note what the stream has beyond what is noted -> publish what was claimed and is not there
//!   -> claim what is due -> publish, and meanwhile confirm what was published before and claim what is due by now -> ...
//!   -> sleep until the next is due
//! ```
//! A claim commits before anything is published: from then on nobody can cancel these events, and whoever leads next
//! publishes what the stream does not have of them. Anything that goes wrong begins a new term.

use crate::{Scheduler, alarm::until, metrics, timeline};
use anyhow::{Context as _, ensure};
use cratemill_protocol::{EventId, subjects};
use cratemill_service::{
    bus::{Bus, Sent},
    clock,
    outage::Outage,
};
use cratemill_store::{
    Connection as _, PgConnection, database,
    events::schedule::{self, Fired, Firing, Term},
    patience::in_time,
};
use futures_util::{FutureExt as _, StreamExt as _};
use std::{collections::HashMap, convert::Infallible, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// Events of one claim: few enough that the first of many is published soon, and 6 MB at most.
const BATCH: i64 = 256;
/// Events that are noted at once of what a leader finds in the stream.
const PART: usize = 256;
/// Published events that are confirmed though others are due. Whoever leads next looks for these in the stream, one by one.
const MAX_UNCONFIRMED: usize = 1_024;
/// Without any hint: what a lost one costs at most.
const POLL: Duration = Duration::from_secs(2);
/// Of the connection that events are published with.
const STATEMENT: Duration = Duration::from_secs(20);

pub(crate) async fn run(scheduler: &Scheduler) -> Infallible {
    let mut outage = Outage::new("publishing what is due");
    loop {
        let Err(error) = publish_all(scheduler, &mut outage).await;
        sleep(outage.failed(error)).await;
    }
}

/// Until something fails.
async fn publish_all(scheduler: &Scheduler, outage: &mut Outage) -> anyhow::Result<Infallible> {
    let mut hints = scheduler.bus.client.subscribe(subjects::SCHEDULE).await.context("no hints")?;
    let mut conn = database::dedicated(&scheduler.pool, STATEMENT).await.context("no connection")?;
    in_time(database::by_index(&mut conn)).await?;
    let mut publisher = Publisher::begin(&scheduler.bus, &mut conn).await?;
    outage.over();
    loop {
        publisher.publish_due(&mut conn).await?;
        let next = in_time(schedule::next_due(&mut conn)).await?;
        let due_ms = next.map(|due_s| due_s.saturating_mul(1_000));
        let wake = Instant::now() + until(due_ms, clock::now_ms(), POLL);
        loop {
            tokio::select! {
                () = sleep_until(wake) => break,
                hint = hints.next() => {
                    let hint = hint.context("the subscription to hints ended")?;
                    if next.is_none_or(|next| due_s(&hint.payload).is_none_or(|due_s| due_s < next)) {
                        break;
                    }
                }
            }
        }
        // What these say is seen below.
        while let Some(Some(_)) = hints.next().now_or_never() {}
    }
}

fn due_s(hint: &[u8]) -> Option<i64> {
    str::from_utf8(hint).ok()?.parse().ok()
}

/// A leader in its term.
struct Publisher<'a> {
    bus: &'a Bus,
    term: i64,
    /// The last message of the stream.
    last: u64,
}

impl<'a> Publisher<'a> {
    /// Sees to what whoever was before has left.
    async fn begin(bus: &'a Bus, conn: &mut PgConnection) -> anyhow::Result<Self> {
        let (stream, last) = timeline::last(bus).await?;
        let Term { term, last_sequence } = in_time(schedule::begin(conn)).await?;
        let mut noted = u64::try_from(last_sequence).unwrap_or(0);
        if last < noted {
            tracing::error!(last, noted, "the timeline began anew");
            ensure!(in_time(schedule::began_anew(conn, term)).await?, "somebody else leads");
            noted = 0;
        }
        let mut this = Self { bus, term, last };
        // Only of what was claimed it is not known whether it is there.
        let is_open = !in_time(schedule::firing(conn, 1)).await?.is_empty();
        let there = if is_open { timeline::read(&stream, noted, last).await? } else { Vec::new() };
        this.settle(conn, &there).await?;
        Ok(this)
    }

    /// Notes what is there, with its place in the stream, and publishes what is not.
    async fn settle(&mut self, conn: &mut PgConnection, there: &[(EventId, u64)]) -> anyhow::Result<()> {
        // In the order of the stream: up to where it says so, all is noted at each moment.
        for part in there.chunks(PART) {
            let ids: Vec<EventId> = part.iter().map(|(id, _)| *id).collect();
            let places: HashMap<EventId, i64> =
                in_time(schedule::places(conn, &ids)).await?.into_iter().collect();
            let known = |(id, sequence): &(EventId, u64)| {
                Some(Fired { place: *places.get(id)?, id: *id, sequence: number(*sequence) })
            };
            let last = part.last().map_or(0, |(_, sequence)| *sequence);
            let noted = Unconfirmed { fired: part.iter().filter_map(known).collect(), last };
            self.confirm(conn, &noted).await?;
        }
        loop {
            // What is published now comes behind all that was there.
            let mut unconfirmed = Unconfirmed::none(self.last);
            let missing = in_time(schedule::firing(conn, BATCH)).await?;
            let is_all = missing.is_empty();
            unconfirmed.add(self.send(missing).await?.stored().await?);
            self.confirm(conn, &unconfirmed).await?;
            if is_all {
                return Ok(());
            }
        }
    }

    /// Until nothing is due. While one batch is claimed, the one before is on its way to the bus; and where more is due than
    /// one batch, it comes before what is to be confirmed.
    async fn publish_due(&mut self, conn: &mut PgConnection) -> anyhow::Result<()> {
        let (term, mut unconfirmed) = (self.term, Unconfirmed::none(self.last));
        let mut claimed = in_time(claim(conn, term)).await?;
        let mut sending = None;
        while !claimed.is_empty() {
            let is_more_due = i64::try_from(claimed.len()).is_ok_and(|count| count >= BATCH);
            let is_behind = is_more_due && unconfirmed.fired.len() < MAX_UNCONFIRMED;
            let sent = self.send(claimed).await?;
            let before = (!is_behind && !unconfirmed.fired.is_empty()).then(|| unconfirmed.take());
            let next = async {
                match &before {
                    Some(before) => in_time(confirm_and_claim(conn, term, before)).await,
                    None => in_time(claim(conn, term)).await,
                }
            };
            let stored = stored(sending.replace(sent));
            let (fired, next) = tokio::try_join!(stored, next)?;
            unconfirmed.add(fired);
            claimed = next;
        }
        unconfirmed.add(stored(sending).await?);
        if !unconfirmed.fired.is_empty() {
            self.confirm(conn, &unconfirmed).await?;
        }
        Ok(())
    }

    async fn send(&mut self, firing: Vec<Firing>) -> anyhow::Result<Sending> {
        let sent = timeline::send(self.bus, &firing, self.last).await?;
        let first = self.last + 1;
        self.last += firing.len() as u64;
        Ok(Sending { firing, first, sent })
    }

    async fn confirm(&self, conn: &mut PgConnection, unconfirmed: &Unconfirmed) -> anyhow::Result<()> {
        in_time(confirm(conn, self.term, unconfirmed)).await
    }
}

/// On its way to the bus.
struct Sending {
    firing: Vec<Firing>,
    /// The place of the first in the stream.
    first: u64,
    sent: Sent,
}

impl Sending {
    async fn stored(self) -> anyhow::Result<Vec<Fired>> {
        timeline::stored(self.sent).await?;
        if let Some(last) = self.firing.last() {
            let delay_ms = clock::now_ms().saturating_sub(last.timestamp.saturating_mul(1_000));
            metrics::fired(self.firing.len() as u64, Duration::from_millis(delay_ms.max(0).unsigned_abs()));
        }
        Ok((self.first..).zip(&self.firing).map(|(sequence, firing)| fired(firing, sequence)).collect())
    }
}

async fn stored(sending: Option<Sending>) -> anyhow::Result<Vec<Fired>> {
    match sending {
        Some(sending) => sending.stored().await,
        None => Ok(Vec::new()),
    }
}

/// The bus has them, and the database does not know.
struct Unconfirmed {
    fired: Vec<Fired>,
    /// Up to this message of the stream nothing else is unknown.
    last: u64,
}

impl Unconfirmed {
    fn none(last: u64) -> Self {
        Self { fired: Vec::new(), last }
    }

    /// What follows.
    fn add(&mut self, fired: Vec<Fired>) {
        self.last += fired.len() as u64;
        self.fired.extend(fired);
    }

    fn take(&mut self) -> Self {
        Self { fired: std::mem::take(&mut self.fired), last: self.last }
    }
}

async fn claim(conn: &mut PgConnection, term: i64) -> anyhow::Result<Vec<Firing>> {
    Ok(schedule::claim(conn, term, clock::now_s(), BATCH).await?)
}

async fn confirm(conn: &mut PgConnection, term: i64, unconfirmed: &Unconfirmed) -> anyhow::Result<()> {
    let led = schedule::confirm(conn, term, &unconfirmed.fired, number(unconfirmed.last)).await?;
    ensure!(led, "somebody else leads");
    Ok(())
}

/// In one transaction, for one wait for the disk.
async fn confirm_and_claim(
    conn: &mut PgConnection,
    term: i64,
    unconfirmed: &Unconfirmed,
) -> anyhow::Result<Vec<Firing>> {
    let mut tx = conn.begin().await?;
    confirm(&mut tx, term, unconfirmed).await?;
    let claimed = claim(&mut tx, term).await?;
    tx.commit().await?;
    Ok(claimed)
}

fn fired(firing: &Firing, sequence: u64) -> Fired {
    Fired { place: firing.place, id: firing.id, sequence: number(sequence) }
}

/// A stream does not get that far.
fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
