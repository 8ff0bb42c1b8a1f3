//! The live gateway: what happens in the farm, as it happens, to anyone who follows a topic.
//!
//! ```text
//! NATS, what the streams send again -> [engine::feed] -> [engine::hub] -> [engine::channel] -> [reactor] <- [sse], [ws]
//! JetStream, what viewers missed    -> [engine::backfill] --------------------^
//!                                   -> [engine::replay] --+-> [engine::viewer] -> [sse], [ws]: logs, and the far past
//! object store, logs of the past    -> [engine::archive] -+
//! POST, what people publish         -> [publish] -> JetStream
//! ```
//! It speaks several dialects, each of which can stand alone: our own ([`native`]: [`sse`], [`ws`], [`publish`]), a zero-code
//! event API ([`event_api`]), publish/subscribe in CBOR ([`cbor`]), and Mastodon's streaming API ([`mastodon`]), which needs
//! Mastodon's Redis and database instead of ours. The program is `cratemill-live`; within another program:
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let config = cratemill_live::config::Config::try_parse_from([
//!     "cratemill-live",
//!     "--dialects=events",
//!     "--database=postgres://user:password@host/name",
//!     "--nats=nats://host:4222",
//!     "--origin=https://page.example",
//!     "--secret=at-least-thirty-two-bytes-of-it...",
//! ])?;
//! cratemill_live::run(config).await
//! # }
//! ```
//!
//! The engine knows topics, messages and positions, and nothing of HTTP. A dialect parses a subscription and encodes a
//! message; it touches neither the bus nor a socket. A node holds no state that another would miss: a viewer resumes at
//! any of them with the id of the last event it saw.

pub mod app;
pub mod auth;
pub mod cbor;
pub mod client_address;
pub mod config;
pub mod dialects;
pub mod engine;
pub mod event_api;
mod fed;
pub mod gateway;
pub mod mastodon;
pub mod metrics;
pub mod native;
pub mod origin;
pub mod place;
pub mod problem;
pub mod publish;
pub mod reactor;
pub mod sse;
pub mod ws;

pub use app::{run, run_until, serve};
