//! Messages as server-sent events. A message is encoded once for all who get it; only the id before it is a viewer's own.

use crate::{
    dialects::native::id,
    engine::{
        frame::{Frame, LogPart, Message},
        position::Position,
        viewer::{DropReason, Item, ResetReason, What},
    },
};
use bytes::{BufMut as _, Bytes, BytesMut};
use cratemill_protocol::{
    Attempt, JobState, Stage,
    bus::{DomainEvent, EventMessage, LogBody, TopicMessage},
    topic::Topic,
};
use serde::Serialize;

/// How long a browser waits before it comes back.
const RETRY_MS: u32 = 1_000;

/// Sent at once, so that whoever stands between passes the answer on.
pub fn hello() -> Bytes {
    format!("retry: {RETRY_MS}\n\n").into()
}

/// A comment: nothing but a sign of life.
pub fn heartbeat() -> Bytes {
    Bytes::from_static(b":\n\n")
}

/// The node goes away; another one continues.
pub fn draining() -> Bytes {
    format!("event: draining\nretry: {RETRY_MS}\ndata: {{\"reconnect_ms\":{RETRY_MS}}}\n\n").into()
}

/// What a viewer gets, with the id at which it can resume after it.
pub fn item(item: &Item, out: &mut BytesMut) {
    put_id(&item.position, out);
    match &item.what {
        What::Frame(frame) => out.put_slice(frame.encoded(message)),
        // An id without an event moves a browser's last id and shows nothing.
        What::Alive => out.put_u8(b'\n'),
        What::Reset { topic, reason } => {
            let topic = topic.to_string();
            out.put_slice(&event("reset", &Reset { topic, reason: reset_reason(*reason) }));
        }
        What::Dropped(reason) => out.put_slice(&dropped(*reason)),
    }
}

pub fn frame(frame: &Frame, position: &Position, out: &mut BytesMut) {
    put_id(position, out);
    out.put_slice(frame.encoded(message));
}

fn put_id(position: &Position, out: &mut BytesMut) {
    out.put_slice(b"id: ");
    out.put_slice(id::format(position).as_bytes());
    out.put_u8(b'\n');
}

/// Without an id: the last that came is where to go on.
pub fn dropped(reason: DropReason) -> Bytes {
    event("dropped", &Dropped { reason: drop_reason(reason) })
}

/// Without an id.
pub fn message(message: &Message) -> Bytes {
    match message {
        Message::Event(EventMessage { at_ms, event: what }) => {
            event(event_name(what), &Event { what, at_ms: *at_ms })
        }
        Message::User(message) => published(message),
        // Nobody follows these in this dialect.
        Message::Timeline(_) | Message::Issue(_) => Bytes::new(),
        Message::Log(LogPart { job, attempt, body }) => {
            let (topic, attempt) = (Topic::JobLog(*job).to_string(), *attempt);
            match body {
                LogBody::Text { offset, text } => {
                    event("log", &Log { topic, attempt, offset: *offset, text })
                }
                LogBody::Stage { stage, .. } => {
                    event("stage", &StageChanged { topic, attempt, stage: *stage })
                }
                LogBody::End { state } => {
                    event("end", &End { topic, attempt, state: *state, r#final: state.is_final() })
                }
            }
        }
    }
}

fn event_name(event: &DomainEvent) -> &'static str {
    match event {
        DomainEvent::Job(_) => "job",
        DomainEvent::Version(_) => "version",
        DomainEvent::Builder { .. } => "builder",
        DomainEvent::Queue { .. } => "queue",
    }
}

pub fn reset_reason(reason: ResetReason) -> &'static str {
    match reason {
        ResetReason::Expired => "expired",
        ResetReason::Unknown => "unknown_id",
        ResetReason::Unreadable => "unreadable_id",
        ResetReason::Lost => "lost",
    }
}

pub fn drop_reason(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Slow => "slow",
        DropReason::Broken => "broken",
    }
}

/// What was published stands in it as it was published: a topic's text needs no escapes, and JSON text has one line.
fn published(TopicMessage { topic, at_ms, data }: &TopicMessage) -> Bytes {
    format!("event: message\ndata: {{\"topic\":\"{topic}\",\"at_ms\":{at_ms},\"data\":{data}}}\n\n").into()
}

/// JSON has no raw line breaks: one `data:` line holds it.
fn event<T: Serialize>(name: &str, data: &T) -> Bytes {
    let json = serde_json::to_string(data).expect("our messages have only text keys");
    format!("event: {name}\ndata: {json}\n\n").into()
}

#[derive(Serialize)]
struct Event<'a> {
    #[serde(flatten)]
    what: &'a DomainEvent,
    at_ms: i64,
}

#[derive(Serialize)]
struct Log<'a> {
    topic: String,
    attempt: Attempt,
    offset: u64,
    text: &'a str,
}

#[derive(Serialize)]
struct StageChanged {
    topic: String,
    attempt: Attempt,
    stage: Stage,
}

#[derive(Serialize)]
struct End {
    topic: String,
    attempt: Attempt,
    state: JobState,
    /// No other attempt follows.
    r#final: bool,
}

#[derive(Serialize)]
struct Reset {
    topic: String,
    reason: &'static str,
}

#[derive(Serialize)]
struct Dropped {
    reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::position::LogCursor;
    use cratemill_protocol::{
        BuilderId, CrateName, Features, JobId, JsonText, Kind, Priority, Target, VersionId,
        bus::{BuilderState, JobChanged, VersionChange, VersionChanged},
    };
    use std::sync::Arc;

