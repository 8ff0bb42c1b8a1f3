//! Our counter, as a process of its own: batches of API nodes on the bus, their counts in the table.

use super::{
    batches::{BATCH, Batches},
    events::Event,
    pace::{Bound, Pace},
};
use crate::{
    downloads::cluster::{Measured, counted},
    statistics::per_s,
    usage::{Each, Usage},
};
use anyhow::{Context, Result, bail, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishAckFuture},
};
use cratemill_protocol::subjects;
use sqlx::{Connection, PgConnection};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

/// As many API nodes.
const PUBLISHERS: usize = 4;
/// Messages of a publisher that the bus has not acknowledged: 250 kB each.
const WINDOW: usize = 8;
/// On the bus: a second of what is aimed at, and a fraction of what the stream may hold.
const MOST_WAITING: Bound = Bound::Bytes(96 << 20);
/// The bus may be short of CPU.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// For rows to be there, and for tables to have their usual size.
const WARM_UP: Duration = Duration::from_secs(5);
/// How often the table is asked whether a commit has changed it, at the ends of what is measured.
const POLL: Duration = Duration::from_millis(20);
/// Between two commits, and for what waits at the end.
const PATIENCE: Duration = Duration::from_mins(2);

pub(super) struct Counted {
    pub(super) events_per_s: f64,
    /// For a thousand events.
    pub(super) cpu: Each,
    /// How much of the time the publishers waited for the counter.
    pub(super) waited: f64,
}

/// The table right after a commit.
struct Moment {
    at: Instant,
    counted: u64,
    used: Usage,
}

pub(super) async fn measure(
    measured: &Measured,
    events: &[Event],
    day: i32,
    time: Duration,
) -> Result<Counted> {
    let mut conn = PgConnection::connect(&measured.cluster.postgres.url()).await?;
    let before = counted(&mut conn).await?;
    let epoch = i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_millis())?;
    let nats = &measured.cluster.nats;
    let (pace, _watcher) =
        Pace::start(nats.client().await?, subjects::DOWNLOADS_STREAM, MOST_WAITING).await?;
    let (stop, mut publishers) = (CancellationToken::new(), JoinSet::new());
    for number in 0..PUBLISHERS {
        let node = format!("bench-{number}");
        let events = &events[events.len() * number / PUBLISHERS..events.len() * (number + 1) / PUBLISHERS];
        let publisher = Publisher {
            batches: Arc::new(Batches::new(&node, epoch, day, events)?),
            jetstream: jetstream::ContextBuilder::new().ack_timeout(ACK_TIMEOUT).build(nats.client().await?),
            node,
            epoch,
            pace: pace.clone(),
        };
        publishers.spawn(publisher.run(stop.clone()));
    }
    sleep(WARM_UP).await;
    let (first, looks) = (after_commit(measured, &mut conn).await?, pace.looks());
    sleep(time).await;
    let last = after_commit(measured, &mut conn).await?;
    let waited = pace.looks().full_since(looks);
    stop.cancel();
    let mut published = 0;
    while let Some(ended) = publishers.join_next().await {
        published += ended.context("a publisher broke")??;
    }
    all_counted(&mut conn, before + published * BATCH as u64).await?;
    let events = usize::try_from(last.counted - first.counted)?;
    Ok(Counted {
        events_per_s: per_s(events, last.at - first.at),
        cpu: last.used.since(&first.used, events / 1_000),
        waited,
    })
}

/// Commits come with up to a second of events each: what is measured begins and ends with one.
async fn after_commit(measured: &Measured, conn: &mut PgConnection) -> Result<Moment> {
    let (before, deadline) = (counted(conn).await?, Instant::now() + PATIENCE);
    loop {
        let now = counted(conn).await?;
        if now != before {
            return Ok(Moment { at: Instant::now(), counted: now, used: Usage::read(&measured.cluster)? });
        }
        ensure!(Instant::now() < deadline, "nothing is counted any more");
        sleep(POLL).await;
    }
}

/// Each exactly once.
async fn all_counted(conn: &mut PgConnection, expected: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match counted(conn).await? {
            now if now == expected => return Ok(()),
            now if now > expected => bail!("{expected} were published and {now} counted"),
            now => ensure!(Instant::now() < deadline, "{expected} were published and only {now} counted"),
        }
        sleep(POLL).await;
    }
}

/// Stands for an API node. On its own connection, so that its batches arrive in their order.
struct Publisher {
    batches: Arc<Batches>,
    jetstream: jetstream::Context,
    node: String,
    epoch: i64,
    pace: Pace,
}

impl Publisher {
    /// How many batches the bus has acknowledged when it is stopped: all that were sent.
    async fn run(mut self, stop: CancellationToken) -> Result<u64> {
        let (subject, mut number) = (subjects::download(&self.node), 0);
        let mut waiting: VecDeque<PublishAckFuture> = VecDeque::new();
        while !stop.is_cancelled() {
            self.pace.room().await?;
            number += 1;
            let mut headers = HeaderMap::new();
            let id = format!("d-{}-{}-{number}", self.node, self.epoch);
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
            let payload = self.batches.message(number)?.into();
            let sent = self.jetstream.publish_with_headers(subject.clone(), headers, payload).await?;
            waiting.push_back(sent);
            if waiting.len() >= WINDOW
                && let Some(oldest) = waiting.pop_front()
            {
                oldest.await?;
            }
        }
        for ack in waiting {
            ack.await?;
        }
        Ok(number)
    }
}
