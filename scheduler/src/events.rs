//! Events of the event API: those that are due go to the stream, once each, by timestamp and insertion.
//!
//! ```text
//! begin a term -> note what the stream has beyond what is noted -> publish what was claimed and is not there
//!   -> claim what is due -> publish -> confirm, and claim what is due by now -> ... -> sleep until the next is due
//! ```
//! A claim commits before anything is published: from then on nobody can cancel these events, and whoever leads next
//! publishes what the stream does not have of them. Anything that goes wrong begins a new term.

use crate::{Scheduler, alarm::until, metrics, timeline};
use anyhow::{Context as _, ensure};
use cratemill_protocol::{EventId, subjects};
use cratemill_service::{bus::Bus, clock, outage::Outage};
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
    let mut publisher = Publisher::begin(&scheduler.bus, &mut conn).await?;
    outage.over();
    let mut claimed = publisher.claim(&mut conn).await?;
    loop {
        while !claimed.is_empty() {
            let fired = publisher.publish(&claimed).await?;
            claimed = publisher.confirm_and_claim(&mut conn, &fired).await?;
        }
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
        claimed = publisher.claim(&mut conn).await?;
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
        this.settle(conn, &there.into_iter().collect()).await?;
        Ok(this)
    }

    /// Notes what is there, and publishes what is not.
    async fn settle(&mut self, conn: &mut PgConnection, there: &HashMap<EventId, u64>) -> anyhow::Result<()> {
        loop {
            let firing = in_time(schedule::firing(conn, BATCH)).await?;
            let known = |firing: &Firing| Some(fired(firing, *there.get(&firing.id)?));
            let fired: Vec<Fired> = firing.iter().filter_map(known).collect();
            self.confirm(conn, &fired).await?;
            let missing: Vec<Firing> =
                firing.into_iter().filter(|firing| !there.contains_key(&firing.id)).collect();
            if missing.is_empty() && fired.is_empty() {
                return Ok(());
            }
            let fired = self.publish(&missing).await?;
            self.confirm(conn, &fired).await?;
        }
    }

    async fn claim(&self, conn: &mut PgConnection) -> anyhow::Result<Vec<Firing>> {
        Ok(in_time(schedule::claim(conn, self.term, clock::now_s(), BATCH)).await?)
    }

    async fn publish(&mut self, firing: &[Firing]) -> anyhow::Result<Vec<Fired>> {
        timeline::publish(self.bus, firing, self.last).await?;
        let fired = (self.last + 1..).zip(firing).map(|(sequence, firing)| fired(firing, sequence)).collect();
        self.last += firing.len() as u64;
        if let Some(last) = firing.last() {
            let delay_ms = clock::now_ms().saturating_sub(last.timestamp.saturating_mul(1_000));
            metrics::fired(firing.len() as u64, Duration::from_millis(delay_ms.max(0).unsigned_abs()));
        }
        Ok(fired)
    }

    async fn confirm(&self, conn: &mut PgConnection, fired: &[Fired]) -> anyhow::Result<()> {
        let led = in_time(schedule::confirm(conn, self.term, fired, number(self.last))).await?;
        ensure!(led, "somebody else leads");
        Ok(())
    }

    /// In one transaction, for one wait for the disk.
    async fn confirm_and_claim(
        &self,
        conn: &mut PgConnection,
        fired: &[Fired],
    ) -> anyhow::Result<Vec<Firing>> {
        let both = async {
            let mut tx = conn.begin().await?;
            self.confirm(&mut tx, fired).await?;
            let claimed = self.claim(&mut tx).await?;
            tx.commit().await?;
            anyhow::Ok(claimed)
        };
        in_time(both).await
    }
}

fn fired(firing: &Firing, sequence: u64) -> Fired {
    Fired { place: firing.place, id: firing.id, sequence: number(sequence) }
}

/// A stream does not get that far.
fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
