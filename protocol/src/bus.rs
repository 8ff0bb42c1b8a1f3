//! What services say to each other over NATS. MessagePack with named fields; `v` is the version of the message.
//!
//! A receiver ignores fields it does not know and refuses a version it does not know.

use crate::{
    Attempt, BuilderId, CrateName, EventId, Features, JobId, JobState, JsonText, Kind, Limits, Outcome,
    Priority, Sha256Hex, Stage, Target, UserTopic, VersionId, builder::JobRef, codec,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use crate::download::{ClientClass, DownloadBatch, DownloadCount, Install};

pub const VERSION: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Decode(#[from] codec::Error),
    #[error("bus message of version {0}, this program knows {VERSION}")]
    Version(u8),
}

/// A message with its version beside its fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Envelope<T> {
    v: u8,
    #[serde(flatten)]
    message: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u8,
}

/// The version of a message that this program may not understand the rest of.
pub(crate) fn version(bytes: &[u8]) -> Result<u8, Error> {
    Ok(codec::Encoding::MsgPack.decode::<VersionOnly>(bytes)?.v)
}

pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    codec::Encoding::MsgPack.encode(&Envelope { v: VERSION, message })
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let v = version(bytes)?;
    if v != VERSION {
        return Err(Error::Version(v));
    }
    Ok(codec::Encoding::MsgPack.decode::<Envelope<T>>(bytes)?.message)
}

/// API node -> dispatchers, on `build.request.<node>`: what builders of this node wait for now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestBatch {
    pub requests: Vec<BuildRequest>,
}

/// This connection now waits for so many jobs in all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildRequest {
    pub builder: BuilderId,
    /// The connection that asks; a job for it goes to `node`.
    pub connection: String,
    pub node: String,
    pub targets: Vec<Target>,
    /// 0: it waits for none any more.
    pub slots: u16,
    /// Attempts that the builder has answered, those at hand and the last that ended: its slots count them already.
    /// Others that it was assigned are still on their way to it, and take slots.
    pub answered: Vec<JobRef>,
    /// Grows by one with each request of a connection: an older one that comes late changes nothing.
    pub serial: u64,
}

/// To one API node, on `node.<node>`, or to all, on `node.all`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NodeMessage {
    /// What one round of assignment has for this node's builders.
    Assign {
        jobs: Vec<Assigned>,
    },
    Cancel {
        builder: BuilderId,
        job: JobId,
        attempt: Attempt,
        grace_s: u32,
    },
    /// The builder's key was disabled or removed: end its connection.
    Disabled {
        builder: BuilderId,
    },
    /// The builder logged in again: connections of it other than this one end.
    Superseded {
        builder: BuilderId,
        connection: String,
    },
    /// The builder is to finish what runs and to get nothing new.
    Drain {
        builder: BuilderId,
    },
    /// The builder no longer drains: it is to log in again and to wait for jobs.
    Undrain {
        builder: BuilderId,
    },
}

/// A job, and the connection of the builder that gets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assigned {
    pub connection: String,
    pub builder: BuilderId,
    pub job: AssignedJob,
}

/// A job as the queue hands it out; the API node adds URLs and a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignedJob {
    pub id: JobId,
    pub attempt: Attempt,
    #[serde(rename = "crate")]
    pub krate: CrateName,
    pub version: String,
    pub source: String,
    /// The source wants a registry token: the API node fetches it for the builder.
    pub private: bool,
    pub sha256: Sha256Hex,
    pub index: Option<String>,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    pub limits: Limits,
    pub lease_s: u32,
}

/// API node -> dispatchers, on `build.outcome.<node>`: what builders said at the same time, acknowledged to each once it
/// is stored here. The same outcome may come in several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeBatch {
    pub outcomes: Vec<OutcomeMessage>,
}

/// How an attempt ended, as its builder says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeMessage {
    pub job: JobId,
    pub attempt: Attempt,
    pub builder: BuilderId,
    pub outcome: Outcome,
    pub last_seq: u64,
    pub manifest: Option<String>,
    pub signature: Option<String>,
    /// Unix milliseconds.
    pub at_ms: i64,
}

/// A numbered event of an attempt's log, on `log.<job>.<attempt>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogMessage {
    pub job: JobId,
    pub attempt: Attempt,
    /// The builder's event number.
    pub seq: u64,
    /// Unix milliseconds, when an API node received it.
    pub at_ms: i64,
    pub body: LogBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogBody {
    Stage {
        stage: Stage,
        /// Bytes of log before it: what a node that resumes the attempt counts on from.
        #[serde(default, skip_serializing_if = "is_zero")]
        offset: u64,
    },
    Text {
        /// Bytes of log before this chunk.
        offset: u64,
        text: String,
    },
    /// The attempt ended: nothing follows.
    End { state: JobState },
}

impl LogBody {
    /// Bytes of log up to and with this; nothing goes on after an end.
    pub fn text_end(&self) -> u64 {
        match self {
            Self::Stage { offset, .. } => *offset,
            Self::Text { offset, text } => offset.saturating_add(text.len() as u64),
            Self::End { .. } => 0,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A domain event, on `event....`: what viewers of jobs, crates, builders and the queue see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventMessage {
    /// Unix milliseconds.
    pub at_ms: i64,
    pub event: DomainEvent,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DomainEvent {
    Job(JobChanged),
    Version(VersionChanged),
    Builder { builder: BuilderId, name: String, state: BuilderState },
    Queue { queued: u64, running: u64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobChanged {
    pub job: JobId,
    #[serde(rename = "crate")]
    pub krate: CrateName,
    pub version: String,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    pub priority: Priority,
    pub state: JobState,
    /// 0 before the first.
    pub attempt: Attempt,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<BuilderId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<crate::FailureClass>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionChanged {
    #[serde(rename = "crate")]
    pub krate: CrateName,
    pub version: String,
    pub id: VersionId,
    pub change: VersionChange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionChange {
    Published,
    Yanked,
    Unyanked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuilderState {
    Connected,
    Disconnected,
    Registered,
    Enabled,
    Disabled,
    Draining,
}

/// Somebody published it, on the subject that is its topic's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopicMessage {
    pub topic: UserTopic,
    /// Unix milliseconds, by the clock of the node that took it.
    pub at_ms: i64,
    pub data: JsonText,
}

/// An event of the event API that is published. Its id is the message's too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    pub id: EventId,
    /// Any text without control characters.
    pub name: String,
    pub data: JsonText,
}

/// API node -> any dispatcher, a request on `registry.refresh`: look at the registry now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefreshRequest {
    #[serde(rename = "crate")]
    pub krate: CrateName,
}

/// The answer to a [`RefreshRequest`]: what the database now says is what the registry says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum RefreshReply {
    Fresh,
    /// The registry has no such crate.
    NotFound,
    /// The registry could not be asked; the message is for an operator.
    Unavailable {
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused() {
        let mut bytes = encode(&LogMessage {
            job: JobId(1),
            attempt: Attempt(1),
            seq: 1,
            at_ms: 0,
            body: LogBody::Text { offset: 0, text: "x".into() },
        });
        assert!(decode::<LogMessage>(&bytes).is_ok());
        let position = bytes.iter().position(|byte| *byte == VERSION).unwrap();
        bytes[position] = 2;
        assert!(matches!(decode::<LogMessage>(&bytes), Err(Error::Version(2))));
        assert!(decode::<LogMessage>(b"").is_err());
    }
}
