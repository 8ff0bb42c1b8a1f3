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
use anyhow::bail;
use bytes::Bytes;
use cratemill_protocol::{
    BuilderId, Stage,
    builder::{Event, JobEvent, JobRef, JobResponse},
    bus::{self, LogBody, LogMessage, OutcomeMessage},
    subjects,
};
use cratemill_service::{bus::Error, clock};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// How long to go on trying to store one message; then the builder is sent away and resends.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long to wait for one acknowledgement before the connection is looked at again.
const ONE_TRY: Duration = Duration::from_secs(2);
/// While the bus is away; its client comes back within seconds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
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
        let mut stages = Stages::default();
        while let Some(work) = receiver.recv().await {
            if matches!(work, Work::Event(..)) && fence.is_low(Instant::now()) && inputs.is_closed() {
                // Nobody renews the lease of a connection that is gone. The builder sends the rest where it resumes.
                return;
            }
            let (input, last) = match perform(&sockets, builder, job, work, &mut fence, &mut stages).await {
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

/// Which stage of the attempt the database knows of. They follow each other, so a builder that goes back and forth costs it
/// four transactions a connection, and not one a message.
#[derive(Debug, Default)]
struct Stages(Option<Stage>);

impl Stages {
    fn is_next(&mut self, stage: Stage) -> bool {
        let place = |stage: &Stage| Stage::ALL.iter().position(|other| other == stage);
        let next = self.0.is_none_or(|last| place(&stage) > place(&last));
        if next {
            self.0 = Some(stage);
        }
        next
    }
}

/// Does one piece of work; the answer is what the session is to know.
async fn perform(
    sockets: &Sockets,
    builder: BuilderId,
    job: JobRef,
    work: Work,
    fence: &mut Fence,
    stages: &mut Stages,
) -> anyhow::Result<Option<Input>> {
    match work {
        Work::Accept => {
            let held = fence.renew(sockets, builder, job).await?;
            Ok((!held).then_some(Input::LeaseLost(job)))
        }
        Work::Event(event, text) => {
            let seq = event.seq;
            if fence.is_low(Instant::now()) && !fence.renew(sockets, builder, job).await? {
                return Ok(Some(Input::LeaseLost(job)));
            }
            if let Event::Stage { stage } = event.event
                && stages.is_next(stage)
                && !database::set_stage(sockets, builder, job, stage).await?
            {
                return Ok(Some(Input::LeaseLost(job)));
            }
            store_event(sockets, event, text, fence.left(Instant::now()).min(PATIENCE)).await?;
            Ok(Some(Input::Stored { job, seq }))
        }
        Work::Outcome(response) => {
            store_outcome(sockets, builder, *response).await?;
            Ok(Some(Input::OutcomeStored(job)))
        }
    }
}

async fn store_event(sockets: &Sockets, event: JobEvent, end: u64, patience: Duration) -> anyhow::Result<()> {
    let JobEvent { job, attempt, seq, event } = event;
    let body = match event {
        Event::Stage { stage } => LogBody::Stage { stage, offset: end },
        Event::Log { offset, text } => LogBody::Text { offset, text },
    };
    let message = LogMessage { job, attempt, seq, at_ms: clock::now_ms(), body };
    let id = format!("l-{job}-{attempt}-{seq}");
    publish(sockets, &subjects::log(job, attempt), &id, bus::encode(&message).into(), patience).await
}

/// Only over a connection that stands, at each try: the client keeps what it is given while it has none, and would send it
/// when it has one again, perhaps after the lease and after the log's end.
async fn publish(
    sockets: &Sockets,
    subject: &str,
    id: &str,
    payload: Bytes,
    patience: Duration,
) -> anyhow::Result<()> {
    let bus = &sockets.bus;
    let until = Instant::now() + patience;
    loop {
        while let Err(why) = bus.check() {
            if Instant::now() >= until {
                bail!("the bus is away: {why}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let left = until.saturating_duration_since(Instant::now());
        match bus.store(subject, id, payload.clone(), left.min(ONE_TRY)).await {
            Err(Error::Unavailable(_)) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
            stored => return stored.map(drop).map_err(Into::into),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_hears_of_each_stage_once() {
        let mut stages = Stages::default();
        let said = [
            (Stage::Fetch, true),
            (Stage::Fetch, false),
            (Stage::Build, true),
            (Stage::Fetch, false),
            (Stage::Build, false),
            (Stage::Upload, true),
            (Stage::Package, false),
        ];
        for (stage, next) in said {
            assert_eq!(stages.is_next(stage), next, "{stage}");
        }
        assert!(Stages::default().is_next(Stage::Package), "the attempt of an earlier connection");
    }
}
