//! What all connections of this node ask of the database and the bus together, so that many builders cost little more
//! than one.

use anyhow::Context as _;
use bytes::Bytes;
use cratemill_protocol::{
    bus::{self, BuildRequest, OutcomeBatch, OutcomeMessage, RequestBatch},
    subjects,
};
use cratemill_service::{
    backoff::Backoff,
    bus::Bus,
    group::{Group, Rounds, group},
};
use cratemill_store::{PgPool, database, queue, queue::Accept};
use std::{fmt::Write as _, time::Duration};

/// Items that wait for a round, beyond which those who ask wait.
const WAITING: usize = 1_024;
/// Acceptances in one statement: a few milliseconds.
const MAX_ACCEPTS: usize = 512;
/// A deadlock or a broken connection is gone at the second; a failover ends within a second or two. With a wait for a
/// connection before each it stays far below a lease.
const ACCEPT_TRIES: u32 = 4;
/// Outcomes, or requests, in one round.
const MAX_MESSAGES: usize = 512;
/// The most that one bus message may hold is 1 MB.
const MAX_MESSAGE_BYTES: usize = 512 << 10;
/// What an outcome takes beside its texts, or a request beside its lists.
const ITEM_BYTES: usize = 512;
/// Of an attempt that a request names, as it is written.
const ATTEMPT_BYTES: usize = 32;
/// How long to go on trying to store outcomes; then the builders are sent away and resend.
const OUTCOME_PATIENCE: Duration = Duration::from_mins(1);
/// Requests that cannot be stored for so long are stored with their builders' next change or try.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// Why a round failed, for all of it.
type Failed = String;

/// The ends that ask.
#[derive(Debug)]
pub(super) struct Groups {
    accepts: Group<Accept, Result<bool, Failed>>,
    outcomes: Group<OutcomeMessage, Result<(), Failed>>,
    requests: Group<BuildRequest, Result<(), Failed>>,
}

/// The ends that do.
#[derive(Debug)]
pub(super) struct Work {
    accepts: Rounds<Accept, Result<bool, Failed>>,
    outcomes: Rounds<OutcomeMessage, Result<(), Failed>>,
    requests: Rounds<BuildRequest, Result<(), Failed>>,
}

/// What the rounds need.
#[derive(Debug)]
pub(super) struct Means {
    pub(super) pool: PgPool,
    pub(super) bus: Bus,
    pub(super) node: String,
    pub(super) lease_s: i32,
}

pub(super) fn groups() -> (Groups, Work) {
    let (accepts, accepting) = group(WAITING);
    let (outcomes, storing) = group(WAITING);
    let (requests, asking) = group(WAITING);
    (Groups { accepts, outcomes, requests }, Work { accepts: accepting, outcomes: storing, requests: asking })
}

impl Groups {
    /// The builder took the job; false if it is no longer its own.
    pub(super) async fn accept(&self, accept: Accept) -> anyhow::Result<bool> {
        self.accepts.submit(accept).await?.map_err(anyhow::Error::msg)
    }

    /// Returns once the outcome is stored.
    pub(super) async fn store(&self, outcome: OutcomeMessage) -> anyhow::Result<()> {
        self.outcomes.submit(outcome).await?.map_err(anyhow::Error::msg)
    }

    /// Returns once the request is stored.
    pub(super) async fn request(&self, request: BuildRequest) -> anyhow::Result<()> {
        self.requests.submit(request).await?.map_err(anyhow::Error::msg)
    }
}

impl Work {
    /// Does rounds for as long as anybody can ask.
    pub(super) async fn run(mut self, means: Means) {
        let accepting = async {
            while let Some((accepts, answers)) = self.accepts.next(MAX_ACCEPTS).await {
                answers.send(accept_round(&means, &accepts).await);
                means.bus.hint(subjects::OUTBOX).await;
            }
        };
        let mut outcomes = Publisher::new(&means, subjects::build_outcome(&means.node), OUTCOME_PATIENCE);
        let storing = async {
            while let Some((items, answers)) = self.outcomes.next(MAX_MESSAGES).await {
                let encode = |outcomes| bus::encode(&OutcomeBatch { outcomes });
                answers.send(outcomes.round(items, bytes_of_outcome, encode).await);
            }
        };
        let mut requests = Publisher::new(&means, subjects::build_request(&means.node), REQUEST_PATIENCE);
        let asking = async {
            while let Some((items, answers)) = self.requests.next(MAX_MESSAGES).await {
                let encode = |requests| bus::encode(&RequestBatch { requests });
                answers.send(requests.round(items, bytes_of_request, encode).await);
            }
        };
        tokio::join!(accepting, storing, asking);
    }
}

