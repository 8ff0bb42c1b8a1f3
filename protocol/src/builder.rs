//! The builder protocol, version 1: what a builder and an API node say to each other over one WebSocket.
//!
//! ```text
//! builder                                   server
//!   Hello ------------------------------------>
//!   <------------------------- ChallengeRequest     (or Close)
//!   ChallengeResponse ------------------------>
//!   <---------------------------------- Welcome     (or Close)
//!   JobRequest ------------------------------->
//!   <------------------------------------- Jobs
//!   JobAccepted | JobRejected ---------------->
//!   JobEvent 1, 2, 3 ... --------------------->
//!   <--------------------------------- EventAck     cumulative
//!   Heartbeat -------------------------------->
//!   <--------------------------------- LeaseRenewed a fresh token per running job
//!   (uploads go over HTTP, to any node)
//!   JobResponse ------------------------------>
//!   <---------------------------------- JobDone     the outcome is durable
//! ```
//!
//! Every message is a map with a `type`; unknown fields are ignored, unknown types are an error.

use crate::{
    Attempt, BuilderId, CrateName, Features, JobId, Kind, Limits, Outcome, Sha256Hex, Stage, Target,
    token::Token,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The subprotocols of `GET /api/v1/builder`, best first.
pub const SUBPROTOCOL_MSGPACK: &str = "cratemill.v1.msgpack";
pub const SUBPROTOCOL_JSON: &str = "cratemill.v1.json";

/// The largest frame either side accepts: a chunk of log is at most a quarter of it.
pub const MAX_FRAME_BYTES: usize = 256 * 1024;
/// The most text in one [`Event::Log`].
pub const MAX_LOG_CHUNK_BYTES: usize = 32 * 1024;
/// The most targets in a [`Hello`].
pub const MAX_TARGETS: usize = 32;
/// The most slots of one builder, and so of jobs in one [`ServerMessage::Jobs`].
pub const MAX_SLOTS: u16 = 256;
/// The longest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 64 * 1024;
/// How long a build has to end by itself once it is cancelled, in seconds: enough to stop a compiler.
pub const CANCEL_GRACE_S: u32 = 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    Hello(Hello),
    ChallengeResponse(ChallengeResponse),
    /// The builder has this many free slots in all; replaces what it asked for before.
    JobRequest {
        slots: u16,
    },
    JobAccepted(JobRef),
    JobRejected {
        job: JobId,
        attempt: Attempt,
        why: String,
    },
    JobEvent(JobEvent),
    JobResponse(JobResponse),
    Heartbeat(Heartbeat),
    /// The builder leaves; its running jobs, if any, are handed back.
    Goodbye {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    ChallengeRequest(Challenge),
    Welcome(Welcome),
    Jobs {
        jobs: Vec<Job>,
    },
    /// Everything of this attempt up to and including `seq` is durable.
    EventAck {
        job: JobId,
        attempt: Attempt,
        seq: u64,
    },
    /// The lease of a running job is longer now; the token replaces the earlier one.
    LeaseRenewed {
        job: JobId,
        attempt: Attempt,
        lease_s: u32,
        token: Token,
    },
    /// The outcome is durable: the builder may forget the attempt.
    JobDone(JobRef),
    /// Stop this attempt: ask nicely, then kill after `grace_s`.
    Cancel {
        job: JobId,
        attempt: Attempt,
        grace_s: u32,
        why: CancelReason,
    },
    /// Finish what runs and ask for nothing more.
    Drain,
    Ping,
    Close {
        reason: CloseReason,
        message: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobRef {
    pub job: JobId,
    pub attempt: Attempt,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Of the public key, as `ssh-keygen -l` prints it: `SHA256:...`.
    pub fingerprint: String,
    /// Program and version, for people.
    pub agent: String,
    /// Target triples that this builder can build for.
    pub targets: Vec<Target>,
    pub slots: u16,
    /// Attempts that still run or whose outcome is not acknowledged.
    #[serde(default)]
    pub resume: Vec<Resume>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    pub job: JobId,
    pub attempt: Attempt,
    /// The number of the first event that is not acknowledged.
    pub next_seq: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Challenge {
    /// Who asks: the public URL of the service. A builder signs only for the server it dialled.
    pub server: String,
    pub connection: String,
    pub nonce: Nonce,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChallengeResponse {
    /// SSHSIG in its armoured form, over [`Challenge::signed_bytes`].
    pub signature: String,
}

/// The namespace of a login signature.
pub const AUTH_NAMESPACE: &str = "cratemill-auth@v1";

impl Challenge {
    /// What a builder signs. Lines, so that `ssh-keygen -Y sign` and a shell can do it; no field can hold a newline.
    pub fn signed_bytes(&self, fingerprint: &str) -> Vec<u8> {
        let lines = [AUTH_NAMESPACE, &self.server, &self.connection, &self.nonce.to_base64(), fingerprint];
        let mut text = String::new();
        for line in lines {
            text.extend(line.chars().filter(|c| !c.is_control()));
            text.push('\n');
        }
        text.into_bytes()
    }
}

/// 32 random bytes; base64 wherever they are text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; 32]);

impl Nonce {
    pub fn to_base64(self) -> String {
        BASE64.encode(self.0)
    }
}

impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = BASE64.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| de::Error::custom("a nonce is 32 bytes"))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub builder: BuilderId,
    pub name: String,
    /// Send a heartbeat at least this often.
    pub heartbeat_s: u32,
    /// How long a job stays the builder's without a heartbeat.
    pub lease_s: u32,
    pub limits: ConnectionLimits,
    /// The answer to each [`Resume`], in its order.
    #[serde(default)]
    pub resumed: Vec<Resumed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Resumed {
    /// Still the builder's: go on, and send events from `next_seq`.
    Continue { job: JobId, attempt: Attempt, next_seq: u64, lease_s: u32, token: Token },
    /// No longer the builder's: stop it and forget it.
    Lost { job: JobId, attempt: Attempt },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionLimits {
    pub max_frame_bytes: u32,
    pub max_log_chunk_bytes: u32,
    /// Events that may be sent and not acknowledged, per job.
    pub max_unacked_events: u32,
    pub max_messages_per_s: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub attempt: Attempt,
    #[serde(rename = "crate")]
    pub krate: CrateName,
    pub version: String,
    /// Where the `.crate` file is, `http` or `https`. Below the service's own URL it wants the job's token.
    pub source: String,
    /// Of the `.crate` file.
    pub sha256: Sha256Hex,
    /// The index that stands in for cargo's default registry, if not that itself: `sparse+http...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    pub kind: Kind,
    pub target: Target,
    pub features: Features,
    pub limits: Limits,
    /// How long the job stays the builder's without a heartbeat, once it has accepted; it has seconds for that.
    pub lease_s: u32,
    pub token: Token,
    /// Put each artifact at this URL + `/` + its name.
    pub upload: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    pub job: JobId,
    pub attempt: Attempt,
    /// From 1, without gaps, per attempt.
    pub seq: u64,
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    Stage {
        stage: Stage,
    },
    Log {
        /// Bytes of log before this chunk.
        offset: u64,
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobResponse {
    pub job: JobId,
    pub attempt: Attempt,
    pub outcome: Outcome,
    /// The number of the attempt's last event: the log is complete when all up to it are stored.
    pub last_seq: u64,
    /// The exact bytes that were signed, JSON; present when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// SSHSIG in its armoured form, over the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub load: Load,
    /// Every attempt the builder works on.
    pub running: Vec<JobRef>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The machine's load average over a minute.
    pub load1: f32,
    pub free_memory_bytes: u64,
    pub free_disk_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// Somebody asked for it.
    Cancelled,
    /// The lease is gone: another attempt may run already.
    LeaseLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    UnknownKey,
    Disabled,
    BadSignature,
    /// The offered subprotocols hold none that this node speaks.
    UnsupportedVersion,
    /// Not a message, or not one for this moment.
    Protocol,
    FrameTooLarge,
    Flood,
    /// No login in time.
    LoginTimeout,
    /// No heartbeat in time.
    Silent,
    /// The same builder logged in again.
    Superseded,
    /// This node goes away: connect again.
    Draining,
    /// Something of ours failed: connect again later.
    Internal,
}

impl CloseReason {
    /// The WebSocket close code that goes with it.
    pub fn code(self) -> u16 {
        match self {
            Self::UnknownKey | Self::Disabled | Self::BadSignature | Self::LoginTimeout => 4401,
            Self::UnsupportedVersion | Self::Protocol => 1002,
            Self::FrameTooLarge => 1009,
            Self::Flood => 1008,
            Self::Silent => 4408,
            Self::Superseded => 4409,
            Self::Draining => 1012,
            Self::Internal => 1011,
        }
    }

    /// Whether trying again with the same key can help.
    pub fn is_final(self) -> bool {
        matches!(self, Self::UnknownKey | Self::Disabled | Self::BadSignature | Self::UnsupportedVersion)
    }
}
