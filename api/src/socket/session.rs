//! One builder's session: what each message, answer and tick leads to. Pure: no I/O, no clock, no randomness.
//!
//! ```text
//! Hello ──key looked up──> Challenge ──signature good──> Opening ──session recorded──> Ready
//!   any refusal, silence or fault ──> Closed
//! ```

use super::{
    bucket::Bucket,
    effects::{Effect, Input, Opened, close, name_of},
    ready::{MAX_UNACKED_EVENTS, Ready},
};
use cratemill_protocol::{
    BuilderId,
    builder::{
        AUTH_NAMESPACE, Challenge, ClientMessage, CloseReason, ConnectionLimits, Hello, MAX_FRAME_BYTES,
        MAX_LOG_CHUNK_BYTES, MAX_SLOTS, MAX_TARGETS, Nonce, ServerMessage, Welcome,
    },
    sshsig,
};
use cratemill_store::builders::Login;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A busy builder with many slots stays far below; the burst covers a resend after a reconnect.
const MESSAGES_PER_S: u32 = 2_000;
const MESSAGES_BURST: u32 = 2 * MAX_UNACKED_EVENTS * 16;
/// No attempt has as many events; it leaves room to count on.
const MAX_SEQ: u64 = 1 << 40;
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

impl Config {
    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_secs(u64::from(self.heartbeat_s))
    }

    pub(super) fn lease(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_s))
    }
}

#[derive(Debug)]
enum State {
    Hello,
    FindingKey(Box<Hello>),
    Challenged(Box<Challenged>),
    Opening(Identity),
    Ready(Ready),
    Closed,
}

/// In a box: a session is in this state for milliseconds, and keeps room for it as long as it lives.
#[derive(Debug)]
struct Challenged {
    hello: Hello,
    login: Login,
    challenge: Challenge,
}

#[derive(Debug, Clone)]
struct Identity {
    builder: BuilderId,
    name: String,
}

#[derive(Debug)]
pub(super) struct Session {
    config: Arc<Config>,
    connection: String,
    nonce: Nonce,
    state: State,
    bucket: Bucket,
    heard: Instant,
    sent: Instant,
    opened: Instant,
}

impl Session {
    pub(super) fn new(config: Arc<Config>, connection: String, nonce: Nonce, now: Instant) -> Self {
        let bucket = Bucket::new(f64::from(MESSAGES_PER_S), MESSAGES_BURST, now);
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
                self.message(*message, now)
            }
            Input::KeepAlive if !self.bucket.take(now) => close(CloseReason::Flood, "too many frames"),
            Input::Malformed(why) => close(CloseReason::Protocol, why),
            Input::FrameTooLarge => {
                close(CloseReason::FrameTooLarge, format!("a frame may have {MAX_FRAME_BYTES} bytes"))
            }
            Input::Disabled => close(CloseReason::Disabled, "the builder is disabled"),
            Input::Superseded => close(CloseReason::Superseded, "the builder logged in again"),
            Input::Undrain => close(CloseReason::Draining, "the builder drains no longer, connect again"),
            Input::Shutdown => close(CloseReason::Draining, "this node goes away, connect again"),
            Input::Failed(why) => close(CloseReason::Internal, why),
            Input::PlaceWanted => close(
                CloseReason::LoginTimeout,
                "too many connections wait for a login, and this one longest",
            ),
            Input::TooManyLogins => close(CloseReason::Flood, "this builder logs in too often"),
            Input::Tick => self.tick(now),
            Input::Key(login) => self.key(login),
            Input::Opened(opened) => self.opened(*opened),
            other => match &mut self.state {
                State::Ready(ready) => ready.answer(other),
                _ => Vec::new(),
            },
        }
    }

    /// The builder is to take no more jobs, and knows it.
    pub(super) fn is_draining(&self) -> bool {
        matches!(&self.state, State::Ready(ready) if ready.is_draining())
    }

    fn message(&mut self, message: ClientMessage, now: Instant) -> Vec<Effect> {
        match (&mut self.state, message) {
            (State::Hello, ClientMessage::Hello(hello)) => self.hello(hello),
            (State::Challenged(_), ClientMessage::ChallengeResponse(response)) => {
                self.signature(&response.signature)
            }
            (State::Ready(ready), message) => ready.message(message, now),
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
            && hello.resume.iter().all(|resume| resume.next_seq <= MAX_SEQ)
            && (1..=MAX_SLOTS).contains(&hello.slots);
        if !sane {
            return close(CloseReason::Protocol, "hello is beyond the limits of the protocol");
        }
        let find = Effect::FindKey(hello.fingerprint.clone());
        self.state = State::FindingKey(Box::new(hello));
        vec![find]
    }

    fn key(&mut self, login: Option<Box<Login>>) -> Vec<Effect> {
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
        let (hello, login) = (*hello, *login);
        self.state = State::Challenged(Box::new(Challenged { hello, login, challenge: challenge.clone() }));
        vec![Effect::Send(ServerMessage::ChallengeRequest(challenge))]
    }

    fn signature(&mut self, signature: &str) -> Vec<Effect> {
        let State::Challenged(challenged) = std::mem::replace(&mut self.state, State::Closed) else {
            return Vec::new();
        };
        let Challenged { hello, login, challenge } = *challenged;
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
            resume: hello.resume,
        };
        let identity = Identity { builder: login.builder, name: login.name };
        self.state = State::Opening(identity);
        vec![open]
    }

    fn opened(&mut self, opened: Opened) -> Vec<Effect> {
        let Opened { resumed, drain, .. } = opened;
        let State::Opening(identity) = std::mem::replace(&mut self.state, State::Closed) else {
            return Vec::new();
        };
        let ready = Ready::new(&resumed, drain, &self.config);
        let mut effects = vec![Effect::Send(ServerMessage::Welcome(Welcome {
            builder: identity.builder,
            name: identity.name,
            heartbeat_s: self.config.heartbeat_s,
            lease_s: self.config.lease_s,
            limits: limits(),
            resumed: resumed.into_iter().map(|(answer, _)| answer).collect(),
        }))];
        if drain {
            effects.push(Effect::Send(ServerMessage::Drain));
        }
        self.state = State::Ready(ready);
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
        self.config.heartbeat()
    }
}

fn limits() -> ConnectionLimits {
    ConnectionLimits {
        max_frame_bytes: u32::try_from(MAX_FRAME_BYTES).unwrap_or(u32::MAX),
        max_log_chunk_bytes: u32::try_from(MAX_LOG_CHUNK_BYTES).unwrap_or(u32::MAX),
        max_unacked_events: MAX_UNACKED_EVENTS,
        max_messages_per_s: MESSAGES_PER_S,
    }
}
