//! Every message of the builder protocol, with every variant of what is inside.

use crate::golden::Golden;
use cratemill_protocol::{
    ArtifactName, Attempt, BuilderId, CrateName, FailureClass, Features, JobId, Kind, Limits, Outcome,
    Sha256Hex, Stage, Target,
    builder::{
        CancelReason, Challenge, ChallengeResponse, ClientMessage, CloseReason, ConnectionLimits, Event,
        Heartbeat, Hello, Job, JobEvent, JobRef, JobResponse, Load, Nonce, Resume, Resumed, ServerMessage,
        Welcome,
    },
    job::Timings,
    manifest::{self, Manifest},
    token::Token,
};

const JOB: JobId = JobId(7);
const ATTEMPT: Attempt = Attempt(2);
const REF: JobRef = JobRef { job: JOB, attempt: ATTEMPT };
const TIMINGS: Timings =
    Timings { fetch_ms: 812, build_ms: 24_600, package_ms: 95, upload_ms: 40, cargo_ms: 25_300 };

fn target() -> Target {
    Target::parse("x86_64-unknown-linux-gnu").unwrap()
}

fn digest() -> Sha256Hex {
    Sha256Hex::of(b"golden")
}

/// Fails to compile when there is a message without a name, so without a sample.
fn client_name(message: &ClientMessage) -> &'static str {
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

fn server_name(message: &ServerMessage) -> &'static str {
    match message {
        ServerMessage::ChallengeRequest(_) => "challenge_request",
        ServerMessage::Welcome(_) => "welcome",
        ServerMessage::Jobs { .. } => "jobs",
        ServerMessage::EventAck { .. } => "event_ack",
        ServerMessage::LeaseRenewed { .. } => "lease_renewed",
        ServerMessage::JobDone(_) => "job_done",
        ServerMessage::Cancel { .. } => "cancel",
        ServerMessage::Drain => "drain",
        ServerMessage::Ping => "ping",
        ServerMessage::Close { .. } => "close",
    }
}

fn response(outcome: Outcome) -> ClientMessage {
    ClientMessage::JobResponse(JobResponse {
        job: JOB,
        attempt: ATTEMPT,
        outcome,
        last_seq: 41,
        manifest: None,
        signature: None,
    })
}

fn outcomes() -> Vec<(String, ClientMessage)> {
    let mut all = vec![("cancelled".to_owned(), response(Outcome::Cancelled))];
    for (index, class) in FailureClass::ALL.iter().enumerate() {
        let stage = Stage::ALL.get(index).copied();
        let message = format!("it ended as {class}");
        let outcome = Outcome::Failed { class: *class, message, stage, timings: TIMINGS };
        all.push((format!("failed_{class}"), response(outcome)));
    }
    all.push((
        "succeeded".into(),
        ClientMessage::JobResponse(JobResponse {
            job: JOB,
            attempt: ATTEMPT,
            outcome: Outcome::Succeeded { timings: TIMINGS },
            last_seq: 41,
            manifest: Some("{\n}\n".into()),
            signature: Some("-----BEGIN SSH SIGNATURE-----\n".into()),
        }),
    ));
    all
}

fn client_messages() -> Vec<(String, ClientMessage)> {
    let event = |event| ClientMessage::JobEvent(JobEvent { job: JOB, attempt: ATTEMPT, seq: 3, event });
    let resume = vec![Resume { job: JOB, attempt: ATTEMPT, next_seq: 9 }];
    let hello = |targets, resume| {
        let (fingerprint, agent) = ("SHA256:0123456789".into(), "cratemill-builder/0.1.0".into());
        ClientMessage::Hello(Hello { fingerprint, agent, targets, slots: 2, resume })
    };
    let load = Load { load1: 0.5, free_memory_bytes: 8 << 30, free_disk_bytes: 80 << 30 };
    let mut all = vec![
        (String::new(), hello(vec![target()], vec![])),
        ("resume".into(), hello(vec![target(), Target::parse("wasm32-wasip1").unwrap()], resume)),
        (
            String::new(),
            ClientMessage::ChallengeResponse(ChallengeResponse { signature: "-----BEGIN".into() }),
        ),
        (String::new(), ClientMessage::JobRequest { slots: 2 }),
        (String::new(), ClientMessage::JobAccepted(REF)),
        (
            String::new(),
            ClientMessage::JobRejected { job: JOB, attempt: ATTEMPT, why: "no free slot".into() },
        ),
        ("log".into(), event(Event::Log { offset: 120, text: "   Compiling hexyl €\n".into() })),
        (String::new(), ClientMessage::Heartbeat(Heartbeat { load, running: vec![REF] })),
        (String::new(), ClientMessage::Goodbye { why: "the builder stops".into() }),
    ];
    all.extend(
        Stage::ALL.iter().map(|stage| (format!("stage_{stage}"), event(Event::Stage { stage: *stage }))),
    );
    all.extend(outcomes());
    all
}

fn job(kind: Kind, target: Target, features: &str, index: Option<&str>) -> Job {
    Job {
        id: JOB,
        attempt: ATTEMPT,
        krate: CrateName::parse("hexyl").unwrap(),
        version: "0.16.0".into(),
        source: "https://files.example/hexyl/0.16.0/download".into(),
        sha256: digest(),
        index: index.map(str::to_owned),
        kind,
        target,
        features: features.parse().unwrap(),
        limits: Limits::default(),
        lease_s: 60,
        token: Token::new("ctj1.claims.mac"),
        upload: "https://mill.example/api/v1/jobs/7/artifacts".into(),
    }
}

