//! The session's core, driven without a socket: every refusal, and the order and window of events.

use super::{
    effects::{Effect, Input, Opened, Renewed, Work},
    ready::MAX_UNACKED_EVENTS,
    session::{Config, Session},
};
use cratemill_protocol::{
    Attempt, BuilderId, CrateName, Features, JobId, Kind, Limits, Outcome, Sha256Hex, Stage, Target,
    builder::*, job::Timings, token::Token,
};
use cratemill_store::builders::Login;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, rand_core::OsRng};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const SERVER: &str = "https://build.example";

struct Fixture {
    session: Session,
    key: PrivateKey,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let now = Instant::now();
        let config = Config {
            server: SERVER.into(),
            heartbeat_s: 10,
            lease_s: 60,
            login_timeout: Duration::from_secs(10),
        };
        let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
        Self { session: Session::new(Arc::new(config), "connection-1".into(), Nonce([7; 32]), now), key, now }
    }

    fn say(&mut self, message: ClientMessage) -> Vec<Effect> {
        self.session.handle(Input::Message(Box::new(message)), self.now)
    }

    fn tell(&mut self, input: Input) -> Vec<Effect> {
        self.session.handle(input, self.now)
    }

    fn login(&self) -> Login {
        Login {
            builder: BuilderId(3),
            name: "one".into(),
            key_id: 1,
            public_key: self.key.public_key().to_openssh().unwrap(),
            enabled: true,
            drain: false,
            targets: vec!["x86_64-unknown-linux-gnu".into()],
        }
    }

    fn hello(&self) -> ClientMessage {
        ClientMessage::Hello(Hello {
            fingerprint: self.key.public_key().fingerprint(HashAlg::Sha256).to_string(),
            agent: "test".into(),
            targets: vec![target("x86_64-unknown-linux-gnu"), target("wasm32-wasip1")],
            slots: 2,
            resume: vec![],
        })
    }

    fn sign(&self, namespace: &str, bytes: &[u8]) -> ClientMessage {
        let signature = self.key.sign(namespace, HashAlg::Sha512, bytes).unwrap();
        let signature = signature.to_pem(LineEnding::LF).unwrap();
        ClientMessage::ChallengeResponse(ChallengeResponse { signature })
    }

    fn challenge(&mut self) -> Challenge {
        let login = self.login();
        let hello = self.hello();
        assert!(matches!(&self.say(hello)[..], [Effect::FindKey(_)]));
        match self.tell(Input::Key(Some(Box::new(login)))).remove(0) {
            Effect::Send(ServerMessage::ChallengeRequest(challenge)) => challenge,
            other => panic!("{other:?}"),
        }
    }

    fn fingerprint(&self) -> String {
        self.key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    fn ready() -> Self {
        Self::opened(vec![])
    }

    fn opened(resumed: Vec<(Resumed, u64)>) -> Self {
        let mut fixture = Self::new();
        let challenge = fixture.challenge();
        let response = fixture.sign(AUTH_NAMESPACE, &challenge.signed_bytes(&fixture.fingerprint()));
        let effects = fixture.say(response);
        assert!(
            matches!(&effects[..], [Effect::Open { targets, .. }] if targets == &[target("x86_64-unknown-linux-gnu")]),
            "only targets that the operator allows: {effects:?}"
        );
        let opened = Opened { resumed, drain: false, changes: 0 };
        let effects = fixture.tell(Input::Opened(Box::new(opened)));
        assert!(matches!(&effects[..], [Effect::Send(ServerMessage::Welcome(_))]));
        fixture
    }

    fn with_job() -> (Self, JobRef) {
        let mut fixture = Self::ready();
        let of = JobRef { job: JobId(5), attempt: Attempt(2) };
        let effects = fixture.tell(Input::Assigned(vec![job(of)]));
        assert!(matches!(&effects[..], [Effect::Send(ServerMessage::Jobs { .. })]));
        (fixture, of)
    }
}

fn renewed(held: Vec<(JobRef, Token)>, cancelled: Vec<JobRef>, lost: Vec<JobRef>) -> Input {
    Input::Renewed(Box::new(Renewed { held, cancelled, lost }))
}

fn target(name: &str) -> Target {
    Target::parse(name).unwrap()
}

