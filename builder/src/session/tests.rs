//! The session step by step: who may say what when, and what follows.

use super::{Effect, Exit, Finished, Input, JobLimits, Session, Settings};
use cratemill_protocol::{
    Attempt, BuilderId, CrateName, FailureClass, Features, JobId, Kind, Limits, Sha256Hex, Target,
    builder::{
        CancelReason, Challenge, ClientMessage, CloseReason, ConnectionLimits, Event, Job, JobRef, Nonce,
        Resume, Resumed, ServerMessage, Welcome,
    },
    token::Token,
};
use std::time::{Duration, Instant};

pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";

pub(super) fn session(slots: u16) -> Session {
    Session::new(Settings {
        fingerprint: "SHA256:x".into(),
        agent: "test".into(),
        targets: vec![TARGET.parse().unwrap()],
        slots,
    })
}

pub(super) fn job(id: i64, attempt: i32) -> Job {
    Job {
        id: JobId(id),
        attempt: Attempt(attempt),
        krate: CrateName::parse("demo").unwrap(),
        version: "1.0.0".into(),
        source: "http://x/demo".into(),
        sha256: Sha256Hex::of(b""),
        index: None,
        kind: Kind::Tarball,
        target: Target::parse(TARGET).unwrap(),
        features: Features::default(),
        limits: Limits::default(),
        lease_s: 60,
        token: Token::new("one"),
        upload: "http://x/up".into(),
    }
}

pub(super) fn job_ref(id: i64, attempt: i32) -> JobRef {
    JobRef { job: JobId(id), attempt: Attempt(attempt) }
}

pub(super) fn welcome(max_unacked_events: u32, resumed: Vec<Resumed>) -> ServerMessage {
    ServerMessage::Welcome(Welcome {
        builder: BuilderId(1),
        name: "tester".into(),
        heartbeat_s: 10,
        lease_s: 60,
        limits: ConnectionLimits {
            max_frame_bytes: 262_144,
            max_log_chunk_bytes: 32_768,
            max_unacked_events,
            max_messages_per_s: 1_000_000,
        },
        resumed,
    })
}

pub(super) fn log(text: &str) -> Event {
    Event::Log { offset: 0, text: text.into() }
}

pub(super) fn failed() -> Finished {
    Finished::failed(FailureClass::Build, "no")
}

pub(super) fn sent(effects: Vec<Effect>) -> Vec<ClientMessage> {
    effects
        .into_iter()
        .filter_map(|effect| if let Effect::Send(message) = effect { Some(message) } else { None })
        .collect()
}

pub(super) fn receive(session: &mut Session, message: ServerMessage, now: Instant) -> Vec<Effect> {
    session.handle(Input::Received(message), now)
}

/// Logged in.
fn ready(slots: u16) -> (Session, Instant) {
    let now = Instant::now();
    let mut session = session(slots);
    session.handle(Input::Connected, now);
    let effects = receive(&mut session, welcome(100, vec![]), now);
    assert!(sent(effects).contains(&ClientMessage::JobRequest { slots }));
    (session, now)
}

/// Logged in, with a job running.
fn running() -> (Session, Instant) {
    let (mut session, now) = ready(2);
    let effects = receive(&mut session, ServerMessage::Jobs { jobs: vec![job(7, 1)] }, now);
    assert!(effects.contains(&Effect::Send(ClientMessage::JobAccepted(job_ref(7, 1)))));
    let limits = JobLimits { max_log_chunk_bytes: 32_768 };
    assert!(effects.contains(&Effect::Start(Box::new(job(7, 1)), limits)));
    (session, now)
}

fn reconnects(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Reconnect { .. }))
}

#[test]
fn a_login_takes_its_steps() {
    let now = Instant::now();
    let mut session = session(1);
    let hello = sent(session.handle(Input::Connected, now));
    assert!(matches!(&hello[..], [ClientMessage::Hello(hello)] if hello.resume.is_empty()));
    let challenge = Challenge { server: "http://x".into(), connection: "c".into(), nonce: Nonce([1; 32]) };
    let effects = receive(&mut session, ServerMessage::ChallengeRequest(challenge.clone()), now);
    assert_eq!(effects, [Effect::Sign(challenge)]);
    let answer = sent(session.handle(Input::Signed("sig".into()), now));
    assert!(matches!(&answer[..], [ClientMessage::ChallengeResponse(_)]));
    let late = session.deadline().unwrap();
    assert!(reconnects(&session.handle(Input::Tick, late)), "a login is bounded");
}

