//! What every Cratemill process shares: how it is configured, starts, reports, speaks to the bus and drains.

pub mod backoff;
pub mod bus;
pub mod clock;
pub mod config;
pub mod group;
pub mod health;
pub mod http;
pub mod outage;
pub mod run;
pub mod streams;
pub mod take_over;
pub mod telemetry;

pub use run::{Context, run, run_here};
