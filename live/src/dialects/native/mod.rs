//! Our own dialect: topics by name, events as JSON. Pure.
//!
//! Every topic of it is public, so that a subscription that parses is allowed; that a log's job exists is asked of the
//! database by whoever serves the subscription.

pub mod encode;
pub mod id;
pub mod subscription;

pub use subscription::Subscription;
