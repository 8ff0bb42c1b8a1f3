//! One attempt's messages, in the builder's order: accepted, then each event stored, then the outcome.
//!
//! A message is published only after the one before it is stored. So two connections of a builder that resends, on
//! two nodes at once, still leave each event once and in order: repeats carry the same message id.

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
use std::{sync::Arc, time::Duration};
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
        while let Some(work) = receiver.recv().await {
            let (input, last) = match perform(&sockets, builder, job, work).await {
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
            // Without a connection the rest is stored all the same; the builder finds out when it resumes.
            let _ = inputs.send(input).await;
            if last {
                return;
            }
        }
    });
    Attempt(sender)
}

/// Does one piece of work; the answer is what the session is to know.
async fn perform(
    sockets: &Sockets,
    builder: BuilderId,
    job: JobRef,
    work: Work,
) -> anyhow::Result<Option<Input>> {
    match work {
        Work::Accept => {
            let held = database::accept(sockets, builder, job).await?;
            Ok((!held).then_some(Input::LeaseLost(job)))
        }
        Work::Event(event) => {
            let seq = event.seq;
            if let Event::Stage { stage } = event.event
                && !database::set_stage(sockets, builder, job, stage).await?
            {
                return Ok(Some(Input::LeaseLost(job)));
            }
            store_event(sockets, event).await?;
            Ok(Some(Input::Stored { job, seq }))
        }
        Work::Outcome(response) => {
            store_outcome(sockets, builder, *response).await?;
            Ok(Some(Input::OutcomeStored(job)))
        }
    }
}

async fn store_event(sockets: &Sockets, event: JobEvent) -> anyhow::Result<()> {
    let JobEvent { job, attempt, seq, event } = event;
    let body = match event {
        Event::Stage { stage } => LogBody::Stage { stage },
        Event::Log { offset, text } => LogBody::Text { offset, text },
    };
    let message = LogMessage { job, attempt, seq, at_ms: clock::now_ms(), body };
    let id = format!("l-{job}-{attempt}-{seq}");
    sockets.bus.store(&subjects::log(job, attempt), &id, bus::encode(&message).into(), PATIENCE).await?;
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
