//! A builder that is logged in: its attempts, their events and their ends. Pure, like the session it is part of.

use super::{
    effects::{Effect, Input, Renewed, Work, close, name_of},
    log::Text,
    session::Config,
};
use cratemill_protocol::{
    FailureClass, Outcome,
    builder::{
        CANCEL_GRACE_S, CancelReason, ClientMessage, CloseReason, Event, Heartbeat, JobEvent, JobRef,
        JobResponse, MAX_MANIFEST_BYTES, MAX_SLOTS, Resumed, ServerMessage,
    },
    job::Timings,
};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

/// Events of one attempt that may be under way; a builder that sends more does not wait for acknowledgements.
pub(super) const MAX_UNACKED_EVENTS: u32 = 256;
/// Every tenth of a second of a day.
const MAX_EVENTS: u64 = 864_000;
/// Attempts that are over and may still be on their way to the dispatchers as assigned: requests follow each other within
/// milliseconds, and each names the last so many. One that none names takes a slot until its end is known.
const MAX_ENDED: usize = 64;
/// A builder works on no more jobs than it has slots.
const MAX_RUNNING: usize = MAX_SLOTS as usize;

/// A job is less than 2 KiB in either encoding, and a frame at most 256.
const MAX_JOBS_IN_FRAME: usize = 64;

#[derive(Debug)]
pub(super) struct Ready {
    attempts: HashMap<JobRef, Progress>,
    /// The last that the builder had answered.
    ended: VecDeque<JobRef>,
    draining: bool,
    lease_s: u32,
    /// A heartbeat is being answered: until then others wait for the next.
    renewing: bool,
    /// When the last heartbeat was that leases were renewed for.
    renewed: Option<Instant>,
    /// Others before this has passed are only heard: each costs the database a statement.
    renew_period: Duration,
}

/// How far an attempt is.
#[derive(Debug)]
struct Progress {
    /// The newest event received.
    received: u64,
    /// The newest event stored.
    stored: u64,
    text: Text,
    accepted: bool,
    ended: bool,
}

impl Progress {
    fn new(log_bytes: u64) -> Self {
        Self { received: 0, stored: 0, text: Text::new(log_bytes), accepted: false, ended: false }
    }

    fn resumed(stored: u64, text: u64) -> Self {
        Self { received: stored, stored, text: Text::resumed(text), accepted: true, ended: false }
    }

    /// The builder took the job or did not.
    fn is_answered(&self) -> bool {
        self.accepted || self.ended
    }
}

