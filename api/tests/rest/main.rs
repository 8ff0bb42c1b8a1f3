//! The REST API through its real router, on a real Postgres, NATS and S3 server.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod bodies;
mod builders;
mod catalogue;
mod counting;
mod crates;
mod documents;
mod downloads;
mod hostile;
mod jobs;
mod logs;
mod serving;
mod sources;
mod statistics;
mod support;
mod uploads;
