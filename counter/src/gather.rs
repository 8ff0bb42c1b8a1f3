//! Takes messages from the bus until there are enough, or until whoever writes is free.

use crate::settle::Taken;
use anyhow::{Context as _, anyhow};
use async_nats::jetstream::{Message, consumer::PullConsumer};
use futures_util::TryStreamExt;
use std::time::Duration;
use tokio::{sync::mpsc::Sender, time::timeout};
use tokio_util::sync::CancellationToken;

/// Messages of a group, and how many are asked for at once.
const MAX_MESSAGES: usize = 1_000;
const FETCH: usize = 100;
/// Counts of a group, before they are added up: 60 MB.
const MAX_EVENTS: usize = 1_500_000;
/// Different counts of a group: it is written within a second.
const MAX_ROWS: usize = 150_000;
/// How long an idle counter asks before it asks again, and so how long it may take to notice that it is to drain.
const PULL: Duration = Duration::from_secs(1);
/// No word from a server by then: what was asked of it is lost, and what it sent comes again.
const SILENT: Duration = Duration::from_secs(2);
/// Once something is there: how long to wait for more of it. A person does not notice, and a crowd shares a commit.
const GATHER: Duration = Duration::from_millis(20);

pub(crate) struct Gather<'a> {
    consumer: PullConsumer,
    shutdown: &'a CancellationToken,
}

impl<'a> Gather<'a> {
    pub(crate) fn new(consumer: PullConsumer, shutdown: &'a CancellationToken) -> Self {
        Self { consumer, shutdown }
    }

    /// Hands over one group, if there is anything; false when the process drains.
    pub(crate) async fn next(&mut self, groups: &Sender<Taken>) -> anyhow::Result<bool> {
        if self.shutdown.is_cancelled() {
            return Ok(false);
        }
        // Not cut short by a drain: the server may be sending what was asked for, and nobody would take it.
        let overdue = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(SILENT).await;
        };
        let first = tokio::select! {
            first = self.first() => first?,
            () = overdue => return Ok(false),
        };
        let Some(first) = first else { return Ok(true) };
        tokio::time::sleep(GATHER).await;
        let mut taken = Taken::default();
        taken.add(first).await;
        let failed = self.fill(&mut taken, groups).await;
        // Whatever kept the others from coming, what is here counts.
        let handed_over = groups.send(taken).await.is_ok();
        failed.map(|()| handed_over)
    }

    /// More, as long as there is more, there is room, and nobody is free to write it.
    async fn fill(&self, taken: &mut Taken, groups: &Sender<Taken>) -> anyhow::Result<()> {
        loop {
            let room = MAX_MESSAGES.saturating_sub(taken.len()).min(FETCH);
            if room == 0 || taken.group.events() >= MAX_EVENTS || taken.group.rows() >= MAX_ROWS {
                return Ok(());
            }
            // It has no end of its own: a server that dies before it has answered leaves it open.
            let mut messages = in_time(self.consumer.fetch().max_messages(room).messages()).await??;
            let before = taken.len();
            while let Some(message) = in_time(messages.try_next()).await?.map_err(|error| anyhow!(error))? {
                taken.add(message).await;
            }
            let came = taken.len() - before;
            if came < room && groups.capacity() > 0 || came == 0 || self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Asks for one message only, so that a counter that drains leaves none behind in its buffer.
    async fn first(&self) -> anyhow::Result<Option<Message>> {
        let asked = self.consumer.batch().max_messages(1).expires(PULL).messages();
        let mut messages = in_time(asked).await??;
        in_time(messages.try_next()).await?.map_err(|error| anyhow!(error))
    }
}

async fn in_time<T>(answer: impl Future<Output = T>) -> anyhow::Result<T> {
    timeout(SILENT, answer).await.context("no answer from the bus")
}
