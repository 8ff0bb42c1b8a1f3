//! Flags and environment of the counter.

use cratemill_service::config::{Nats, Process};
use cratemill_store::Database;

/// Counts downloads: takes batches from the bus and adds them up in the database.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cratemill-counter", version)]
pub struct Config {
    #[command(flatten)]
    pub process: Process,
    #[command(flatten)]
    pub nats: Nats,
    #[command(flatten)]
    pub database: Database,
}
