//! One message on its way to viewers: decoded once, encoded once for all who get it.

use crate::{engine::Source, metrics};
use bytes::Bytes;
use cratemill_protocol::{
    Attempt, JobId, SubscriptionId,
    bus::{self, EventMessage, LogBody, LogMessage, TimelineEvent, TopicMessage},
    publication,
    topic::Topic,
};
use std::sync::OnceLock;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Event(EventMessage),
    Log(LogPart),
    User(TopicMessage),
    Timeline(TimelineEvent),
    Issue(Issue),
}

impl Message {
    /// The stream that it comes from.
    pub fn source(&self) -> Source {
        match self {
            Self::Event(_) => Source::Events,
            Self::Log(_) => Source::Logs,
            Self::User(_) => Source::Topics,
            Self::Timeline(_) => Source::Timeline,
            Self::Issue(_) => Source::Pubsub,
        }
    }
}

/// Something that was published over CBOR; who wants to know what fetches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issue {
    pub subscription: SubscriptionId,
    pub publication: Uuid,
}

impl Issue {
    /// From where it stands, on which subject, and the message's id.
    pub fn parse(sequence: u64, subject: &str, id: &str) -> Option<Self> {
        let Some(Topic::Publications(subscription)) = Topic::fed_by(subject).pop() else { return None };
        let publication = publication::id(sequence, id.parse().ok()?);
        Some(Self { subscription, publication })
    }
}

/// A piece of an attempt's log, from the bus or from the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct LogPart {
    pub job: JobId,
    pub attempt: Attempt,
    pub body: LogBody,
}

#[derive(Debug)]
pub struct Frame {
    /// Its place in its stream; 0 for what comes from the archive.
    pub sequence: u64,
    pub message: Message,
    encoded: OnceLock<Bytes>,
}

impl Frame {
    pub fn new(sequence: u64, message: Message) -> Self {
        Self { sequence, message, encoded: OnceLock::new() }
    }

    /// `payload` is the message's id where only heads are followed. Nothing for a message that this program cannot read: a newer program wrote it, and the rest must go on.
    pub fn decode(source: Source, sequence: u64, subject: &str, payload: &[u8]) -> Option<Self> {
        let message = match source {
            Source::Events => bus::decode::<EventMessage>(payload).map(Message::Event),
            Source::Logs => bus::decode::<LogMessage>(payload)
                .map(|log| Message::Log(LogPart { job: log.job, attempt: log.attempt, body: log.body })),
            Source::Topics => bus::decode::<TopicMessage>(payload).map(Message::User),
            Source::Timeline => bus::decode::<TimelineEvent>(payload).map(Message::Timeline),
            Source::Pubsub => {
                let issue = str::from_utf8(payload).ok().and_then(|id| Issue::parse(sequence, subject, id));
                if issue.is_none() {
                    metrics::unreadable();
                    tracing::warn!(stream = source.stream(), sequence, "skipped a message without a good id");
                }
                return issue.map(|issue| Self::new(sequence, Message::Issue(issue)));
            }
        };
        match message {
            Ok(message) => Some(Self::new(sequence, message)),
            Err(error) => {
                metrics::unreadable();
                tracing::warn!(stream = source.stream(), sequence, %error, "skipped a message");
                None
            }
        }
    }

    /// As all who get it have it in common: the messages of each stream have one dialect. `encode` runs for the first who
    /// asks.
    pub fn encoded(&self, encode: impl FnOnce(&Message) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(&self.message))
    }
}