impl Ready {
    /// Starts with what the builder resumes.
    pub(super) fn new(resumed: &[(Resumed, u64)], draining: bool, config: &Config) -> Self {
        let attempts = resumed.iter().filter_map(|(answer, text)| match answer {
            Resumed::Continue { job, attempt, next_seq, .. } => Some((
                JobRef { job: *job, attempt: *attempt },
                Progress::resumed(next_seq.saturating_sub(1), *text),
            )),
            Resumed::Lost { .. } => None,
        });
        let attempts = attempts.collect();
        Self {
            attempts,
            ended: VecDeque::new(),
            draining,
            lease_s: config.lease_s,
            renewing: false,
            renewed: None,
            renew_period: config.heartbeat() / 2,
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn message(&mut self, message: ClientMessage, now: Instant) -> Vec<Effect> {
        match message {
            ClientMessage::JobRequest { slots } if slots <= MAX_SLOTS => {
                vec![self.ask(if self.draining { 0 } else { slots })]
            }
            ClientMessage::JobRequest { .. } => {
                close(CloseReason::Protocol, "more slots than a builder may have")
            }
            ClientMessage::JobAccepted(job) => self.accepted(job),
            ClientMessage::JobRejected { job, attempt, why } => {
                let why = format!("the builder rejected the job: {}", short(&why));
                self.hand_back(JobRef { job, attempt }, FailureClass::Infrastructure, why)
            }
            ClientMessage::JobEvent(event) => self.event(event),
            ClientMessage::JobResponse(response) => self.response(response),
            ClientMessage::Heartbeat(heartbeat) => self.heartbeat(heartbeat, now),
            ClientMessage::Goodbye { why } => self.goodbye(&why),
            message @ (ClientMessage::Hello(_) | ClientMessage::ChallengeResponse(_)) => {
                close(CloseReason::Protocol, format!("{} is not expected now", name_of(&message)))
            }
        }
    }

    /// A job that the builder has not answered may have crossed its request on the way.
    fn ask(&self, slots: u16) -> Effect {
        let at_hand = self.attempts.iter().filter(|(_, progress)| progress.is_answered());
        let mut answered: Vec<_> = at_hand.map(|(job, _)| *job).chain(self.ended.iter().copied()).collect();
        answered.sort_unstable();
        Effect::Ask { slots, answered }
    }

    fn forget(&mut self, job: JobRef) {
        if self.attempts.remove(&job).is_some_and(|progress| progress.is_answered()) {
            self.ended.truncate(MAX_ENDED - 1);
            self.ended.push_front(job);
        }
    }

    fn event(&mut self, event: JobEvent) -> Vec<Effect> {
        let job = JobRef { job: event.job, attempt: event.attempt };
        let Some(progress) = self.attempts.get_mut(&job) else { return vec![lease_lost(job)] };
        if !progress.accepted {
            return close(CloseReason::Protocol, "an attempt begins with its acceptance");
        }
        if event.seq <= progress.received {
            // A repeat: what is stored is acknowledged again, what is under way will be.
            return vec![event_ack(job, progress.stored)];
        }
        if event.seq != progress.received + 1 || progress.ended {
            return close(
                CloseReason::Protocol,
                "events are numbered from 1 without gaps and end with the response",
            );
        }
        if let Event::Log { offset, text } = &event.event
            && let Err(why) = progress.text.take(*offset, text)
        {
            return close(CloseReason::Protocol, why);
        }
        if event.seq > MAX_EVENTS {
            return close(CloseReason::Protocol, "more events than an attempt may have");
        }
        if progress.received - progress.stored >= u64::from(MAX_UNACKED_EVENTS) {
            return close(CloseReason::Flood, "too many events that are not acknowledged");
        }
        progress.received = event.seq;
        vec![Effect::Work(job, Work::Event(event, progress.text.end()))]
    }

    fn response(&mut self, response: JobResponse) -> Vec<Effect> {
        let job = JobRef { job: response.job, attempt: response.attempt };
        let Some(progress) = self.attempts.get_mut(&job) else { return vec![lease_lost(job)] };
        if progress.ended {
            return Vec::new();
        }
        if response.last_seq != progress.received {
            return close(CloseReason::Protocol, "the response comes before the attempt's last event");
        }
        let text = response.manifest.as_ref().map_or(0, String::len)
            + response.signature.as_ref().map_or(0, String::len);
        if text > MAX_MANIFEST_BYTES {
            return close(CloseReason::Protocol, "the manifest is beyond the limits of the protocol");
        }
        progress.ended = true;
        vec![Effect::Work(job, Work::Outcome(Box::new(response)))]
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat, now: Instant) -> Vec<Effect> {
        if heartbeat.running.len() > MAX_RUNNING {
            return close(CloseReason::Protocol, "more running jobs than a builder may have");
        }
        let running: BTreeSet<_> = heartbeat.running.into_iter().collect();
        let (held, gone): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|job| self.attempts.contains_key(job));
        let mut effects: Vec<_> = gone.into_iter().map(lease_lost).collect();
        let early = self.renewed.is_some_and(|renewed| now < renewed + self.renew_period);
        if !held.is_empty() && !early && !self.renewing {
            self.renewing = true;
            self.renewed = Some(now);
            effects.push(Effect::Renew(held));
        }
        effects
    }

    fn goodbye(&mut self, why: &str) -> Vec<Effect> {
        let message = format!("the builder left: {}", short(why));
        let open: Vec<_> = self.attempts.iter().filter(|(_, p)| !p.ended).map(|(job, _)| *job).collect();
        let mut effects: Vec<_> = open
            .into_iter()
            .flat_map(|job| self.hand_back(job, FailureClass::Lost, message.clone()))
            .collect();
        effects.extend(close(CloseReason::Draining, "goodbye"));
        effects
    }

    fn accepted(&mut self, job: JobRef) -> Vec<Effect> {
        let Some(progress) = self.attempts.get_mut(&job) else { return vec![lease_lost(job)] };
        let again = std::mem::replace(&mut progress.accepted, true);
        if again { Vec::new() } else { vec![Effect::Work(job, Work::Accept)] }
    }

    /// Ends an attempt in the builder's name, so that the job goes back to the queue at once.
    fn hand_back(&mut self, job: JobRef, class: FailureClass, message: String) -> Vec<Effect> {
        let Some(progress) = self.attempts.get_mut(&job) else { return Vec::new() };
        if std::mem::replace(&mut progress.ended, true) {
            return Vec::new();
        }
        let last_seq = progress.received;
        vec![Effect::Work(job, Work::Outcome(Box::new(handed_back(job, class, message, last_seq))))]
    }

    pub(super) fn answer(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Assigned(jobs) => {
                if self.attempts.len() >= 2 * MAX_RUNNING {
                    // What the builder never accepted was given to others long ago.
                    self.attempts.retain(|_, progress| progress.accepted);
                }
                for job in &jobs {
                    let of = JobRef { job: job.id, attempt: job.attempt };
                    self.attempts.insert(of, Progress::new(job.limits.log_bytes));
                }
                let frames = jobs.chunks(MAX_JOBS_IN_FRAME);
                frames.map(|jobs| Effect::Send(ServerMessage::Jobs { jobs: jobs.to_vec() })).collect()
            }
            Input::Stored { job, seq } => {
                let Some(progress) = self.attempts.get_mut(&job) else { return Vec::new() };
                progress.stored = progress.stored.max(seq);
                vec![event_ack(job, progress.stored)]
            }
            Input::OutcomeStored(job) => {
                self.forget(job);
                vec![Effect::Send(ServerMessage::JobDone(job))]
            }
            Input::Renewed(renewed) => self.renewed(*renewed),
            Input::LeaseLost(job) => {
                self.forget(job);
                vec![lease_lost(job)]
            }
            Input::Cancel { job, grace_s } if self.attempts.contains_key(&job) => vec![cancel(job, grace_s)],
            Input::Drain if !self.draining => {
                self.draining = true;
                vec![self.ask(0), Effect::Send(ServerMessage::Drain)]
            }
            _ => Vec::new(),
        }
    }

