//! What a session hears and what it leads to.

use cratemill_protocol::{
    BuilderId, Target,
    builder::{
        ClientMessage, CloseReason, Job, JobEvent, JobRef, JobResponse, Resume, Resumed, ServerMessage,
    },
    token::Token,
};
use cratemill_store::builders::Login;

#[derive(Debug)]
pub(super) enum Input {
    Message(Box<ClientMessage>),
    /// The frame could not be read as a message.
    Malformed(String),
    FrameTooLarge,
    Key(Option<Box<Login>>),
    /// It is not logged in, and others who come want its place.
    PlaceWanted,
    /// The signature is good, but there were many before.
    TooManyLogins,
    /// The session is recorded.
    Opened(Box<Opened>),
    Assigned(Vec<Job>),
    /// Everything up to `seq` of the attempt is on the bus.
    Stored {
        job: JobRef,
        seq: u64,
    },
    OutcomeStored(JobRef),
    /// What became of the attempts of a heartbeat.
    Renewed(Box<Renewed>),
    LeaseLost(JobRef),
    Cancel {
        job: JobRef,
        grace_s: u32,
    },
    Disabled,
    Superseded,
    Drain,
    /// A WebSocket's own ping or pong.
    KeepAlive,
    Undrain,
    /// This node goes away.
    Shutdown,
    /// Something of ours failed: the builder is to come back.
    Failed(String),
    Tick,
}

/// A connection's queue keeps room for 32 of them from its first moment, and most connections are idle: what is larger
/// than a few words goes into a box.
const _: () = assert!(size_of::<Input>() <= 40);

#[derive(Debug)]
pub(super) struct Renewed {
    /// Those that are still the builder's, each with a fresh token.
    pub held: Vec<(JobRef, Token)>,
    /// Of those, the ones that somebody wants cancelled.
    pub cancelled: Vec<JobRef>,
    pub lost: Vec<JobRef>,
}

#[derive(Debug)]
pub(super) struct Opened {
    /// The answers to the builder's resumes, and how much text of each is stored.
    pub resumed: Vec<(Resumed, u64)>,
    pub drain: bool,
    /// How often others had changed sessions of this node when this one began.
    pub changes: i64,
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
    /// Tell the dispatchers how many jobs the builder waits for, and which of those that it was given it knows of.
    Ask {
        slots: u16,
        answered: Vec<JobRef>,
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
    /// And how much text of the attempt there is with it.
    Event(JobEvent, u64),
    Outcome(Box<JobResponse>),
}

pub(super) fn close(reason: CloseReason, message: impl Into<String>) -> Vec<Effect> {
    vec![Effect::Close { reason, message: message.into() }]
}

/// A message's name on the wire.
pub(super) fn name_of(message: &ClientMessage) -> &'static str {
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