#[test]
fn what_is_not_for_the_moment_ends_the_connection() {
    let messages = || {
        [
            ServerMessage::Jobs { jobs: vec![job(1, 1)] },
            ServerMessage::Drain,
            ServerMessage::JobDone(job_ref(1, 1)),
            ServerMessage::EventAck { job: JobId(1), attempt: Attempt(1), seq: 1 },
        ]
    };
    for message in messages() {
        let now = Instant::now();
        let mut session = session(1);
        session.handle(Input::Connected, now);
        assert!(reconnects(&receive(&mut session, message, now)));
    }
    let (mut session, now) = ready(1);
    assert!(reconnects(&receive(&mut session, welcome(1, vec![]), now)));
    for message in messages() {
        assert!(receive(&mut super::tests::session(1), message, now).is_empty(), "offline, nothing happens");
    }
}

#[test]
fn close_reasons_end_the_program_or_only_the_connection() {
    for reason in [
        CloseReason::UnknownKey,
        CloseReason::Disabled,
        CloseReason::BadSignature,
        CloseReason::UnsupportedVersion,
    ] {
        let (mut session, now) = ready(1);
        let effects = receive(&mut session, ServerMessage::Close { reason, message: "no".into() }, now);
        assert!(effects.contains(&Effect::Exit(Exit::Refused { reason, message: "no".into() })));
    }
    for reason in [CloseReason::Draining, CloseReason::Internal, CloseReason::Silent, CloseReason::Flood] {
        let (mut session, now) = ready(1);
        let effects = receive(&mut session, ServerMessage::Close { reason, message: "no".into() }, now);
        assert!(matches!(&effects[..], [Effect::Reconnect { at_least: Duration::ZERO, .. }]), "{effects:?}");
    }
    let (mut session, now) = ready(1);
    let reason = CloseReason::Superseded;
    let effects = receive(&mut session, ServerMessage::Close { reason, message: "no".into() }, now);
    assert!(
        matches!(&effects[..], [Effect::Reconnect { at_least, .. }] if *at_least > Duration::from_secs(30))
    );
}

#[test]
fn jobs_that_it_cannot_take_are_rejected_and_known_ones_accepted_once_more() {
    let (mut session, now) = running();
    let again = receive(&mut session, ServerMessage::Jobs { jobs: vec![job(7, 1)] }, now);
    assert_eq!(again, [Effect::Send(ClientMessage::JobAccepted(job_ref(7, 1)))], "not started twice");
    let other_target = Job { target: "aarch64-unknown-linux-gnu".parse().unwrap(), ..job(8, 1) };
    let other_kind = Job { kind: Kind::Debian, ..job(9, 1) };
    let jobs = vec![other_target, other_kind, job(10, 1), job(11, 1)];
    let answers = sent(receive(&mut session, ServerMessage::Jobs { jobs }, now));
    let rejected: Vec<_> = answers
        .iter()
        .filter_map(|message| match message {
            ClientMessage::JobRejected { job, why, .. } => Some((job.0, why.as_str())),
            _ => None,
        })
        .collect();
    let expected = [
        (8, "this builder does not build for aarch64-unknown-linux-gnu"),
        (9, "this builder cannot make debian"),
        (11, "no free slot"),
    ];
    assert_eq!(rejected, expected);
}

#[test]
fn the_outcome_waits_for_the_events_and_is_sent_until_it_is_done() {
    let (mut session, now) = running();
    session.handle(Input::Event(job_ref(7, 1), log("a")), now);
    assert_eq!(sent(session.handle(Input::Finished(job_ref(7, 1), Box::new(failed())), now)), []);
    let ack = ServerMessage::EventAck { job: JobId(7), attempt: Attempt(1), seq: 1 };
    let effects = receive(&mut session, ack, now);
    assert!(effects.contains(&Effect::Credit(job_ref(7, 1), 1)));
    let [ClientMessage::JobResponse(response)] = &sent(effects)[..] else { panic!("the outcome") };
    assert_eq!(response.last_seq, 1);
    let resend = session.deadline().unwrap().max(now + Duration::from_secs(15));
    let again = sent(session.handle(Input::Tick, resend));
    assert!(again.contains(&ClientMessage::JobResponse(response.clone())));
    receive(&mut session, ServerMessage::JobDone(job_ref(7, 1)), resend);
    assert_eq!(session.attempts().count(), 0);
}

