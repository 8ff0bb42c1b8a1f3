//! The live gateway: what happens in the farm, as it happens, to anyone who follows a topic.
//!
//! ```text
//! NATS, what the streams send again -> [engine::feed] -> [engine::hub] -+
//! JetStream, what a viewer missed   -> [engine::replay] ----------------+-> [engine::viewer] -> [dialects] -> [sse]
//! object store, logs of the past    -> [engine::archive] ---------------+
//! ```
//!
//! The engine knows topics, messages and positions, and nothing of HTTP. A dialect parses a subscription and encodes a
//! message; it touches neither the bus nor a socket. A node holds no state that another would miss: a viewer resumes at
//! any of them with the id of the last event it saw.

pub mod app;
pub mod config;
pub mod dialects;
pub mod engine;
pub mod metrics;
pub mod problem;
pub mod sse;

pub use app::run;
