//! Our own dialect: topics by name, events as JSON. Pure.
//!
//! A subscription that parses may name private topics, and logs of jobs that do not exist: whoever serves it asks
//! [`crate::auth`] and the database.

pub mod encode;
pub mod id;
pub mod subscription;
pub mod ws;

pub use subscription::Subscription;