    fn renewed(&mut self, Renewed { held, cancelled, lost }: Renewed) -> Vec<Effect> {
        self.renewing = false;
        let mut effects = Vec::with_capacity(held.len() + cancelled.len() + lost.len());
        for (job, token) in held {
            if self.attempts.contains_key(&job) {
                effects.push(Effect::Send(ServerMessage::LeaseRenewed {
                    job: job.job,
                    attempt: job.attempt,
                    lease_s: self.lease_s,
                    token,
                }));
            }
        }
        let running = |job: &JobRef| self.attempts.get(job).is_some_and(|progress| !progress.ended);
        effects.extend(cancelled.into_iter().filter(running).map(|job| cancel(job, CANCEL_GRACE_S)));
        for job in lost {
            // One whose outcome is under way may be finished already: that is no loss.
            if self.attempts.get(&job).is_some_and(|progress| !progress.ended) {
                self.forget(job);
                effects.push(lease_lost(job));
            }
        }
        effects
    }
}

/// The outcome of an attempt that nobody builds any more.
pub(super) fn handed_back(job: JobRef, class: FailureClass, message: String, last_seq: u64) -> JobResponse {
    let outcome = Outcome::Failed { class, message, stage: None, timings: Timings::default() };
    JobResponse { job: job.job, attempt: job.attempt, outcome, last_seq, manifest: None, signature: None }
}

fn cancel(job: JobRef, grace_s: u32) -> Effect {
    let why = CancelReason::Cancelled;
    Effect::Send(ServerMessage::Cancel { job: job.job, attempt: job.attempt, grace_s, why })
}

fn lease_lost(job: JobRef) -> Effect {
    Effect::Send(ServerMessage::Cancel {
        job: job.job,
        attempt: job.attempt,
        grace_s: 0,
        why: CancelReason::LeaseLost,
    })
}

fn event_ack(job: JobRef, seq: u64) -> Effect {
    Effect::Send(ServerMessage::EventAck { job: job.job, attempt: job.attempt, seq })
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