#[test]
fn a_reconnect_offers_what_is_open_and_gives_up_what_is_lost() {
    let (mut session, now) = running();
    receive(&mut session, ServerMessage::Jobs { jobs: vec![job(8, 1)] }, now);
    for text in ["a", "b", "c"] {
        session.handle(Input::Event(job_ref(7, 1), log(text)), now);
    }
    receive(&mut session, ServerMessage::EventAck { job: JobId(7), attempt: Attempt(1), seq: 1 }, now);
    session.handle(Input::Disconnected, now);
    let [ClientMessage::Hello(hello)] = &sent(session.handle(Input::Connected, now))[..] else { panic!() };
    let resume = |id, next_seq| Resume { job: JobId(id), attempt: Attempt(1), next_seq };
    assert_eq!(hello.resume, [resume(7, 2), resume(8, 1)]);
    let token = Token::new("two");
    let go_on = Resumed::Continue {
        job: JobId(7),
        attempt: Attempt(1),
        next_seq: 3,
        lease_s: 60,
        token: token.clone(),
    };
    let lost = Resumed::Lost { job: JobId(8), attempt: Attempt(1) };
    let effects = receive(&mut session, welcome(100, vec![go_on, lost]), now);
    assert!(effects.contains(&Effect::Renew(job_ref(7, 1), token)));
    assert!(
        effects.contains(&Effect::Credit(job_ref(7, 1), 1)),
        "what the server has counts as acknowledged"
    );
    assert!(effects.contains(&Effect::Stop(job_ref(8, 1), Duration::ZERO)));
    let resent: Vec<_> = sent(effects)
        .into_iter()
        .filter_map(
            |message| if let ClientMessage::JobEvent(event) = message { Some(event.seq) } else { None },
        )
        .collect();
    assert_eq!(resent, [3]);
}

#[test]
fn a_server_that_names_events_never_made_has_another_attempt_in_mind() {
    let (mut session, now) = running();
    let effects =
        receive(&mut session, ServerMessage::EventAck { job: JobId(7), attempt: Attempt(1), seq: 9 }, now);
    assert!(effects.contains(&Effect::Stop(job_ref(7, 1), Duration::ZERO)));
    assert_eq!(session.attempts().count(), 0);
}

#[test]
fn a_newer_attempt_replaces_the_older_one() {
    let (mut session, now) = running();
    let effects = receive(&mut session, ServerMessage::Jobs { jobs: vec![job(7, 2)] }, now);
    assert!(effects.contains(&Effect::Stop(job_ref(7, 1), Duration::ZERO)));
    assert_eq!(session.attempts().collect::<Vec<_>>(), [job_ref(7, 2)]);
}

#[test]
fn cancelling_stops_and_losing_forgets() {
    let cancel = |why| ServerMessage::Cancel { job: JobId(7), attempt: Attempt(1), grace_s: 5, why };
    let (mut session, now) = running();
    assert_eq!(
        receive(&mut session, cancel(CancelReason::Cancelled), now),
        [Effect::Stop(job_ref(7, 1), Duration::from_secs(5))]
    );
    assert_eq!(session.attempts().count(), 1, "its outcome is to come");
    let effects = receive(&mut session, cancel(CancelReason::LeaseLost), now);
    assert!(effects.contains(&Effect::Stop(job_ref(7, 1), Duration::ZERO)));
    assert_eq!(session.attempts().count(), 0);
    assert!(sent(session.handle(Input::Finished(job_ref(7, 1), Box::new(failed())), now)).is_empty());
}

#[test]
fn heartbeats_come_on_time_and_silence_is_noticed() {
    let (mut session, now) = running();
    let beat = now + Duration::from_secs(10);
    assert_eq!(session.deadline(), Some(beat));
    assert_eq!(session.handle(Input::Tick, beat), [Effect::Heartbeat(vec![job_ref(7, 1)])]);
    let at_once = receive(&mut session, ServerMessage::Ping, beat);
    assert_eq!(at_once, [Effect::Heartbeat(vec![job_ref(7, 1)])]);
    let silent = beat + Duration::from_secs(30);
    assert!(!reconnects(&session.handle(Input::Tick, beat + Duration::from_millis(29_999))));
    assert!(reconnects(&session.handle(Input::Tick, silent)));
    assert_eq!(session.attempts().count(), 1, "the attempt goes on");
}