fn job(of: JobRef) -> Job {
    Job {
        id: of.job,
        attempt: of.attempt,
        krate: CrateName::parse("hello").unwrap(),
        version: "1.0.0".into(),
        source: "https://registry.example/hello".into(),
        sha256: Sha256Hex::of(b""),
        index: None,
        kind: Kind::Tarball,
        target: target("x86_64-unknown-linux-gnu"),
        features: Features::default(),
        limits: Limits::default(),
        lease_s: 15,
        token: Token::new("t"),
        upload: SERVER.into(),
    }
}

/// All chunks are of one length.
fn log(of: JobRef, seq: u64, text: &str) -> ClientMessage {
    log_at(of, seq, (seq - 1) * text.len() as u64, text)
}

fn log_at(of: JobRef, seq: u64, offset: u64, text: &str) -> ClientMessage {
    let event = Event::Log { offset, text: text.into() };
    ClientMessage::JobEvent(JobEvent { job: of.job, attempt: of.attempt, seq, event })
}

fn response(of: JobRef, last_seq: u64) -> ClientMessage {
    ClientMessage::JobResponse(JobResponse {
        job: of.job,
        attempt: of.attempt,
        outcome: Outcome::Succeeded { timings: Timings::default() },
        last_seq,
        manifest: None,
        signature: None,
    })
}

#[track_caller]
fn assert_closed(effects: &[Effect], expected: CloseReason) {
    assert!(
        matches!(effects.last(), Some(Effect::Close { reason, .. }) if *reason == expected),
        "{effects:?}"
    );
}

#[test]
fn an_unknown_key_is_closed() {
    let mut fixture = Fixture::new();
    let hello = fixture.hello();
    fixture.say(hello);
    assert_closed(&fixture.tell(Input::Key(None)), CloseReason::UnknownKey);
    assert!(fixture.session.is_closed());
    let hello = fixture.hello();
    assert_eq!(fixture.say(hello), vec![], "a closed session does nothing more");
}

#[test]
fn a_disabled_builder_is_closed_at_login_and_later() {
    let mut fixture = Fixture::new();
    let hello = fixture.hello();
    fixture.say(hello);
    let login = Login { enabled: false, ..fixture.login() };
    assert_closed(&fixture.tell(Input::Key(Some(Box::new(login)))), CloseReason::Disabled);
    assert_closed(&Fixture::ready().tell(Input::Disabled), CloseReason::Disabled);
}

#[test]
fn signatures_for_anything_else_are_refused() {
    type Change = fn(&mut Challenge);
    let other_server: Change = |c| c.server = "https://evil.example".into();
    let other_connection: Change = |c| c.connection = "connection-2".into();
    let replayed: Change = |c| c.nonce = Nonce([8; 32]);
    for change in [other_server, other_connection, replayed] {
        let mut fixture = Fixture::new();
        let mut challenge = fixture.challenge();
        change(&mut challenge);
        let response = fixture.sign(AUTH_NAMESPACE, &challenge.signed_bytes(&fixture.fingerprint()));
        assert_closed(&fixture.say(response), CloseReason::BadSignature);
    }
    let mut fixture = Fixture::new();
    let challenge = fixture.challenge();
    let other_namespace = fixture.sign("file", &challenge.signed_bytes(&fixture.fingerprint()));
    assert_closed(&fixture.say(other_namespace), CloseReason::BadSignature);

    let mut fixture = Fixture::new();
    let challenge = fixture.challenge();
    let other_key = Fixture::new().sign(AUTH_NAMESPACE, &challenge.signed_bytes(&fixture.fingerprint()));
    assert_closed(&fixture.say(other_key), CloseReason::BadSignature);

    let mut fixture = Fixture::new();
    fixture.challenge();
    let garbage = ClientMessage::ChallengeResponse(ChallengeResponse { signature: "x".repeat(100_000) });
    assert_closed(&fixture.say(garbage), CloseReason::BadSignature);
}

