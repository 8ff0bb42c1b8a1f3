//! Everything Cratemill puts on a wire: builder messages, bus messages, subjects, topics, ids, tokens and manifests.
//!
//! This crate does no I/O and reads no clock, so that a builder, a node and a test agree on bytes by construction.
//! A change of a wire format is a new version line and a golden file (`tests/golden/`).

pub mod builder;
pub mod bus;
pub mod codec;
pub mod digest;
pub mod download;
pub mod ids;
pub mod job;
pub mod json_text;
pub mod manifest;
pub mod names;
pub mod publication;
pub mod sshsig;
pub mod subjects;
pub mod token;
pub mod topic;
pub mod user_topic;

pub use digest::Sha256Hex;
pub use ids::{
    ArtifactId, Attempt, BuilderId, CollectionId, CrateId, EventId, JobId, SubscriptionId, UserId, VersionId,
};
pub use job::{FailureClass, Features, JobState, Kind, Limits, Outcome, Priority, Stage};
pub use json_text::JsonText;
pub use names::{ArtifactName, CrateName, Target};
pub use user_topic::UserTopic;
