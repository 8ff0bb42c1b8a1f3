//! One builder's session: what each message, answer and tick leads to. Pure: no I/O, no clock, no randomness.
//!
//! ```text
//! Hello ──key looked up──> Challenge ──signature good──> Opening ──session recorded──> Ready
//!   any refusal, silence or fault ──> Closed
//! ```

use super::bucket::Bucket;
use cratemill_protocol::{
    BuilderId, FailureClass, Outcome, Target,
    builder::{
        AUTH_NAMESPACE, CancelReason, Challenge, ClientMessage, CloseReason, ConnectionLimits, Event,
        Heartbeat, Hello, Job, JobEvent, JobRef, JobResponse, MAX_FRAME_BYTES, MAX_LOG_CHUNK_BYTES,
        MAX_MANIFEST_BYTES, MAX_SLOTS, MAX_TARGETS, Nonce, Resume, Resumed, ServerMessage, Welcome,
    },
    job::Timings,
    sshsig,
    token::Token,
};
use cratemill_store::builders::Login;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Events of one attempt that may be under way; a builder that sends more does not wait for acknowledgements.
pub(super) const MAX_UNACKED_EVENTS: u32 = 256;
/// A busy builder with many slots stays far below; the burst covers a resend after a reconnect.
const MESSAGES_PER_S: u32 = 2_000;
const MESSAGES_BURST: u32 = 2 * MAX_UNACKED_EVENTS * 16;
/// Ten times the default log limit of a job: a bound against a builder that enforces none.
const MAX_LOG_BYTES: u64 = 160 << 20;
/// Attempts that a builder may want to resume at once.
const MAX_RESUMES: usize = MAX_SLOTS as usize;
/// Missed heartbeats after which a builder is gone.
const SILENT_HEARTBEATS: u32 = 3;
/// The longest text a builder may give as its name or as a reason.
const MAX_TEXT_BYTES: usize = 1_024;

#[derive(Debug, Clone)]
pub(super) struct Config {
    /// The public URL: who asks for the signature.
    pub server: String,
    pub heartbeat_s: u32,
    pub lease_s: u32,
    pub login_timeout: Duration,
}

#[derive(Debug)]
pub(super) enum Input {
    Message(ClientMessage),
    /// The frame could not be read as a message.
    Malformed(String),
    FrameTooLarge,
    Key(Option<Login>),
    /// The session is recorded; the answers to the builder's resumes, and how much of each log is stored.
    Opened(Vec<Resumed>),
    Assigned(Box<Job>),
    /// Everything up to `seq` of the attempt is on the bus.
    Stored {
        job: JobRef,
        seq: u64,
    },
    OutcomeStored(JobRef),
    /// The attempts of a heartbeat that are still the builder's, each with a fresh token.
    Renewed {
        held: Vec<(JobRef, Token)>,
        lost: Vec<JobRef>,
    },
    LeaseLost(JobRef),
    Cancel {
        job: JobRef,
        grace_s: u32,
    },
    Disabled,
    Superseded,
    Drain,
    /// This node goes away.
    Shutdown,
    /// Something of ours failed: the builder is to come back.
    Failed(String),
    Tick,
}