#[test]
fn messages_out_of_their_turn_are_a_protocol_error() {
    let of = JobRef { job: JobId(1), attempt: Attempt(1) };
    assert_closed(&Fixture::new().say(log(of, 1, "x")), CloseReason::Protocol);
    assert_closed(&Fixture::new().say(ClientMessage::JobRequest { slots: 1 }), CloseReason::Protocol);
    let mut fixture = Fixture::ready();
    let hello = fixture.hello();
    assert_closed(&fixture.say(hello), CloseReason::Protocol);
    let mut fixture = Fixture::new();
    let ClientMessage::Hello(hello) = fixture.hello() else { unreachable!() };
    let hello = Hello { targets: vec![target("a"); MAX_TARGETS + 1], ..hello };
    assert_closed(&fixture.say(ClientMessage::Hello(hello)), CloseReason::Protocol);
    assert_closed(&Fixture::ready().tell(Input::Malformed("x".into())), CloseReason::Protocol);
    assert_closed(&Fixture::ready().tell(Input::FrameTooLarge), CloseReason::FrameTooLarge);
}

#[test]
fn silence_ends_a_login_and_a_session() {
    let mut fixture = Fixture::new();
    fixture.now += Duration::from_secs(9);
    assert_eq!(fixture.tell(Input::Tick), vec![]);
    fixture.now += Duration::from_secs(1);
    assert_closed(&fixture.tell(Input::Tick), CloseReason::LoginTimeout);

    let mut fixture = Fixture::ready();
    fixture.now += Duration::from_secs(10);
    assert_eq!(fixture.tell(Input::Tick), vec![Effect::Send(ServerMessage::Ping)]);
    assert_eq!(fixture.tell(Input::Tick), vec![], "one ping a heartbeat");
    fixture.now += Duration::from_secs(20);
    assert_closed(&fixture.tell(Input::Tick), CloseReason::Silent);
}

#[test]
fn a_flood_is_closed() {
    let mut fixture = Fixture::ready();
    let heartbeat = || ClientMessage::Heartbeat(Heartbeat { load: Load::default(), running: vec![] });
    let closed =
        (0..100_000).find(|_| fixture.say(heartbeat()).iter().any(|e| matches!(e, Effect::Close { .. })));
    assert!(closed.is_some_and(|count| count < 10_000), "{closed:?}");
}

#[test]
fn events_are_taken_once_and_in_order() {
    let (mut fixture, of) = Fixture::with_job();
    assert!(matches!(&fixture.say(ClientMessage::JobAccepted(of))[..], [Effect::Work(_, Work::Accept)]));
    assert!(matches!(&fixture.say(log(of, 1, "a"))[..], [Effect::Work(_, Work::Event(..))]));
    let ack = |seq| Effect::Send(ServerMessage::EventAck { job: of.job, attempt: of.attempt, seq });
    assert_eq!(fixture.tell(Input::Stored { job: of, seq: 1 }), vec![ack(1)]);
    assert_eq!(fixture.say(log(of, 1, "a")), vec![ack(1)], "a repeat is acknowledged and not stored again");
    assert_closed(&fixture.say(log(of, 3, "c")), CloseReason::Protocol);
}

#[test]
fn the_window_bounds_what_is_under_way() {
    let (mut fixture, of) = Fixture::with_job();
    fixture.say(ClientMessage::JobAccepted(of));
    for seq in 1..=u64::from(MAX_UNACKED_EVENTS) {
        assert!(matches!(&fixture.say(log(of, seq, "x"))[..], [Effect::Work(..)]));
    }
    assert_closed(&fixture.say(log(of, u64::from(MAX_UNACKED_EVENTS) + 1, "x")), CloseReason::Flood);
    let (mut fixture, of) = Fixture::with_job();
    assert_closed(&fixture.say(log(of, 1, "nobody accepted it")), CloseReason::Protocol);
    let (mut fixture, of) = Fixture::with_job();
    fixture.say(ClientMessage::JobAccepted(of));
    let long = "x".repeat(MAX_LOG_CHUNK_BYTES + 1);
    assert_closed(&fixture.say(log(of, 1, &long)), CloseReason::Protocol);
}

#[test]
fn a_place_that_others_want_is_given_up_with_a_reason() {
    assert_closed(&Fixture::new().tell(Input::PlaceWanted), CloseReason::LoginTimeout);
    let mut fixture = Fixture::new();
    fixture.challenge();
    assert_closed(&fixture.tell(Input::PlaceWanted), CloseReason::LoginTimeout);
    assert_closed(&Fixture::new().tell(Input::TooManyLogins), CloseReason::Flood);
}

