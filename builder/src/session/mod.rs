//! The builder's side of the protocol as a pure state machine: `(state, input, now) -> effects`.
//!
//! ```text
//!             Connected            ChallengeRequest          Welcome
//! Offline ----------------> Hello ----------------> Signed ---------> Ready
//!    ^  \____________________ Disconnected, Close, silence ____________/
//!
//! an attempt:  Running --(its task ended)--> Ended --(all events acked: JobResponse, again until)--> JobDone: forgotten
//!                 \--------- Cancel, lost lease: its task is stopped; a lost one is forgotten at once
//! ```
//!
//! It survives reconnects: attempts and their unacknowledged events stay, are offered with `resume`, and sent again.
//! It reads no clock and does no I/O; [`crate::agent`] does both.

mod attempt;
mod incoming;
mod rate;
mod window;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use window::{NeverMade, Window};

use attempt::{Attempt, Key};
use cratemill_protocol::{
    Target,
    builder::{
        Challenge, ChallengeResponse, ClientMessage, CloseReason, Event, Hello, Job, JobRef, ServerMessage,
        Welcome,
    },
    token::Token,
};
use rate::Rate;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

pub use attempt::Finished;

/// Longer than a server waits for a login, so that it is the server that says why.
const LOGIN_WAIT: Duration = Duration::from_secs(20);
/// A server that was silent through this many heartbeats, which all ask for a sign of life, is gone.
const SILENT_HEARTBEATS: u32 = 3;
/// An outcome is stored in well under a second; one that is not acknowledged by then is sent again.
const OUTCOME_RESEND: Duration = Duration::from_secs(15);
/// Another process logs in with the same key: taking turns every second would help neither.
const SUPERSEDED_WAIT: Duration = Duration::from_mins(1);
/// A lease of less, or heartbeats more often, is a misconfigured server that would keep us busy with nothing else.
const MIN_HEARTBEAT: Duration = Duration::from_secs(1);

/// What the session needs to know about its builder.
#[derive(Debug, Clone)]
pub struct Settings {
    pub fingerprint: String,
    pub agent: String,
    pub targets: Vec<Target>,
    pub slots: u16,
}

#[derive(Debug)]
pub enum Input {
    Connected,
    Received(ServerMessage),
    /// Any sign of life of the server that is not a message.
    Alive,
    Disconnected,
    /// The answer to [`Effect::Sign`].
    Signed(String),
    /// A running attempt says something.
    Event(JobRef, Event),
    /// A running attempt's task ended.
    Finished(JobRef, Box<Finished>),
    /// Whether the disk has room for one more job.
    Room(bool),
    /// The owner wants the program to end when the running attempts have.
    Drain,
    /// [`Session::deadline`] has come.
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Send(ClientMessage),
    /// Check that the challenge is from the server we dialled, sign it, and give back [`Input::Signed`].
    Sign(Challenge),
    /// Measure the load and send a heartbeat with these attempts; ask the transport for a sign of life too.
    Heartbeat(Vec<JobRef>),
    Start(Box<Job>, JobLimits),
    /// Ask what runs for this attempt to end, and kill it after so long.
    Stop(JobRef, Duration),
    /// A fresh token for this attempt's uploads.
    Renew(JobRef, Token),
    /// So many events are durable: the attempt may make as many more.
    Credit(JobRef, usize),
    /// The login is through.
    Ready(Welcome),
    /// Close the connection and dial again, after the usual backoff or at least this long.
    Reconnect {
        why: String,
        at_least: Duration,
    },
    Exit(Exit),
}

/// What the connection allows a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLimits {
    pub max_log_chunk_bytes: usize,
}

/// Why the program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    Drained,
    Refused { reason: CloseReason, message: String },
}

#[derive(Debug)]
enum Phase {
    Offline,
    Login { deadline: Instant },
    Ready(Ready),
}

#[derive(Debug)]
struct Ready {
    heartbeat: Duration,
    next_heartbeat: Instant,
    heard: Instant,
    max_in_flight: usize,
    limits: JobLimits,
    rate: Rate,
    /// Events wait only for `rate`.
    throttled: bool,
    /// What we asked for last.
    slots: Option<u16>,
    /// The operator wants us to take nothing more and to end when we have nothing left. A server that changes its mind
    /// greets us anew.
    drained_by_server: bool,
}

#[derive(Debug)]
pub struct Session {
    settings: Settings,
    phase: Phase,
    attempts: BTreeMap<Key, Attempt>,
    /// Whose event went out last: the next one is its neighbour's.
    turn: Option<Key>,
    draining: bool,
    has_room: bool,
}