    fn log(body: LogBody) -> String {
        let part = LogPart { job: JobId(7), attempt: Attempt(2), body };
        String::from_utf8(message(&Message::Log(part)).to_vec()).unwrap()
    }

    fn domain(event: DomainEvent) -> String {
        let event = Message::Event(EventMessage { at_ms: 1_700_000_000_123, event });
        String::from_utf8(message(&event).to_vec()).unwrap()
    }

    #[test]
    fn logs_golden() {
        let text = "a\nb\r\u{2028}\"ü\"\u{1b}[0m".into();
        assert_eq!(
            log(LogBody::Text { offset: 12, text }),
            "event: log\ndata: {\"topic\":\"job.7.log\",\"attempt\":2,\"offset\":12,\
             \"text\":\"a\\nb\\r\u{2028}\\\"ü\\\"\\u001b[0m\"}\n\n"
        );
        assert_eq!(
            log(LogBody::Stage { stage: Stage::Build, offset: 0 }),
            "event: stage\ndata: {\"topic\":\"job.7.log\",\"attempt\":2,\"stage\":\"build\"}\n\n"
        );
        for (state, json) in [
            (JobState::Succeeded, r#""state":"succeeded","final":true"#),
            (JobState::Queued, r#""state":"queued","final":false"#),
        ] {
            assert_eq!(
                log(LogBody::End { state }),
                format!("event: end\ndata: {{\"topic\":\"job.7.log\",\"attempt\":2,{json}}}\n\n")
            );
        }
    }

    #[test]
    fn events_golden() {
        let krate = CrateName::parse("hexyl").unwrap();
        let job = JobChanged {
            job: JobId(7),
            krate: krate.clone(),
            version: "0.16.0".into(),
            kind: Kind::Tarball,
            target: Target::parse("x86_64-unknown-linux-gnu").unwrap(),
            features: Features::default(),
            priority: Priority::OnDemand,
            state: JobState::Running,
            attempt: Attempt(1),
            stage: Some(Stage::Fetch),
            builder: Some(BuilderId(3)),
            failure: None,
            message: None,
        };
        assert_eq!(
            domain(DomainEvent::Job(job)),
            "event: job\ndata: {\"type\":\"job\",\"job\":7,\"crate\":\"hexyl\",\"version\":\"0.16.0\",\
             \"kind\":\"tarball\",\"target\":\"x86_64-unknown-linux-gnu\",\"features\":\"default\",\
             \"priority\":\"on_demand\",\"state\":\"running\",\"attempt\":1,\"stage\":\"fetch\",\"builder\":3,\
             \"at_ms\":1700000000123}\n\n"
        );
        let (version, id) = ("0.16.0".into(), VersionId(5));
        let version = VersionChanged { krate, version, id, change: VersionChange::Yanked };
        assert_eq!(
            domain(DomainEvent::Version(version)),
            "event: version\ndata: {\"type\":\"version\",\"crate\":\"hexyl\",\"version\":\"0.16.0\",\"id\":5,\
             \"change\":\"yanked\",\"at_ms\":1700000000123}\n\n"
        );
        let (builder, name, state) = (BuilderId(3), "b".into(), BuilderState::Connected);
        assert_eq!(
            domain(DomainEvent::Builder { builder, name, state }),
            "event: builder\ndata: {\"type\":\"builder\",\"builder\":3,\"name\":\"b\",\"state\":\"connected\",\
             \"at_ms\":1700000000123}\n\n"
        );
        assert_eq!(
            domain(DomainEvent::Queue { queued: 4, running: 1 }),
            "event: queue\ndata: {\"type\":\"queue\",\"queued\":4,\"running\":1,\"at_ms\":1700000000123}\n\n"
        );
    }

    #[test]
    fn what_people_publish_golden() {
        let (topic, data) =
            ("topic.team.deploys".parse().unwrap(), b"{ \"z\": 1.0e400,\n\"a\": \"\\u00fc\\n \" }");
        let data = JsonText::parse(data).unwrap();
        let frame = Message::User(TopicMessage { topic, at_ms: 1_700_000_000_123, data });
        assert_eq!(
            message(&frame),
            "event: message\ndata: {\"topic\":\"topic.team.deploys\",\"at_ms\":1700000000123,\
             \"data\":{\"z\":1.0e400,\"a\":\"\\u00fc\\n \"}}\n\n"
        );
    }

    #[test]
    fn items_golden() {
        let cursor = LogCursor { attempt: Attempt(2), offset: 3, ended: false, sequence: 40 };
        let position = Position { events: 9, topics: None, logs: [(JobId(7), cursor)].into() };
        let body = LogBody::Stage { stage: Stage::Upload, offset: 0 };
        let part = LogPart { job: JobId(7), attempt: Attempt(2), body };
        let frame = Arc::new(Frame::new(40, Message::Log(part)));
        for (what, expected) in [
            (
                What::Frame(frame),
                "event: stage\ndata: {\"topic\":\"job.7.log\",\"attempt\":2,\"stage\":\"upload\"}\n\n",
            ),
            (What::Alive, "\n"),
            (
                What::Reset { topic: Topic::Builds, reason: ResetReason::Expired },
                "event: reset\ndata: {\"topic\":\"builds\",\"reason\":\"expired\"}\n\n",
            ),
            (What::Dropped(DropReason::Slow), "event: dropped\ndata: {\"reason\":\"slow\"}\n\n"),
        ] {
            let mut out = BytesMut::new();
            item(&Item { what, position: position.clone() }, &mut out);
            assert_eq!(out, format!("id: 9-7.2.3.40\n{expected}"));
        }
    }
}
