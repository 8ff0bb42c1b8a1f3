//! The native dialect over WebSocket: JSON in text messages. Pure.
//!
//! ```text
//! client -> {"type":"subscribe","topic":"builds","since":"812"}     since is an id, or left out
//!           {"type":"unsubscribe","topic":"builds"}
//!           {"type":"ping"}
//! server -> {"type":"subscribed","topic":"builds","id":"812"}       what comes after 812 follows
//!           {"type":"event","topic":"builds","id":"813","event":"job","data":{..}}
//!           {"type":"reset","topic":"builds","id":"812","reason":"expired"}
//!           {"type":"unsubscribed","topic":"builds"}
//!           {"type":"error","topic":"x","error":"..."}              the connection goes on
//!           {"type":"heartbeat","id":"820"}                         all topics are this far; without an id where one
//!                                                                   of them is read by itself, as logs are
//!           {"type":"pong"}
//!           {"type":"dropped","topic":"builds","reason":"slow"}     of one topic: subscribe again
//! ```
//! An id is the topic's own: each topic is resumed with the last id that came with it, or with a later heartbeat's.

use crate::{
    dialects::native::{encode, id},
    engine::{
        frame::Frame,
        position::Position,
        viewer::{DropReason, Item, ResetReason, Since, What},
    },
};
use bytes::{BufMut as _, Bytes};
use cratemill_protocol::topic::{self, Topic};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Subscribe { topic: Topic, since: Since },
    Unsubscribe(Topic),
    Ping,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not a request: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Topic(#[from] topic::Error),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Message {
    Subscribe { topic: String, since: Option<String> },
    Unsubscribe { topic: String },
    Ping {},
}