const CLOSE_REASONS: [CloseReason; 12] = [
    CloseReason::UnknownKey,
    CloseReason::Disabled,
    CloseReason::BadSignature,
    CloseReason::UnsupportedVersion,
    CloseReason::Protocol,
    CloseReason::FrameTooLarge,
    CloseReason::Flood,
    CloseReason::LoginTimeout,
    CloseReason::Silent,
    CloseReason::Superseded,
    CloseReason::Draining,
    CloseReason::Internal,
];

pub(crate) fn server_messages() -> Vec<(String, ServerMessage)> {
    let welcome = |resumed| {
        ServerMessage::Welcome(Welcome {
            builder: BuilderId(3),
            name: "attic".into(),
            heartbeat_s: 10,
            lease_s: 60,
            limits: ConnectionLimits {
                max_frame_bytes: 262_144,
                max_log_chunk_bytes: 32_768,
                max_unacked_events: 64,
                max_messages_per_s: 200,
            },
            resumed,
        })
    };
    let token = || Token::new("ctj1.fresh.mac");
    let resumed = vec![
        Resumed::Continue { job: JOB, attempt: ATTEMPT, next_seq: 9, lease_s: 60, token: token() },
        Resumed::Lost { job: JobId(8), attempt: Attempt(1) },
    ];
    let cancel = |why| ServerMessage::Cancel { job: JOB, attempt: ATTEMPT, grace_s: 5, why };
    let kinds = Kind::ALL.iter().map(|kind| match kind {
        Kind::Metadata => job(*kind, Target::any(), "default", None),
        Kind::Tarball => job(*kind, target(), "no-default,a,b-c", Some("sparse+https://index.example/")),
        _ => job(*kind, target(), "default,x", None),
    });
    let mut all = vec![
        (
            String::new(),
            ServerMessage::ChallengeRequest(Challenge {
                server: "https://mill.example".into(),
                connection: "a-1".into(),
                nonce: Nonce([7; 32]),
            }),
        ),
        (String::new(), welcome(vec![])),
        ("resumed".into(), welcome(resumed)),
        (String::new(), ServerMessage::Jobs { jobs: kinds.collect() }),
        (String::new(), ServerMessage::EventAck { job: JOB, attempt: ATTEMPT, seq: 9 }),
        (
            String::new(),
            ServerMessage::LeaseRenewed { job: JOB, attempt: ATTEMPT, lease_s: 60, token: token() },
        ),
        (String::new(), ServerMessage::JobDone(REF)),
        ("cancelled".into(), cancel(CancelReason::Cancelled)),
        ("lease_lost".into(), cancel(CancelReason::LeaseLost)),
        (String::new(), ServerMessage::Drain),
        (String::new(), ServerMessage::Ping),
    ];
    for reason in CLOSE_REASONS {
        let word = serde_json::to_value(reason).unwrap();
        let message = format!("closed, code {}", reason.code());
        all.push((word.as_str().unwrap().to_owned(), ServerMessage::Close { reason, message }));
    }
    all
}

fn file_name(message: &str, variant: &str) -> String {
    if variant.is_empty() { message.to_owned() } else { format!("{message}.{variant}") }
}

#[test]
fn messages_of_builders() {
    let mut golden = Golden::open("client");
    for (variant, message) in client_messages() {
        golden.check(&file_name(client_name(&message), &variant), &message);
    }
    golden.close();
}

#[test]
fn messages_of_servers() {
    let mut golden = Golden::open("server");
    for (variant, message) in server_messages() {
        golden.check(&file_name(server_name(&message), &variant), &message);
    }
    golden.close();
}

#[test]
fn what_is_signed() {
    let mut golden = Golden::open("signed");
    let manifest = Manifest {
        krate: CrateName::parse("hexyl").unwrap(),
        version: "0.16.0".into(),
        kind: Kind::Tarball,
        target: target(),
        features: Features::default(),
        toolchain: "rustc 1.95.0 (59807616e 2026-04-14)".into(),
        source_sha256: digest(),
        artifacts: vec![manifest::Entry {
            name: ArtifactName::parse("hexyl-x86_64-unknown-linux-gnu-v0.16.0.tar.gz").unwrap(),
            size: 512_345,
            sha256: digest(),
        }],
    };
    golden.exact("manifest", manifest.to_text().as_bytes());
    assert_eq!(Manifest::parse(&manifest.to_text()).unwrap(), manifest);
    let challenge =
        Challenge { server: "https://mill.example".into(), connection: "a-1".into(), nonce: Nonce([7; 32]) };
    golden.exact("challenge", &challenge.signed_bytes("SHA256:0123456789"));
    golden.close();
}

#[test]
fn unknown_fields_are_ignored_and_missing_optional_ones_have_defaults() {
    use cratemill_protocol::codec::Encoding;
    let text = r#"{"type":"hello","fingerprint":"f","agent":"a","targets":[],"slots":1,"later":{"x":[1]}}"#;
    let ClientMessage::Hello(hello) = Encoding::Json.decode(text.as_bytes()).unwrap() else {
        panic!("hello")
    };
    assert_eq!(hello.resume, []);
    for (_, message) in server_messages() {
        let mut json = serde_json::to_value(&message).unwrap();
        json["later"] = serde_json::json!({ "nested": [1, null, "x"] });
        for encoding in [Encoding::Json, Encoding::MsgPack] {
            assert_eq!(encoding.decode::<ServerMessage>(&encoding.encode(&json)).unwrap(), message);
        }
    }
}
