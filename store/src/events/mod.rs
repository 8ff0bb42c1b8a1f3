//! Events of the event API.
//!
//! ```text
//! insert -> events, due_events -> claim -> firing_events -> (the bus has it) -> confirm -> latest_events
//!                     |
//!                     +--> cancel
//! ```
//! An event leaves `due_events` once, for one of two ways, and whoever takes it out holds its row until that is committed:
//! so it is cancelled or published, never both and never twice.

pub mod cancel;
pub mod insert;
pub mod latest;
pub mod lists;
pub mod schedule;

use cratemill_protocol::{CollectionId, EventId, UserId};
use uuid::Uuid;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Event {
    #[sqlx(try_from = "Uuid")]
    pub id: EventId,
    /// The order of insertion.
    pub seq: i64,
    #[sqlx(try_from = "Uuid")]
    pub user_id: UserId,
    #[sqlx(try_from = "Uuid")]
    pub collection_id: CollectionId,
    pub event: String,
    /// Unix seconds.
    pub timestamp: i64,
    pub published: bool,
    pub cancelled: bool,
    /// JSON.
    pub data: String,
}

/// The columns of an [`Event`] from `e`, with `d` its row of `due_events`, if there is one.
macro_rules! event {
    () => {
        "e.id, e.seq, e.user_id, e.collection_id, e.event, e.timestamp, e.data, e.cancelled,
         d.seq IS NULL AND NOT e.cancelled AS published"
    };
}
use event;
