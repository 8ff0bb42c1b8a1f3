//! The counter: download batches from the bus become daily counts in Postgres.
//!
//! It takes what is there, up to a bound, applies it in one transaction, and acknowledges after the commit. The mark of
//! what was counted commits with the counts, so that a batch that comes again changes nothing.

pub mod app;
pub mod config;
mod gather;
mod leftovers;
mod metrics;
mod refusals;
mod sane;
mod settle;