#[test]
fn a_response_comes_last_and_counts_once() {
    let (mut fixture, of) = Fixture::with_job();
    assert_closed(&fixture.say(response(of, 1)), CloseReason::Protocol);

    let (mut fixture, of) = Fixture::with_job();
    fixture.say(ClientMessage::JobAccepted(of));
    fixture.say(log(of, 1, "x"));
    assert!(matches!(&fixture.say(response(of, 1))[..], [Effect::Work(_, Work::Outcome(_))]));
    assert_eq!(fixture.say(response(of, 1)), vec![], "under way already");
    assert_eq!(fixture.tell(Input::OutcomeStored(of)), vec![Effect::Send(ServerMessage::JobDone(of))]);
    assert!(
        matches!(
            &fixture.say(response(of, 1))[..],
            [Effect::Send(ServerMessage::Cancel { why: CancelReason::LeaseLost, .. })]
        ),
        "an attempt that is over is nobody's"
    );
}

#[test]
fn a_lost_lease_stops_the_attempt() {
    let (mut fixture, of) = Fixture::with_job();
    let effects = fixture.tell(renewed(vec![], vec![], vec![of]));
    assert!(matches!(
        &effects[..],
        [Effect::Send(ServerMessage::Cancel { why: CancelReason::LeaseLost, grace_s: 0, .. })]
    ));
    let stage = Event::Stage { stage: Stage::Build };
    let event = JobEvent { job: of.job, attempt: of.attempt, seq: 1, event: stage };
    let effects = fixture.say(ClientMessage::JobEvent(event));
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Work(..))),
        "nothing more is stored: {effects:?}"
    );
}

#[test]
fn others_jobs_cannot_be_touched() {
    let mut fixture = Fixture::ready();
    let foreign = JobRef { job: JobId(99), attempt: Attempt(1) };
    for message in [log(foreign, 1, "x"), response(foreign, 0), ClientMessage::JobAccepted(foreign)] {
        let effects = fixture.say(message);
        assert!(matches!(&effects[..], [Effect::Send(ServerMessage::Cancel { .. })]), "{effects:?}");
    }
}

#[test]
fn a_builder_that_leaves_hands_its_jobs_back() {
    let (mut fixture, of) = Fixture::with_job();
    let effects = fixture.say(ClientMessage::Goodbye { why: "reboot".into() });
    assert!(matches!(&effects[0], Effect::Work(job, Work::Outcome(_)) if *job == of));
    assert_closed(&effects, CloseReason::Draining);
}

#[test]
fn a_draining_builder_asks_for_nothing() {
    let mut fixture = Fixture::ready();
    let ask = |slots| Effect::Ask { slots, answered: Vec::new() };
    assert_eq!(fixture.say(ClientMessage::JobRequest { slots: 2 }), vec![ask(2)]);
    assert!(!fixture.session.is_draining());
    assert_eq!(fixture.tell(Input::Drain), vec![ask(0), Effect::Send(ServerMessage::Drain)]);
    assert!(fixture.session.is_draining());
    assert_eq!(fixture.tell(Input::Drain), vec![], "it is told once");
    assert_eq!(fixture.say(ClientMessage::JobRequest { slots: 2 }), vec![ask(0)]);
}

#[test]
fn a_request_says_which_jobs_it_knows_of() {
    let (mut fixture, of) = Fixture::with_job();
    let answered = |fixture: &mut Fixture| match &fixture.say(ClientMessage::JobRequest { slots: 1 })[..] {
        [Effect::Ask { slots: 1, answered }] => answered.clone(),
        effects => panic!("{effects:?}"),
    };
    assert_eq!(answered(&mut fixture), [], "the builder may not have seen it");
    fixture.say(ClientMessage::JobAccepted(of));
    assert_eq!(answered(&mut fixture), [of]);
    let second = JobRef { job: JobId(6), attempt: Attempt(1) };
    fixture.tell(Input::Assigned(vec![job(second)]));
    assert_eq!(answered(&mut fixture), [of]);
    fixture.say(ClientMessage::JobRejected { job: second.job, attempt: second.attempt, why: "full".into() });
    assert_eq!(answered(&mut fixture), [of, second]);
    fixture.tell(Input::OutcomeStored(of));
    fixture.tell(Input::LeaseLost(second));
    assert_eq!(answered(&mut fixture), [of, second], "its end may overtake the request");
    for number in 0..80 {
        let many = JobRef { job: JobId(100 + number), attempt: Attempt(1) };
        fixture.tell(Input::Assigned(vec![job(many)]));
        fixture.say(ClientMessage::JobAccepted(many));
        fixture.tell(Input::OutcomeStored(many));
    }
    let last = answered(&mut fixture);
    assert_eq!((last.len(), last[0].job, last[63].job), (64, JobId(116), JobId(179)));
}

