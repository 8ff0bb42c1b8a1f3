//! The scheduler against a real Postgres (`DATABASE_URL`) and a real NATS with the shipped configuration.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

mod crashes;
mod schedules;
mod world;