async fn accept_round(means: &Means, accepts: &[Accept]) -> Vec<Result<bool, Failed>> {
    // In one order, so that two nodes that a builder accepts at never wait for each other.
    let mut sorted = accepts.to_vec();
    sorted.sort_by_key(|of| (of.job, of.attempt, of.builder));
    sorted.dedup();
    let round = || async {
        let mut tx = means.pool.begin().await?;
        let held = queue::accept_all(&mut tx, &sorted, means.lease_s).await?;
        tx.commit().await.map(|()| held)
    };
    // Saying so twice changes nothing.
    match patiently(round).await.context("cannot record that jobs were accepted") {
        Ok(held) => accepts
            .iter()
            // A lease is one builder's: another that says the same was never in `held`.
            .map(|of| Ok(held.contains(of)))
            .collect(),
        Err(error) => accepts.iter().map(|_| Err(format!("{error:#}"))).collect(),
    }
}

/// Again while that can help: each failure would send hundreds of builders away.
async fn patiently<T, F>(mut round: impl FnMut() -> F) -> Result<T, cratemill_store::Error>
where
    F: Future<Output = Result<T, cratemill_store::Error>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    for _ in 1..ACCEPT_TRIES {
        match round().await {
            Err(error) if !database::is_permanent(&error) => {
                tracing::warn!(%error, "recording again that jobs were accepted");
            }
            done => return done,
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
    round().await
}

/// Puts items on the bus, several in a message.
struct Publisher<'a> {
    bus: &'a Bus,
    subject: String,
    patience: Duration,
    /// Of this run of the node: message ids are never used twice.
    run: String,
    messages: u64,
}

impl<'a> Publisher<'a> {
    fn new(means: &'a Means, subject: String, patience: Duration) -> Self {
        let run = uuid::Uuid::new_v4().simple().to_string();
        Self { bus: &means.bus, subject, patience, run, messages: 0 }
    }

    async fn round<T>(
        &mut self,
        items: Vec<T>,
        bytes_of: fn(&T) -> usize,
        encode: impl Fn(Vec<T>) -> Vec<u8>,
    ) -> Vec<Result<(), Failed>> {
        let mut results = Vec::with_capacity(items.len());
        for items in messages(items, bytes_of) {
            let count = items.len();
            let stored = self.store(encode(items).into()).await;
            results.extend(std::iter::repeat_n(stored, count));
        }
        results
    }

    async fn store(&mut self, payload: Bytes) -> Result<(), Failed> {
        self.messages += 1;
        let mut id = format!("x-{}", self.run);
        let _ = write!(id, "-{}", self.messages);
        match self.bus.store(&self.subject, &id, payload, self.patience).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Items in messages that the bus takes, in their order.
fn messages<T>(items: Vec<T>, bytes_of: fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut messages: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = bytes_of(&item);
        match messages.last_mut() {
            Some(last) if bytes <= room => last.push(item),
            _ => {
                messages.push(vec![item]);
                room = MAX_MESSAGE_BYTES;
            }
        }
        room = room.saturating_sub(bytes);
    }
    messages
}

fn bytes_of_outcome(outcome: &OutcomeMessage) -> usize {
    let texts = [outcome.manifest.as_ref(), outcome.signature.as_ref()];
    let why = match &outcome.outcome {
        cratemill_protocol::Outcome::Failed { message, .. } => message.len(),
        _ => 0,
    };
    ITEM_BYTES + why + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

fn bytes_of_request(request: &BuildRequest) -> usize {
    let targets: usize = request.targets.iter().map(|target| target.len()).sum();
    ITEM_BYTES + targets + request.answered.len() * ATTEMPT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{Attempt, BuilderId, JobId, Outcome};

    fn outcome(job: i64, manifest_bytes: usize) -> OutcomeMessage {
        OutcomeMessage {
            job: JobId(job),
            attempt: Attempt(1),
            builder: BuilderId(1),
            outcome: Outcome::Cancelled,
            last_seq: 0,
            manifest: Some("m".repeat(manifest_bytes)),
            signature: None,
            at_ms: 0,
        }
    }

    #[tokio::test]
    async fn a_round_is_tried_again_only_if_that_can_help() {
        let rounds = async |failures: u32, error: fn() -> cratemill_store::Error| {
            let mut tries = 0;
            let round = || {
                tries += 1;
                std::future::ready(if tries > failures { Ok(()) } else { Err(error()) })
            };
            let result = patiently(round).await;
            (result.is_ok(), tries)
        };
        assert_eq!(rounds(2, || cratemill_store::Error::WorkerCrashed).await, (true, 3));
        assert_eq!(rounds(99, || cratemill_store::Error::WorkerCrashed).await, (false, ACCEPT_TRIES));
        assert_eq!(rounds(99, || cratemill_store::Error::Decode("the data".into())).await, (false, 1));
    }

    #[test]
    fn messages_stay_below_what_the_bus_takes() {
        let sizes = [10, 400 << 10, 200 << 10, 10, 900 << 10, 10];
        let outcomes: Vec<_> = (0..).zip(sizes).map(|(job, bytes)| outcome(job, bytes)).collect();
        let messages = messages(outcomes.clone(), bytes_of_outcome);
        let counts: Vec<_> = messages.iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 2, 1, 1]);
        assert_eq!(messages.concat(), outcomes, "none is lost, and their order stays");
    }
}
