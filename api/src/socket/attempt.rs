//! One attempt's messages, in the builder's order: accepted, then each event stored, then the outcome.
//!
//! A message is published only after the one before it is stored. So two connections of a builder that resends, on
//! two nodes at once, still leave each event once and in order: repeats carry the same message id.
//!
//! An event is published only under a lease that this node knows to last until it is stored. It asks the database when
//! half of what it knows of is over, so once in half a lease and not for each event, whatever the heartbeats do.

use super::{
    Sockets, database,
    effects::{Input, Work},
    ready::MAX_UNACKED_EVENTS,
};
use cratemill_protocol::{
    BuilderId,
    builder::{Event, JobEvent, JobRef, JobResponse},
    bus::{self, LogBody, LogMessage, OutcomeMessage},
    subjects,
};
use cratemill_service::clock;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// How long to go on trying to store one message; then the builder is sent away and resends.
const PATIENCE: Duration = Duration::from_mins(1);
/// The window of events, the acceptance and the outcome.
const QUEUE: usize = MAX_UNACKED_EVENTS as usize + 2;

/// The sending end; dropped, the task stores what it has and ends.
pub(super) struct Attempt(mpsc::Sender<Work>);

impl Attempt {
    /// What comes after the task has ended is dropped: why it ended is on its way to the session.
    pub(super) fn send(&self, work: Work) -> Result<(), &'static str> {
        match self.0.try_send(work) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err("the attempt's queue is full"),
        }
    }
}

pub(super) fn start(
    sockets: Arc<Sockets>,
    builder: BuilderId,
    job: JobRef,
    inputs: mpsc::Sender<Input>,
) -> Attempt {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let tasks = sockets.tasks.clone();
    tasks.spawn(async move {
        let mut fence = Fence { lease: sockets.config.lease(), until: None };
        while let Some(work) = receiver.recv().await {
            if matches!(work, Work::Event(_)) && fence.is_low(Instant::now()) && inputs.is_closed() {
                // Nobody renews the lease of a connection that is gone. The builder sends the rest where it resumes.
                return;
            }
            let (input, last) = match perform(&sockets, builder, job, work, &mut fence).await {
                Ok(Some(input)) => {
                    let last = matches!(input, Input::LeaseLost(_) | Input::OutcomeStored(_));
                    (input, last)
                }
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(job = %job.job, attempt = %job.attempt, error = format!("{error:#}"),
                        "cannot store what a builder sent");
                    (Input::Failed("what you sent could not be stored, connect again".into()), true)
                }
            };
            // Without a connection the rest is stored while the lease lasts; the builder finds out when it resumes.
            let _ = inputs.send(input).await;
            if last {
                return;
            }
        }
    });
    Attempt(sender)
}

/// How long this node knows the attempt to have its job: it counts from before it asked, so never too long.
struct Fence {
    lease: Duration,
    until: Option<Instant>,
}

impl Fence {
    fn left(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Too little is left to store something in.
    fn is_low(&self, now: Instant) -> bool {
        self.left(now) < self.lease / 2
    }

    /// Asks for a new lease; false if the job is another's.
    async fn renew(&mut self, sockets: &Sockets, builder: BuilderId, job: JobRef) -> anyhow::Result<bool> {
        let asked = Instant::now();
        let held = database::accept(sockets, builder, job).await?;
        self.until = held.then(|| asked + self.lease);
        Ok(held)
    }
}

/// Does one piece of work; the answer is what the session is to know.
async fn perform(
    sockets: &Sockets,
    builder: BuilderId,
    job: JobRef,
    work: Work,
    fence: &mut Fence,
) -> anyhow::Result<Option<Input>> {
    match work {
        Work::Accept => {
            let held = fence.renew(sockets, builder, job).await?;
            Ok((!held).then_some(Input::LeaseLost(job)))
        }
        Work::Event(event) => {
            let seq = event.seq;
            if fence.is_low(Instant::now()) && !fence.renew(sockets, builder, job).await? {
                return Ok(Some(Input::LeaseLost(job)));
            }
            if let Event::Stage { stage } = event.event
                && !database::set_stage(sockets, builder, job, stage).await?
            {
                return Ok(Some(Input::LeaseLost(job)));
            }
            store_event(sockets, event, fence.left(Instant::now()).min(PATIENCE)).await?;
            Ok(Some(Input::Stored { job, seq }))
        }
        Work::Outcome(response) => {
            store_outcome(sockets, builder, *response).await?;
            Ok(Some(Input::OutcomeStored(job)))
        }
    }
}

async fn store_event(sockets: &Sockets, event: JobEvent, patience: Duration) -> anyhow::Result<()> {
    let JobEvent { job, attempt, seq, event } = event;
    let body = match event {
        Event::Stage { stage } => LogBody::Stage { stage },
        Event::Log { offset, text } => LogBody::Text { offset, text },
    };
    let message = LogMessage { job, attempt, seq, at_ms: clock::now_ms(), body };
    let id = format!("l-{job}-{attempt}-{seq}");
    sockets.bus.store(&subjects::log(job, attempt), &id, bus::encode(&message).into(), patience).await?;
    Ok(())
}

pub(super) async fn store_outcome(
    sockets: &Sockets,
    builder: BuilderId,
    response: JobResponse,
) -> anyhow::Result<()> {
    let JobResponse { job, attempt, outcome, last_seq, manifest, signature } = response;
    let message = OutcomeMessage {
        job,
        attempt,
        builder,
        outcome,
        last_seq,
        manifest,
        signature,
        at_ms: clock::now_ms(),
    };
    sockets.groups.store(message).await
}
