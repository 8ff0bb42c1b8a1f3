//! Postgres, a file per table or state machine, and the object store. The only crate that spells SQL.
//!
//! Free functions over a connection; the caller owns the transaction.

pub mod artifacts;
pub mod attempts;
pub mod audit;
pub mod builders;
pub mod bulk;
pub mod catalogue;
pub mod crates;
pub mod database;
pub mod downloads;
pub mod estimates;
pub mod events;
pub mod faults;
pub mod jobs;
pub mod mastodon;
pub mod nodes;
pub mod objects;
pub mod outbox;
pub mod patience;
pub mod pubsub;
pub mod queue;
pub mod sessions;
pub mod targets;
pub mod uploads;
pub mod users;
pub mod versions;

pub use database::{Database, connect};
pub use sqlx::{Connection, Error, PgConnection, PgPool, Result};
