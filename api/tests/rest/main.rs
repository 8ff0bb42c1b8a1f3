//! The REST API through its real router, on a real Postgres, NATS and S3 server.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod builders;
mod crates;
mod documents;
mod downloads;
mod hostile;
mod jobs;
mod logs;
mod sources;
mod support;
mod uploads;
