//! The store against a real Postgres with the real migrations: `DATABASE_URL` names a server where databases can be made.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

mod artifacts;
mod builders;
mod catalogue;
mod database;
mod downloads;
mod estimates;
mod faults;
mod nodes;
mod pubsub;
mod queue;
mod sessions;
mod states;
mod support;