#[test]
fn draining_finishes_and_says_goodbye() {
    let (mut session, now) = running();
    assert_eq!(sent(session.handle(Input::Drain, now)), [ClientMessage::JobRequest { slots: 0 }]);
    let rejected = sent(receive(&mut session, ServerMessage::Jobs { jobs: vec![job(8, 1)] }, now));
    // The service is told again: it thought otherwise.
    let again = ClientMessage::JobRequest { slots: 0 };
    assert!(matches!(&rejected[..], [ClientMessage::JobRejected { .. }, request] if *request == again));
    session.handle(Input::Finished(job_ref(7, 1), Box::new(failed())), now);
    let effects = receive(&mut session, ServerMessage::JobDone(job_ref(7, 1)), now);
    assert!(matches!(
        &effects[..],
        [Effect::Send(ClientMessage::Goodbye { .. }), Effect::Exit(Exit::Drained)]
    ));
}

#[test]
fn a_disk_without_room_asks_for_nothing_until_there_is() {
    let (mut session, now) = running();
    assert_eq!(sent(session.handle(Input::Room(false), now)), [ClientMessage::JobRequest { slots: 0 }]);
    let late = sent(receive(&mut session, ServerMessage::Jobs { jobs: vec![job(8, 1)] }, now));
    let [ClientMessage::JobRejected { why, .. }, ClientMessage::JobRequest { slots: 0 }] = &late[..] else {
        panic!("{late:?}");
    };
    assert_eq!(why, "the builder's disk is almost full");
    assert_eq!(sent(session.handle(Input::Room(false), now)), [], "once");
    assert_eq!(session.attempts().count(), 1, "what runs goes on");
    assert_eq!(sent(session.handle(Input::Room(true), now)), [ClientMessage::JobRequest { slots: 1 }]);
}

#[test]
fn an_operator_that_drains_us_gets_no_request_and_our_end() {
    let (mut session, now) = ready(1);
    let effects = receive(&mut session, ServerMessage::Drain, now);
    assert!(matches!(
        &effects[..],
        [Effect::Send(ClientMessage::Goodbye { .. }), Effect::Exit(Exit::Drained)]
    ));

    let (mut session, now) = running();
    assert_eq!(
        sent(receive(&mut session, ServerMessage::Drain, now)),
        [ClientMessage::JobRequest { slots: 0 }]
    );
    let rejected = sent(receive(&mut session, ServerMessage::Jobs { jobs: vec![job(8, 1)] }, now));
    assert!(matches!(
        &rejected[..],
        [ClientMessage::JobRejected { .. }, ClientMessage::JobRequest { slots: 0 }]
    ));
    // It changed its mind: it greets us anew, and says nothing of a drain.
    session.handle(Input::Disconnected, now);
    session.handle(Input::Connected, now);
    let go_on = Resumed::Continue {
        job: JobId(7),
        attempt: Attempt(1),
        next_seq: 1,
        lease_s: 60,
        token: Token::new("fresh"),
    };
    let effects = receive(&mut session, welcome(1, vec![go_on]), now);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Exit(_))));
}

/// The server would end the connection, we would resume and send it again: for ever.
#[test]
fn an_outcome_is_never_larger_than_a_frame() {
    use cratemill_protocol::{Outcome, builder::MAX_FRAME_BYTES, codec::Encoding, job::Timings};
    let long = "x".repeat(MAX_FRAME_BYTES);
    let succeeded = Finished {
        outcome: Outcome::Succeeded { timings: Timings::default() },
        manifest: Some(long.clone()),
        signature: None,
    };
    for (finished, expected) in [
        (Finished::failed(FailureClass::Build, &long), FailureClass::Build),
        (succeeded, FailureClass::Infrastructure),
    ] {
        let (mut session, now) = running();
        let messages = sent(session.handle(Input::Finished(job_ref(7, 1), Box::new(finished)), now));
        let response = messages.iter().find_map(|message| match message {
            ClientMessage::JobResponse(response) => Some(response),
            _ => None,
        });
        let outcome = &response.expect("the outcome goes out").outcome;
        assert!(matches!(outcome, Outcome::Failed { class, .. } if *class == expected), "{outcome:?}");
        for message in &messages {
            assert!(Encoding::MsgPack.encode(message).len() <= MAX_FRAME_BYTES);
        }
    }
}