#[test]
fn offsets_are_not_believed() {
    let (mut fixture, of) = Fixture::with_job();
    fixture.say(ClientMessage::JobAccepted(of));
    assert!(matches!(&fixture.say(log_at(of, 1, 0, "x"))[..], [Effect::Work(_, Work::Event(_, 1))]));
    assert_closed(&fixture.say(log_at(of, 2, 0, "x")), CloseReason::Protocol);

    let (mut fixture, of) = Fixture::with_job();
    fixture.say(ClientMessage::JobAccepted(of));
    let chunk = "x".repeat(MAX_LOG_CHUNK_BYTES);
    let taken = (1..=10_000).take_while(|seq| {
        fixture.now += Duration::from_millis(10);
        fixture.tell(Input::Stored { job: of, seq: seq - 1 });
        matches!(&fixture.say(log(of, *seq, &chunk))[..], [Effect::Work(..)])
    });
    assert_eq!(taken.count(), (3 * 16 + 1) * 32, "a log without an end fills the bus for everybody");
}

#[test]
fn a_resumed_log_goes_on_from_what_is_stored() {
    let of = JobRef { job: JobId(5), attempt: Attempt(2) };
    let answer = Resumed::Continue {
        job: of.job,
        attempt: of.attempt,
        next_seq: 8,
        lease_s: 60,
        token: Token::new("t"),
    };
    let mut fixture = Fixture::opened(vec![(answer, 700)]);
    let stage = Event::Stage { stage: Stage::Build };
    let event = ClientMessage::JobEvent(JobEvent { job: of.job, attempt: of.attempt, seq: 8, event: stage });
    assert!(matches!(&fixture.say(event)[..], [Effect::Work(_, Work::Event(_, 700))]));
    assert_closed(&fixture.say(log_at(of, 9, 0, "again")), CloseReason::Protocol);
}

#[test]
fn heartbeats_are_answered_one_at_a_time() {
    let (mut fixture, of) = Fixture::with_job();
    let heartbeat = || ClientMessage::Heartbeat(Heartbeat { load: Load::default(), running: vec![of, of] });
    assert_eq!(fixture.say(heartbeat()), vec![Effect::Renew(vec![of])]);
    assert_eq!(fixture.say(heartbeat()), vec![], "the first is still being answered");
    let answer = renewed(vec![(of, Token::new("t2"))], vec![of], vec![]);
    let effects = fixture.tell(answer);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(ServerMessage::LeaseRenewed { lease_s: 60, .. }),
                Effect::Send(ServerMessage::Cancel { why: CancelReason::Cancelled, .. })
            ]
        ),
        "a cancel that was lost is said again: {effects:?}"
    );
    fixture.now += Duration::from_millis(4_999);
    assert_eq!(fixture.say(heartbeat()), vec![], "half a heartbeat has not passed: it is only heard");
    fixture.now += Duration::from_millis(1);
    assert_eq!(fixture.say(heartbeat()), vec![Effect::Renew(vec![of])]);
}

#[test]
fn keep_alives_are_counted() {
    let mut fixture = Fixture::ready();
    let closed = (0..100_000).any(|_| !fixture.tell(Input::KeepAlive).is_empty());
    assert!(closed && fixture.session.is_closed());
}

#[test]
fn a_builder_that_drains_no_longer_comes_back() {
    let mut fixture = Fixture::ready();
    fixture.tell(Input::Drain);
    assert_closed(&fixture.tell(Input::Undrain), CloseReason::Draining);
}
