//! The dispatcher against a real Postgres (`DATABASE_URL`), a real NATS with the shipped configuration, a real S3
//! server, and a registry on loopback.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

mod audit;
mod bus;
mod counts;
mod deadline;
mod outcomes;
mod peer;
mod refresh;
mod silent;
mod support;
mod sweep;
mod watch;
