//! Every message of the bus, with every variant of what is inside: MessagePack with its version.

use crate::golden::Golden;
use cratemill_protocol::{
    ArtifactId, Attempt, BuilderId, CrateName, FailureClass, Features, JobId, JobState, JsonText, Kind,
    Limits, Outcome, Priority, Sha256Hex, Stage, Target, UserTopic, VersionId,
    builder::JobRef,
    bus::{
        Assigned, AssignedJob, BuildRequest, BuilderState, ClientClass, DomainEvent, DownloadBatch,
        DownloadCount, EventMessage, Install, JobChanged, LogBody, LogMessage, NodeMessage, OutcomeBatch,
        OutcomeMessage, RefreshReply, RefreshRequest, RequestBatch, TimelineEvent, TopicMessage,
        VersionChange, VersionChanged, decode, encode,
    },
    job::Timings,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt::Debug;

const JOB: JobId = JobId(7);
const ATTEMPT: Attempt = Attempt(2);
const BUILDER: BuilderId = BuilderId(3);
/// 2026-01-02 03:04:05 UTC.
const AT_MS: i64 = 1_767_323_045_000;

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(golden: &mut Golden, name: &str, message: &T) {
    let bytes = golden.bytes(name, &encode(message));
    assert_eq!(&decode::<T>(&bytes).unwrap(), message, "{name}");
}

fn krate() -> CrateName {
    CrateName::parse("hexyl").unwrap()
}

fn target() -> Target {
    Target::parse("x86_64-unknown-linux-gnu").unwrap()
}

#[test]
fn build_requests_and_outcomes() {
    let mut golden = Golden::open("bus/build");
    let request = BuildRequest {
        builder: BUILDER,
        connection: "c-1".into(),
        node: "api-1".into(),
        targets: vec![target()],
        slots: 2,
        answered: vec![JobRef { job: JOB, attempt: ATTEMPT }],
        serial: 5,
    };
    check(&mut golden, "requests", &RequestBatch { requests: vec![request] });
    let timings = Timings { fetch_ms: 1, build_ms: 2, package_ms: 3, upload_ms: 4, cargo_ms: 5 };
    let failed = |class| Outcome::Failed { class, message: "no".into(), stage: Some(Stage::Build), timings };
    let mut outcomes = vec![("succeeded".to_owned(), Outcome::Succeeded { timings })];
    outcomes.push(("cancelled".into(), Outcome::Cancelled));
    outcomes.extend(FailureClass::ALL.iter().map(|class| (format!("failed_{class}"), failed(*class))));
    for (name, outcome) in outcomes {
        let signed = matches!(outcome, Outcome::Succeeded { .. });
        let message = OutcomeMessage {
            job: JOB,
            attempt: ATTEMPT,
            builder: BUILDER,
            outcome,
            last_seq: 41,
            manifest: signed.then(|| "{}\n".into()),
            signature: signed.then(|| "-----BEGIN".into()),
            at_ms: AT_MS,
        };
        check(&mut golden, &format!("outcome.{name}"), &OutcomeBatch { outcomes: vec![message] });
    }
    check(&mut golden, "outcome.none", &OutcomeBatch { outcomes: vec![] });
    golden.close();
}

#[test]
fn messages_to_nodes() {
    let mut golden = Golden::open("bus/node");
    let job = |kind, index: Option<&str>| AssignedJob {
        id: JOB,
        attempt: ATTEMPT,
        krate: krate(),
        version: "0.16.0".into(),
        source: "https://files.example/hexyl".into(),
        private: index.is_some(),
        sha256: Sha256Hex::of(b"golden"),
        index: index.map(str::to_owned),
        kind,
        target: target(),
        features: "no-default,a".parse::<Features>().unwrap(),
        limits: Limits::default(),
        lease_s: 60,
    };
    let assign = |job| NodeMessage::Assign {
        jobs: vec![Assigned { connection: "c-1".into(), builder: BUILDER, job }],
    };
    for kind in Kind::ALL {
        check(&mut golden, &format!("assign.{kind}"), &assign(job(*kind, None)));
    }
    let private = assign(job(Kind::Tarball, Some("sparse+https://index.example/")));
    check(&mut golden, "assign.private", &private);
    let cancel = NodeMessage::Cancel { builder: BUILDER, job: JOB, attempt: ATTEMPT, grace_s: 5 };
    check(&mut golden, "cancel", &cancel);
    check(&mut golden, "disabled", &NodeMessage::Disabled { builder: BUILDER });
    let superseded = NodeMessage::Superseded { builder: BUILDER, connection: "c-1".into() };
    check(&mut golden, "superseded", &superseded);
    check(&mut golden, "drain", &NodeMessage::Drain { builder: BUILDER });
    check(&mut golden, "undrain", &NodeMessage::Undrain { builder: BUILDER });
    golden.close();
}

#[test]
fn logs() {
    let mut golden = Golden::open("bus/log");
    let message = |body| LogMessage { job: JOB, attempt: ATTEMPT, seq: 3, at_ms: AT_MS, body };
    for stage in Stage::ALL {
        check(&mut golden, &format!("stage.{stage}"), &message(LogBody::Stage { stage: *stage, offset: 0 }));
    }
    let later = LogBody::Stage { stage: Stage::Package, offset: 120 };
    check(&mut golden, "stage.later", &message(later));
    for state in JobState::ALL {
        check(&mut golden, &format!("end.{state}"), &message(LogBody::End { state: *state }));
    }
    check(&mut golden, "text", &message(LogBody::Text { offset: 120, text: "Compiling €\n".into() }));
    golden.close();
}

fn job_events() -> Vec<(String, DomainEvent)> {
    let plain = JobChanged {
        job: JOB,
        krate: krate(),
        version: "0.16.0".into(),
        kind: Kind::Metadata,
        target: Target::any(),
        features: Features::default(),
        priority: Priority::NewRelease,
        state: JobState::Queued,
        attempt: Attempt(0),
        stage: None,
        builder: None,
        failure: None,
        message: None,
    };
    let mut all = vec![("job.plain".to_owned(), DomainEvent::Job(plain.clone()))];
    for (index, state) in JobState::ALL.iter().enumerate() {
        let failed = *state == JobState::Failed;
        let event = JobChanged {
            kind: Kind::Tarball,
            target: target(),
            state: *state,
            priority: Priority::ALL[index % Priority::ALL.len()],
            attempt: ATTEMPT,
            stage: Stage::ALL.get(index).copied(),
            builder: Some(BUILDER),
            failure: failed.then_some(FailureClass::OutOfMemory),
            message: failed.then(|| "killed".into()),
            ..plain.clone()
        };
        all.push((format!("job.{state}"), DomainEvent::Job(event)));
    }
    all
}

#[test]
fn domain_events() {
    let mut golden = Golden::open("bus/event");
    let mut all = job_events();
    for change in [VersionChange::Published, VersionChange::Yanked, VersionChange::Unyanked] {
        let event = VersionChanged { krate: krate(), version: "0.16.0".into(), id: VersionId(5), change };
        all.push((format!("version.{}", word(change)), DomainEvent::Version(event)));
    }
    for state in [
        BuilderState::Connected,
        BuilderState::Disconnected,
        BuilderState::Registered,
        BuilderState::Enabled,
        BuilderState::Disabled,
        BuilderState::Draining,
    ] {
        let event = DomainEvent::Builder { builder: BUILDER, name: "attic".into(), state };
        all.push((format!("builder.{}", word(state)), event));
    }
    all.push(("queue".into(), DomainEvent::Queue { queued: 12, running: 3 }));
    for (name, event) in all {
        check(&mut golden, &name, &EventMessage { at_ms: AT_MS, event });
    }
    golden.close();
}

#[test]
fn user_topics() {
    let mut golden = Golden::open("bus/topic");
    let data = JsonText::parse("{ \"b\": 1.0e400,\n \"a\": \"ü \" }".as_bytes()).unwrap();
    let topic = UserTopic::parse("topic.private.team.deploys").unwrap();
    check(&mut golden, "message", &TopicMessage { topic, at_ms: AT_MS, data });
    golden.close();
}

#[test]
fn events_of_the_event_api() {
    let mut golden = Golden::open("bus/timeline");
    let id = "6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77".parse().unwrap();
    let data = JsonText::parse(b"{\"a\": \"\\u0000\"}").unwrap();
    check(&mut golden, "event", &TimelineEvent { id, name: "a name".into(), data });
    golden.close();
}

#[test]
fn refreshes() {
    let mut golden = Golden::open("bus/other");
    check(&mut golden, "refresh.request", &RefreshRequest { krate: krate() });
    check(&mut golden, "refresh.fresh", &RefreshReply::Fresh);
    check(&mut golden, "refresh.not_found", &RefreshReply::NotFound);
    let unavailable = RefreshReply::Unavailable { message: "the index answered 503".into() };
    check(&mut golden, "refresh.unavailable", &unavailable);
    golden.close();
}

#[test]
fn downloads() {
    let mut golden = Golden::open("bus/download");
    let count = |client| DownloadCount { artifact: ArtifactId(9), day: 20_455, client, count: 2 };
    let counts = ClientClass::ALL.map(count).to_vec();
    let batch = DownloadBatch { node: "api-1".into(), epoch: AT_MS, batch: 4, counts, installs: vec![] };
    let client = ClientClass::Binstall;
    let install = Install { artifact: ArtifactId(9), day: 20_455, client, who: -7, at_s: AT_MS / 1_000 };
    let installs = DownloadBatch { installs: vec![install], ..batch.clone() };
    for (name, batch) in [("batch", &batch), ("installs", &installs)] {
        let bytes = golden.bytes(name, &batch.encode());
        assert_eq!(&DownloadBatch::decode(&bytes).unwrap(), batch, "{name}");
    }
    // Counts as maps, as nodes of before sent them, and what they read.
    let before = golden.bytes("batch_of_before", &encode(&BatchOfBefore::of(&batch)));
    assert_eq!(DownloadBatch::decode(&before).unwrap(), batch);
    assert_eq!(decode::<BatchOfBefore>(&batch.encode()).unwrap(), BatchOfBefore::of(&batch));
    golden.close();
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BatchOfBefore {
    node: String,
    epoch: i64,
    batch: u64,
    counts: Vec<CountOfBefore>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct CountOfBefore {
    artifact: ArtifactId,
    day: i32,
    client: ClientClass,
    count: u64,
}

impl BatchOfBefore {
    fn of(batch: &DownloadBatch) -> Self {
        let counts = batch.counts.iter().map(|count| {
            let DownloadCount { artifact, day, client, count } = *count;
            CountOfBefore { artifact, day, client, count }
        });
        let (node, counts) = (batch.node.clone(), counts.collect());
        Self { node, epoch: batch.epoch, batch: batch.batch, counts }
    }
}

fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}