impl Session {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Offline,
            attempts: BTreeMap::new(),
            turn: None,
            draining: false,
            has_room: true,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready(_))
    }

    /// Attempts that run or whose outcome is not acknowledged.
    pub fn attempts(&self) -> impl Iterator<Item = JobRef> + '_ {
        self.attempts.keys().map(Key::job_ref)
    }

    /// When [`Input::Tick`] is due, if anything is.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Offline => None,
            Phase::Login { deadline } => Some(*deadline),
            Phase::Ready(ready) => {
                let resend = self.attempts.values().filter_map(Attempt::resend_at);
                let rate = ready.throttled.then(|| ready.rate.next_at());
                resend.chain(rate).chain([ready.next_heartbeat, ready.silent_at()]).min()
            }
        }
    }

    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Connected => self.say_hello(now, &mut effects),
            Input::Received(message) => self.receive(message, now, &mut effects),
            Input::Alive => self.hear(now),
            Input::Disconnected => self.go_offline(),
            Input::Signed(signature) => {
                if matches!(self.phase, Phase::Login { .. }) {
                    let response = ChallengeResponse { signature };
                    effects.push(Effect::Send(ClientMessage::ChallengeResponse(response)));
                }
            }
            Input::Event(job, event) => {
                if let Some(attempt) =
                    self.attempts.get_mut(&Key::of(job)).filter(|attempt| attempt.is_running())
                {
                    attempt.window.push(event);
                }
            }
            Input::Finished(job, finished) => self.finish(job, *finished),
            Input::Room(has_room) => self.has_room = has_room,
            Input::Drain => self.draining = true,
            Input::Tick => self.tick(now, &mut effects),
        }
        self.flush(now, &mut effects);
        effects
    }

    fn say_hello(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.phase = Phase::Login { deadline: now + LOGIN_WAIT };
        let resume = self.attempts.iter().map(|(key, attempt)| attempt.resume(*key)).collect();
        let Settings { fingerprint, agent, targets, slots } = self.settings.clone();
        effects.push(Effect::Send(ClientMessage::Hello(Hello {
            fingerprint,
            agent,
            targets,
            slots,
            resume,
        })));
    }

    fn go_offline(&mut self) {
        self.phase = Phase::Offline;
        for attempt in self.attempts.values_mut() {
            attempt.rewind();
        }
    }

    fn reconnect(&mut self, why: impl Into<String>, at_least: Duration, effects: &mut Vec<Effect>) {
        self.go_offline();
        effects.push(Effect::Reconnect { why: why.into(), at_least });
    }

    fn hear(&mut self, now: Instant) {
        if let Phase::Ready(ready) = &mut self.phase {
            ready.heard = now;
        }
    }

    fn finish(&mut self, job: JobRef, finished: Finished) {
        let key = Key::of(job);
        if let Some(attempt) = self.attempts.get_mut(&key) {
            attempt.end(key, finished);
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let why = match &self.phase {
            Phase::Login { deadline } if now >= *deadline => "the server did not finish the login",
            Phase::Ready(ready) if now >= ready.silent_at() => "the server is silent",
            _ => return,
        };
        self.reconnect(why, Duration::ZERO, effects);
    }

    /// Sends all that may go now.
    fn flush(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if !self.is_ready() {
            if self.draining && self.attempts.is_empty() {
                effects.push(Effect::Exit(Exit::Drained));
            }
            return;
        }
        self.send_events(now, effects);
        self.send_outcomes(now, effects);
        self.send_heartbeat(now, effects);
        if self.is_draining() && self.attempts.is_empty() {
            effects.push(Effect::Send(ClientMessage::Goodbye { why: "the builder stops".into() }));
            effects.push(Effect::Exit(Exit::Drained));
            return;
        }
        self.ask_for_jobs(effects);
    }

    /// One event per attempt in turn, so that a chatty build does not hold up its neighbour.
    fn send_events(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Phase::Ready(ready) = &mut self.phase else { return };
        ready.throttled = false;
        loop {
            let can = |(key, attempt): (&Key, &Attempt)| {
                attempt.window.can_send(ready.max_in_flight).then_some(*key)
            };
            let after = self.turn.and_then(|turn| self.attempts.range(turn.after()..).find_map(can));
            let Some(key) = after.or_else(|| self.attempts.iter().find_map(can)) else { return };
            if !ready.rate.take(now) {
                ready.throttled = true;
                return;
            }
            self.turn = Some(key);
            let Some(attempt) = self.attempts.get_mut(&key) else { return };
            let Some(event) = attempt.next_event(key, ready.max_in_flight) else { return };
            effects.push(Effect::Send(ClientMessage::JobEvent(event)));
        }
    }

    fn send_outcomes(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for (key, attempt) in &mut self.attempts {
            if let Some(response) = attempt.due_response(*key, now, OUTCOME_RESEND) {
                effects.push(Effect::Send(ClientMessage::JobResponse(response)));
            }
        }
    }

    fn send_heartbeat(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Phase::Ready(ready) = &mut self.phase else { return };
        if now >= ready.next_heartbeat {
            ready.next_heartbeat = now + ready.heartbeat;
            effects.push(Effect::Heartbeat(self.attempts.keys().map(Key::job_ref).collect()));
        }
    }

    fn ask_for_jobs(&mut self, effects: &mut Vec<Effect>) {
        let slots = if self.is_draining() || !self.has_room { 0 } else { self.free_slots() };
        let Phase::Ready(ready) = &mut self.phase else { return };
        if ready.slots != Some(slots) {
            ready.slots = Some(slots);
            effects.push(Effect::Send(ClientMessage::JobRequest { slots }));
        }
    }

    /// Somebody wants the program to end when the running attempts have: its owner, or the service's operator.
    fn is_draining(&self) -> bool {
        self.draining || matches!(&self.phase, Phase::Ready(ready) if ready.drained_by_server)
    }

    /// An attempt keeps its slot until its outcome is durable: that bounds what waits here for a server that is away.
    fn free_slots(&self) -> u16 {
        let taken = u16::try_from(self.attempts.len()).unwrap_or(u16::MAX);
        self.settings.slots.saturating_sub(taken)
    }
}

impl Ready {
    fn silent_at(&self) -> Instant {
        self.heard + self.heartbeat * SILENT_HEARTBEATS
    }
}
