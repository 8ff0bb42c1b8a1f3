//! What whoever opens a connection needs of the node, and whether the node takes one more.

use crate::{
    engine::{
        backfill::Backfills,
        hub::Hub,
        seats::{Seat, Seats},
    },
    metrics,
    problem::Problem,
    reactor::Reactors,
};
use cratemill_service::bus::Bus;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Of every dialect.
#[derive(Debug, Clone)]
pub struct Entrance {
    pub reactors: Arc<Reactors>,
    /// One for each viewer that this node takes.
    pub seats: Arc<Seats>,
    pub shutdown: CancellationToken,
}

/// Of those that the bus feeds.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub hub: Arc<Hub>,
    pub bus: Bus,
    pub backfills: Arc<Backfills>,
    pub entrance: Entrance,
    pub reactors: Arc<Reactors>,
    /// And for each that has a task for long.
    pub followers: Arc<Semaphore>,
    pub shutdown: CancellationToken,
}

/// Why a node takes nobody at the moment.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum Refusal {
    #[error("this node is going away, try again")]
    Draining,
    #[error("this node has as many viewers as it takes, try again")]
    Full,
    #[error("the bus is away, try again")]
    Starting,
    #[error("too many viewers read the past here, try again")]
    Replays,
    #[error("the database is away, logs have to wait")]
    Database,
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Full => "full",
            Self::Starting => "starting",
            Self::Replays => "replays",
            Self::Database => "database",
        }
    }

    /// It is told to whoever asked.
    #[must_use]
    pub fn counted(self) -> Self {
        metrics::refused(self.reason());
        self
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::unavailable(refusal.counted().to_string())
    }
}

impl Gateway {
    /// A place for one more viewer.
    pub fn admit(&self) -> Result<Seat, Refusal> {
        self.entrance.admit()
    }
}

impl Entrance {
    /// A place for one more viewer.
    pub fn admit(&self) -> Result<Seat, Refusal> {
        if self.shutdown.is_cancelled() {
            return Err(Refusal::Draining);
        }
        self.seats.take().ok_or(Refusal::Full)
    }
}