impl Request {
    pub fn parse(text: &str) -> Result<Self, Error> {
        Ok(match serde_json::from_str(text)? {
            Message::Subscribe { topic, since } => {
                let since =
                    since.map_or(Since::Now, |text| id::parse(&text).map_or(Since::Unreadable, Since::After));
                Self::Subscribe { topic: topic.parse()?, since }
            }
            Message::Unsubscribe { topic } => Self::Unsubscribe(topic.parse()?),
            Message::Ping {} => Self::Ping,
        })
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Say<'a> {
    Subscribed {
        topic: &'a str,
        id: &'a str,
    },
    Unsubscribed {
        topic: &'a str,
    },
    Reset {
        topic: &'a str,
        id: &'a str,
        reason: &'static str,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a str>,
        error: &'a str,
    },
    Heartbeat {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    Pong,
    Dropped {
        topic: &'a str,
        reason: &'static str,
    },
}

fn say(message: &Say<'_>) -> Vec<u8> {
    serde_json::to_vec(message).expect("our messages have only text keys")
}

pub fn subscribed(topic: &Topic, position: &Position) -> Vec<u8> {
    say(&Say::Subscribed { topic: &topic.to_string(), id: &id::format(position) })
}

pub fn unsubscribed(topic: &Topic) -> Vec<u8> {
    say(&Say::Unsubscribed { topic: &topic.to_string() })
}

pub fn reset(topic: &Topic, position: &Position, reason: ResetReason) -> Vec<u8> {
    let (topic, id) = (topic.to_string(), id::format(position));
    say(&Say::Reset { topic: &topic, id: &id, reason: encode::reset_reason(reason) })
}

pub fn error(topic: Option<&Topic>, error: &str) -> Vec<u8> {
    let topic = topic.map(ToString::to_string);
    say(&Say::Error { topic: topic.as_deref(), error })
}

/// With how far all topics are, where one id says that.
pub fn heartbeat(position: Option<&Position>) -> Vec<u8> {
    let id = position.map(id::format);
    say(&Say::Heartbeat { id: id.as_deref() })
}

pub fn pong() -> Vec<u8> {
    say(&Say::Pong)
}

pub fn dropped(topic: &Topic, reason: DropReason) -> Vec<u8> {
    say(&Say::Dropped { topic: &topic.to_string(), reason: encode::drop_reason(reason) })
}

/// Nothing for what is only a sign of life of one topic.
pub fn item(topic: &Topic, item: &Item) -> Option<Vec<u8>> {
    match &item.what {
        What::Frame(frame) => Some(event(&topic.to_string(), frame, &item.position)),
        What::Alive => None,
        What::Reset { topic, reason } => Some(reset(topic, &item.position, *reason)),
        What::Dropped(reason) => Some(dropped(topic, *reason)),
    }
}

/// The event of the other encoding, which is made once for all, in other words around it.
pub fn event(topic: &str, frame: &Frame, position: &Position) -> Vec<u8> {
    let (name, data) = parts(frame.encoded(encode::message));
    let id = id::format(position);
    let mut out = Vec::with_capacity(topic.len() + id.len() + name.len() + data.len() + 64);
    for part in [
        // No text of ours in these needs an escape: topics, ids and names of events are plain.
        &b"{\"type\":\"event\",\"topic\":\""[..],
        topic.as_bytes(),
        b"\",\"id\":\"",
        id.as_bytes(),
        b"\",\"event\":\"",
        name,
        b"\",\"data\":",
        data,
        b"}",
    ] {
        out.put_slice(part);
    }
    out
}

/// The name and the data of an event as it is in a stream of events.
fn parts(event: &Bytes) -> (&[u8], &[u8]) {
    let rest = event.strip_prefix(b"event: ").unwrap_or(event);
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let data = rest.strip_prefix(b"\ndata: ").unwrap_or(rest);
    (name, data.strip_suffix(b"\n\n").unwrap_or(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::frame;
    use cratemill_protocol::bus::{DomainEvent, EventMessage};
    use serde_json::{Value, json};

    fn value(message: &[u8]) -> Value {
        serde_json::from_slice(message).unwrap()
    }

    #[test]
    fn requests() {
        let topic: Topic = "builds".parse().unwrap();
        let after = |events| Since::After(Position { events, ..Position::default() });
        for (text, expected) in [
            (
                r#"{"type":"subscribe","topic":"builds"}"#,
                Request::Subscribe { topic: topic.clone(), since: Since::Now },
            ),
            (
                r#"{"type":"subscribe","topic":"builds","since":"812"}"#,
                Request::Subscribe { topic: topic.clone(), since: after(812) },
            ),
            (
                r#"{"type":"subscribe","topic":"builds","since":"x"}"#,
                Request::Subscribe { topic: topic.clone(), since: Since::Unreadable },
            ),
            (r#"{"type":"unsubscribe","topic":"builds"}"#, Request::Unsubscribe(topic.clone())),
            (r#"{"type":"ping"}"#, Request::Ping),
        ] {
            assert_eq!(Request::parse(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"type":"x"}"#,
            r#"{"type":"subscribe"}"#,
            r#"{"type":"subscribe","topic":"job.x"}"#,
            r#"{"type":"subscribe","topic":"builds","topics":[]}"#,
            r#"{"type":"subscribe","topic":7}"#,
        ] {
            assert!(Request::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_golden() {
        let topic: Topic = "queue".parse().unwrap();
        let position = Position { events: 9, ..Position::default() };
        let event = DomainEvent::Queue { queued: 4, running: 1 };
        let frame = Frame::new(9, frame::Message::Event(EventMessage { at_ms: 5, event }));
        for (message, expected) in [
            (subscribed(&topic, &position), json!({"type": "subscribed", "topic": "queue", "id": "9"})),
            (unsubscribed(&topic), json!({"type": "unsubscribed", "topic": "queue"})),
            (
                reset(&topic, &position, ResetReason::Expired),
                json!({"type": "reset", "topic": "queue", "id": "9", "reason": "expired"}),
            ),
            (error(None, "no \"x\""), json!({"type": "error", "error": "no \"x\""})),
            (error(Some(&topic), "no"), json!({"type": "error", "topic": "queue", "error": "no"})),
            (heartbeat(Some(&position)), json!({"type": "heartbeat", "id": "9"})),
            (heartbeat(None), json!({"type": "heartbeat"})),
            (pong(), json!({"type": "pong"})),
            (
                dropped(&topic, DropReason::Slow),
                json!({"type": "dropped", "topic": "queue", "reason": "slow"}),
            ),
            (
                super::event("queue", &frame, &position),
                json!({"type": "event", "topic": "queue", "id": "9", "event": "queue",
                       "data": {"type": "queue", "queued": 4, "running": 1, "at_ms": 5}}),
            ),
        ] {
            assert_eq!(value(&message), expected);
        }
    }
}
