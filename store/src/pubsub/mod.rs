//! Sessions of clients that publish and subscribe over CBOR.
//!
//! A session outlives its connections: each begins an epoch, and what one of before still writes is void.

pub mod members;
pub mod sessions;

use cratemill_protocol::SubscriptionId;
use uuid::Uuid;

/// What a session subscribes to.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Membership {
    #[sqlx(rename = "subscription_id", try_from = "Uuid")]
    pub subscription: SubscriptionId,
    /// Empty: it gets everything.
    pub group: String,
    /// It gets what comes after this message of the stream; of a group the group does.
    pub since: i64,
    /// The group's, if it is one.
    pub group_id: Option<i64>,
}
