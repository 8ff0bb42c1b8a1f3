//! Outcomes: how attempts ended, as builders said it, made durable.
//!
//! An outcome is handled in one transaction and acknowledged after its commit; a repeated or late one finds that the
//! attempt no longer has the job, and changes nothing. What a success claims is checked ([`verify`]), and what follows
//! from it is queued ([`follow_up`]) in the same transaction. Failures that are final, and say all that there is to say,
//! are many to a transaction ([`fail`]).

mod apply;
mod batch;
mod fail;
pub mod follow_up;
mod reads;
pub mod verify;

pub use apply::{Applied, Document, apply, read};
pub use reads::Reads;

use crate::{
    consume::{self, Handled, Work, deliveries},
    metrics,
    wakes::Wakes,
};
use async_nats::jetstream::Message;
use batch::{Batch, Unreadable};
use cratemill_protocol::{Attempt, BuilderId, JobId, JobState, bus::OutcomeMessage, subjects};
use cratemill_service::{
    bus::Bus,
    group::{Group, group},
};
use cratemill_store::{PgPool, database, objects::Objects, patience::in_time, queue};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

const WORK: Work = Work {
    stream: subjects::BUILD_STREAM,
    consumer: subjects::OUTCOMES_CONSUMER,
    filter: subjects::BUILD_OUTCOMES,
    // Shorter than a lease: what a dispatcher had in hand when it was killed is handled before the rescue takes the job.
    // Where the object store is slower, the outcome is handled twice, and the second time changes nothing.
    ack_wait: Duration::from_secs(20),
    concurrency: 8,
};
/// Of outcomes with a transaction of their own: the pool has ten connections, and others need some.
const FEW: usize = 6;
/// Failures in one statement: few milliseconds.
const MAX_FAILURES: usize = 512;
/// Something is away: it is back within seconds, or minutes in which the outcome waits on the bus.
const RETRY: Duration = Duration::from_secs(2);
/// While an outcome waits here, its attempt keeps the job this long at a time.
const HELD_S: i32 = 60;
/// How often an outcome that still waits keeps its job; two may get lost.
const KEEP_EVERY: Duration = Duration::from_secs(20);
/// The database refuses the data each time, or no dispatcher can read it: after so many times that will not change.
const MAX_REFUSED: i64 = 5;
/// While dispatchers are replaced one after the other, a newer one may be there by then.
const RETRY_UNREADABLE: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database failed: {0}")]
    Database(#[from] cratemill_store::Error),
    #[error("the object store failed: {0}")]
    Objects(cratemill_store::objects::Error),
}

/// The second pool is [`database::for_queue`].
pub async fn run(
    pools: (PgPool, PgPool),
    objects: Objects,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (outcomes, rounds) = Outcomes::new(pools, objects, wakes);
    let work = consume::run(bus, WORK, shutdown, async |message: Message| {
        let handled = outcomes.handle(&message.payload, deliveries(&message)).await;
        (message, handled)
    });
    tokio::select! {
        result = work => result,
        () = rounds => Ok(()),
    }
}

/// What applying outcomes needs.
#[derive(Debug, Clone)]
pub struct Outcomes {
    pool: PgPool,
    reads: Arc<Reads>,
    /// Those that have a transaction of their own.
    few: Arc<Semaphore>,
    /// Failures that are final need no more than one statement: those of many messages share it.
    failures: Group<OutcomeMessage, Result<bool, Arc<cratemill_store::Error>>>,
    wakes: Arc<Wakes>,
}

impl Outcomes {
    /// And the rounds that failures go through, for as long as there are any.
    pub fn new(
        (pool, of_rounds): (PgPool, PgPool),
        objects: Objects,
        wakes: Arc<Wakes>,
    ) -> (Self, impl Future<Output = ()>) {
        let (failures, mut waiting) = group(MAX_FAILURES);
        let rounds = async move {
            while let Some((messages, answers)) = waiting.next(MAX_FAILURES).await {
                answers.send(fail::round(&of_rounds, messages).await);
            }
        };
        let reads = Arc::new(Reads::new(objects));
        (Self { pool, reads, few: Arc::new(Semaphore::new(FEW)), failures, wakes }, rounds)
    }