#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    Send(ServerMessage),
    /// Look the fingerprint up, answer with [`Input::Key`].
    FindKey(String),
    /// Record the session, answer with [`Input::Opened`].
    Open {
        builder: BuilderId,
        name: String,
        targets: Vec<Target>,
        resume: Vec<Resume>,
    },
    /// Tell the dispatchers how many jobs the builder waits for.
    Ask {
        slots: u16,
    },
    /// In the order of the attempt: accept, events, outcome.
    Work(JobRef, Work),
    Renew(Vec<JobRef>),
    /// The last effect of a session.
    Close {
        reason: CloseReason,
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Work {
    Accept,
    Event(JobEvent),
    Outcome(Box<JobResponse>),
}

#[derive(Debug)]
enum State {
    Hello,
    FindingKey(Hello),
    Challenged { hello: Hello, login: Login, challenge: Challenge },
    Opening(Identity, Vec<Resume>),
    Ready(Ready),
    Closed,
}

#[derive(Debug, Clone)]
struct Identity {
    builder: BuilderId,
    name: String,
    drain: bool,
}

#[derive(Debug)]
struct Ready {
    attempts: HashMap<JobRef, Progress>,
    draining: bool,
    lease_s: u32,
}

/// How far an attempt is.
#[derive(Debug)]
struct Progress {
    /// The newest event received.
    received: u64,
    /// The newest event stored.
    stored: u64,
    ended: bool,
}

#[derive(Debug)]
pub(super) struct Session {
    config: Config,
    connection: String,
    nonce: Nonce,
    state: State,
    bucket: Bucket,
    heard: Instant,
    sent: Instant,
    opened: Instant,
}

impl Session {
    pub(super) fn new(config: Config, connection: String, nonce: Nonce, now: Instant) -> Self {
        let bucket = Bucket::new(MESSAGES_PER_S, MESSAGES_BURST, now);
        Self { config, connection, nonce, state: State::Hello, bucket, heard: now, sent: now, opened: now }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// When to send the next [`Input::Tick`] at the latest.
    pub(super) fn deadline(&self) -> Instant {
        match self.state {
            State::Ready(_) => {
                (self.sent + self.heartbeat()).min(self.heard + self.heartbeat() * SILENT_HEARTBEATS)
            }
            _ => self.opened + self.config.login_timeout,
        }
    }

    pub(super) fn handle(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        if self.is_closed() {
            return Vec::new();
        }
        let effects = self.react(input, now);
        if effects.iter().any(|effect| matches!(effect, Effect::Send(_))) {
            self.sent = now;
        }
        if effects.iter().any(|effect| matches!(effect, Effect::Close { .. })) {
            self.state = State::Closed;
        }
        effects
    }

    fn react(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        match input {
            Input::Message(message) => {
                self.heard = now;
                if !self.bucket.take(now) {
                    return close(CloseReason::Flood, "too many messages");
                }
                self.message(message)
            }
            Input::Malformed(why) => close(CloseReason::Protocol, why),
            Input::FrameTooLarge => {
                close(CloseReason::FrameTooLarge, format!("a frame may have {MAX_FRAME_BYTES} bytes"))
            }
            Input::Disabled => close(CloseReason::Disabled, "the builder is disabled"),
            Input::Superseded => close(CloseReason::Superseded, "the builder logged in again"),
            Input::Shutdown => close(CloseReason::Draining, "this node goes away, connect again"),
            Input::Failed(why) => close(CloseReason::Internal, why),
            Input::Tick => self.tick(now),
            Input::Key(login) => self.key(login),
            Input::Opened(resumed) => self.opened(resumed),
            other => match &mut self.state {
                State::Ready(ready) => ready.answer(other),
                _ => Vec::new(),
            },
        }
    }

    fn message(&mut self, message: ClientMessage) -> Vec<Effect> {
        match (&mut self.state, message) {
            (State::Hello, ClientMessage::Hello(hello)) => self.hello(hello),
            (State::Challenged { .. }, ClientMessage::ChallengeResponse(response)) => {
                self.signature(&response.signature)
            }
            (State::Ready(ready), message) => ready.message(message),
            (_, message) => {
                let name = name_of(&message);
                close(CloseReason::Protocol, format!("{name} is not expected now"))
            }
        }
    }

    fn hello(&mut self, hello: Hello) -> Vec<Effect> {
        let sane = hello.agent.len() <= MAX_TEXT_BYTES
            && hello.fingerprint.len() <= MAX_TEXT_BYTES
            && hello.targets.len() <= MAX_TARGETS
            && hello.resume.len() <= MAX_RESUMES
            && (1..=MAX_SLOTS).contains(&hello.slots);
        if !sane {
            return close(CloseReason::Protocol, "hello is beyond the limits of the protocol");
        }
        let find = Effect::FindKey(hello.fingerprint.clone());
        self.state = State::FindingKey(hello);
        vec![find]
    }

    fn key(&mut self, login: Option<Login>) -> Vec<Effect> {
        let State::FindingKey(hello) = std::mem::replace(&mut self.state, State::Closed) else {
            return Vec::new();
        };
        let Some(login) = login else {
            return close(CloseReason::UnknownKey, "this key belongs to no builder");
        };
        if !login.enabled {
            return close(CloseReason::Disabled, "the builder or its key is disabled");
        }
        let challenge = Challenge {
            server: self.config.server.clone(),
            connection: self.connection.clone(),
            nonce: self.nonce,
        };
        self.state = State::Challenged { hello, login, challenge: challenge.clone() };
        vec![Effect::Send(ServerMessage::ChallengeRequest(challenge))]
    }

    fn signature(&mut self, signature: &str) -> Vec<Effect> {
        let State::Challenged { hello, login, challenge } = std::mem::replace(&mut self.state, State::Closed)
        else {
            return Vec::new();
        };
        let good = sshsig::public_key(&login.public_key).and_then(|key| {
            sshsig::verify(&key, AUTH_NAMESPACE, &challenge.signed_bytes(&hello.fingerprint), signature)
        });
        if good.is_err() {
            return close(CloseReason::BadSignature, "the signature is not good for this challenge");
        }
        let targets =
            hello.targets.into_iter().filter(|target| login.targets.iter().any(|t| **t == **target));
        let open = Effect::Open {
            builder: login.builder,
            name: login.name.clone(),
            targets: targets.collect(),
            resume: hello.resume.clone(),
        };
        let identity = Identity { builder: login.builder, name: login.name, drain: login.drain };
        self.state = State::Opening(identity, hello.resume);
        vec![open]
    }

    fn opened(&mut self, resumed: Vec<Resumed>) -> Vec<Effect> {
        let State::Opening(identity, asked) = std::mem::replace(&mut self.state, State::Closed) else {
            return Vec::new();
        };
        let mut attempts = HashMap::new();
        for answer in &resumed {
            if let Resumed::Continue { job, attempt, next_seq, .. } = answer
                && asked.iter().any(|resume| resume.job == *job && resume.attempt == *attempt)
            {
                let stored = next_seq.saturating_sub(1);
                let progress = Progress { received: stored, stored, ended: false };
                attempts.insert(JobRef { job: *job, attempt: *attempt }, progress);
            }
        }
        let mut effects = vec![Effect::Send(ServerMessage::Welcome(Welcome {
            builder: identity.builder,
            name: identity.name,
            heartbeat_s: self.config.heartbeat_s,
            lease_s: self.config.lease_s,
            limits: limits(),
            resumed,
        }))];
        if identity.drain {
            effects.push(Effect::Send(ServerMessage::Drain));
        }
        self.state = State::Ready(Ready { attempts, draining: identity.drain, lease_s: self.config.lease_s });
        effects
    }

    fn tick(&mut self, now: Instant) -> Vec<Effect> {
        if !matches!(self.state, State::Ready(_)) {
            let late = now.duration_since(self.opened) >= self.config.login_timeout;
            return if late { close(CloseReason::LoginTimeout, "no login in time") } else { Vec::new() };
        }
        if now.duration_since(self.heard) >= self.heartbeat() * SILENT_HEARTBEATS {
            return close(CloseReason::Silent, "no heartbeat in time");
        }
        if now.duration_since(self.sent) >= self.heartbeat() {
            return vec![Effect::Send(ServerMessage::Ping)];
        }
        Vec::new()
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs(u64::from(self.config.heartbeat_s))
    }
}

impl Ready {
    fn message(&mut self, message: ClientMessage) -> Vec<Effect> {
        match message {
            ClientMessage::JobRequest { slots } if slots <= MAX_SLOTS => {
                vec![Effect::Ask { slots: if self.draining { 0 } else { slots } }]
            }
            ClientMessage::JobRequest { .. } => {
                close(CloseReason::Protocol, "more slots than a builder may have")
            }
            ClientMessage::JobAccepted(job) => self.work(job, Work::Accept),
            ClientMessage::JobRejected { job, attempt, why } => {
                let why = format!("the builder rejected the job: {}", short(&why));
                self.hand_back(JobRef { job, attempt }, FailureClass::Infrastructure, why)
            }
            ClientMessage::JobEvent(event) => self.event(event),
            ClientMessage::JobResponse(response) => self.response(response),
            ClientMessage::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            ClientMessage::Goodbye { why } => self.goodbye(&why),
            message @ (ClientMessage::Hello(_) | ClientMessage::ChallengeResponse(_)) => {
                close(CloseReason::Protocol, format!("{} is not expected now", name_of(&message)))
            }
        }
    }

    fn event(&mut self, event: JobEvent) -> Vec<Effect> {
        let job = JobRef { job: event.job, attempt: event.attempt };
        let Some(progress) = self.attempts.get_mut(&job) else { return vec![lease_lost(job)] };
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
            && (text.len() > MAX_LOG_CHUNK_BYTES || offset.saturating_add(text.len() as u64) > MAX_LOG_BYTES)
        {
            return close(CloseReason::Protocol, "the log is beyond the limits of the protocol");
        }
        if progress.received - progress.stored >= u64::from(MAX_UNACKED_EVENTS) {
            return close(CloseReason::Flood, "too many events that are not acknowledged");
        }
        progress.received = event.seq;
        vec![Effect::Work(job, Work::Event(event))]
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

    fn heartbeat(&mut self, heartbeat: Heartbeat) -> Vec<Effect> {
        if heartbeat.running.len() > MAX_RESUMES {
            return close(CloseReason::Protocol, "more running jobs than a builder may have");
        }
        let (held, gone): (Vec<_>, Vec<_>) =
            heartbeat.running.into_iter().partition(|job| self.attempts.contains_key(job));
        let mut effects: Vec<_> = gone.into_iter().map(lease_lost).collect();
        if !held.is_empty() {
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

    fn work(&mut self, job: JobRef, work: Work) -> Vec<Effect> {
        if self.attempts.contains_key(&job) { vec![Effect::Work(job, work)] } else { vec![lease_lost(job)] }
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

    fn answer(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Assigned(job) => {
                let of = JobRef { job: job.id, attempt: job.attempt };
                self.attempts.insert(of, Progress { received: 0, stored: 0, ended: false });
                vec![Effect::Send(ServerMessage::Jobs { jobs: vec![*job] })]
            }
            Input::Stored { job, seq } => {
                let Some(progress) = self.attempts.get_mut(&job) else { return Vec::new() };
                progress.stored = progress.stored.max(seq);
                vec![event_ack(job, progress.stored)]
            }
            Input::OutcomeStored(job) => {
                self.attempts.remove(&job);
                vec![Effect::Send(ServerMessage::JobDone(job))]
            }
            Input::Renewed { held, lost } => self.renewed(held, lost),
            Input::LeaseLost(job) => {
                self.attempts.remove(&job);
                vec![lease_lost(job)]
            }
            Input::Cancel { job, grace_s } if self.attempts.contains_key(&job) => {
                vec![Effect::Send(ServerMessage::Cancel {
                    job: job.job,
                    attempt: job.attempt,
                    grace_s,
                    why: CancelReason::Cancelled,
                })]
            }
            Input::Drain => {
                self.draining = true;
                vec![Effect::Ask { slots: 0 }, Effect::Send(ServerMessage::Drain)]
            }
            _ => Vec::new(),
        }
    }

    fn renewed(&mut self, held: Vec<(JobRef, Token)>, lost: Vec<JobRef>) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(held.len() + lost.len());
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
        for job in lost {
            // One whose outcome is under way may be finished already: that is no loss.
            if self.attempts.get(&job).is_some_and(|progress| !progress.ended) {
                self.attempts.remove(&job);
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

fn limits() -> ConnectionLimits {
    ConnectionLimits {
        max_frame_bytes: u32::try_from(MAX_FRAME_BYTES).unwrap_or(u32::MAX),
        max_log_chunk_bytes: u32::try_from(MAX_LOG_CHUNK_BYTES).unwrap_or(u32::MAX),
        max_unacked_events: MAX_UNACKED_EVENTS,
        max_messages_per_s: MESSAGES_PER_S,
    }
}

fn close(reason: CloseReason, message: impl Into<String>) -> Vec<Effect> {
    vec![Effect::Close { reason, message: message.into() }]
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

fn name_of(message: &ClientMessage) -> &'static str {
    match message {
        ClientMessage::Hello(_) => "hello",
        ClientMessage::ChallengeResponse(_) => "challenge_response",
        ClientMessage::JobRequest { .. } => "job_request",
        ClientMessage::JobAccepted(_) => "job_accepted",
        ClientMessage::JobRejected { .. } => "job_rejected",
        ClientMessage::JobEvent(_) => "job_event",
        ClientMessage::JobResponse(_) => "job_response",
        ClientMessage::Heartbeat(_) => "heartbeat",
        ClientMessage::Goodbye { .. } => "goodbye",
    }
}