    /// Handles one message that the bus has handed out `deliveries` times. If one of its outcomes has to wait, it comes
    /// again: those that were applied change nothing then.
    pub async fn handle(&self, payload: &[u8], deliveries: i64) -> Handled {
        let (batch, mut all) = match batch::decode(payload) {
            Ok(batch) => {
                let unreadable = self.handle_unreadable(&batch.unreadable, deliveries).await;
                (batch, unreadable)
            }
            Err(error) => {
                tracing::error!(%error, deliveries, "outcomes cannot be read");
                (Batch::default(), give_up_or_wait(deliveries))
            }
        };
        // All at once, so that those that share a statement do; the others wait for one of few permits.
        let mut handled = FuturesUnordered::new();
        for outcome in &batch.outcomes {
            handled.push(self.handle_one(outcome, deliveries));
        }
        while let Some(one) = handled.next().await {
            // What is poison is in the log; the others are done.
            if matches!(one, Handled::Later(_)) {
                all = one;
            }
        }
        all
    }

    /// What a newer node says, or a damaged one: a newer dispatcher may know it, and the attempt keeps its job until then.
    async fn handle_unreadable(&self, unreadable: &[Unreadable], deliveries: i64) -> Handled {
        if unreadable.is_empty() {
            return Handled::Done;
        }
        let handled = give_up_or_wait(deliveries);
        for one in unreadable {
            tracing::error!(of = ?one.of, deliveries, "an outcome cannot be read");
            if let (Some((job, attempt, builder)), Handled::Later(_)) = (one.of, handled) {
                self.keep(builder, job, attempt).await;
            }
        }
        handled
    }

    async fn handle_one(&self, message: &OutcomeMessage, deliveries: i64) -> Handled {
        let (job, attempt) = (message.job, message.attempt);
        match self.apply(message).await {
            Ok(Applied::Ended { state, result, slot_is_back }) => {
                tracing::debug!(%job, %attempt, result, %state, "an attempt ended");
                metrics::outcome(result);
                if slot_is_back {
                    self.wakes.attempt_returned();
                } else {
                    self.wakes.attempt_ended();
                }
                Handled::Done
            }
            Ok(Applied::Stale) => {
                tracing::info!(%job, %attempt, "a late or repeated outcome changes nothing");
                metrics::outcome("stale");
                // What ended it may have been committed without an answer, and told nobody.
                self.wakes.attempt_ended();
                Handled::Done
            }
            Err(Error::Database(error)) if database::is_permanent(&error) && deliveries >= MAX_REFUSED => {
                tracing::error!(%job, %attempt, %error, "the database refuses an outcome: dropped, its lease will run out");
                metrics::outcome("poison");
                Handled::Poison
            }
            Err(error) => {
                tracing::warn!(%job, %attempt, %error, "an outcome waits");
                self.keep(message.builder, message.job, message.attempt).await;
                Handled::Later(RETRY)
            }
        }
    }

    async fn apply(&self, message: &OutcomeMessage) -> Result<Applied, Error> {
        // Whatever went wrong for all of a round may have been the fault of another.
        if fail::is_final(message)
            && let Ok(Ok(true)) = self.failures.submit(message.clone()).await
        {
            return Ok(Applied::Ended {
                state: JobState::Failed,
                result: queue::result_name(&message.outcome),
                slot_is_back: false,
            });
        }
        let document = if apply::to_read(message).is_some() {
            // Its builder has forgotten it and the store may hang: nobody else keeps its job meanwhile.
            self.keep(message.builder, message.job, message.attempt).await;
            read(&self.pool, &self.reads, message).await?
        } else {
            None
        };
        let _one_of_few = match self.few.try_acquire() {
            Ok(one) => Ok(one),
            Err(_) => self.keeping(message, self.few.acquire()).await,
        };
        in_time(apply(&self.pool, message, document)).await
    }

    /// Waits, and keeps the job of the outcome meanwhile.
    async fn keeping<T>(&self, message: &OutcomeMessage, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        loop {
            self.keep(message.builder, message.job, message.attempt).await;
            if let Ok(done) = timeout(KEEP_EVERY, &mut wait).await {
                return done;
            }
        }
    }

    /// The builder has done its part: its work must not be thrown away because something of ours is away.
    async fn keep(&self, builder: BuilderId, job: JobId, attempt: Attempt) {
        let renewed = in_time(async {
            let mut conn = self.pool.acquire().await?;
            queue::renew(&mut conn, builder, &[(job, attempt)], HELD_S).await
        });
        if let Err(error) = renewed.await {
            tracing::debug!(%job, %attempt, %error, "its lease could not be renewed");
        }
    }
}

/// What becomes of a message that cannot be read.
fn give_up_or_wait(deliveries: i64) -> Handled {
    if deliveries < MAX_REFUSED {
        return Handled::Later(RETRY_UNREADABLE);
    }
    metrics::outcome("poison");
    Handled::Poison
}
