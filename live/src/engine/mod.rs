//! Topics, messages, positions: who gets what, from where, each once and in order. No HTTP here, and no dialect.

pub mod archive;
pub mod backfill;
pub mod channel;
pub mod feed;
pub mod filter;
pub mod frame;
pub mod hub;
pub mod memory;
pub mod position;
pub mod replay;
pub mod seats;
pub mod text;
pub mod viewer;
pub mod wake;

use self::{archive::Archive, hub::Hub};
use cratemill_protocol::{JobId, topic::Topic};
use cratemill_service::bus::Bus;
use std::{sync::Arc, time::Duration};

/// What every viewer of a node shares.
#[derive(Debug)]
pub struct Engine {
    pub hub: Arc<Hub>,
    pub bus: Bus,
    pub archive: Archive,
    /// How often a viewer that gets nothing learns how far it is.
    pub heartbeat: Duration,
}

/// A stream that viewers follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Events,
    Logs,
    /// What people publish.
    Topics,
    /// What is published through the event API.
    Timeline,
    /// What is published over CBOR; only its heads are followed.
    Pubsub,
}

impl Source {
    pub const ALL: [Self; 5] = [Self::Events, Self::Logs, Self::Topics, Self::Timeline, Self::Pubsub];

    pub fn of_stream(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.stream() == name)
    }

    pub fn of_topic(topic: &Topic) -> Self {
        match topic {
            Topic::JobLog(_) => Self::Logs,
            Topic::User(_) => Self::Topics,
            Topic::Timeline => Self::Timeline,
            Topic::Publications(_) => Self::Pubsub,
            Topic::Job(_) | Topic::Crate(_) | Topic::Builds | Topic::Builders | Topic::Queue => Self::Events,
        }
    }

    /// In metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Logs => "logs",
            Self::Topics => "topics",
            Self::Timeline => "timeline",
            Self::Pubsub => "pubsub",
        }
    }

    pub fn stream(self) -> &'static str {
        match self {
            Self::Events => cratemill_protocol::subjects::EVENTS_STREAM,
            Self::Logs => cratemill_protocol::subjects::LOGS_STREAM,
            Self::Topics => cratemill_protocol::subjects::TOPICS_STREAM,
            Self::Timeline => cratemill_protocol::subjects::TIMELINE_STREAM,
            Self::Pubsub => cratemill_protocol::subjects::PUBSUB_STREAM,
        }
    }

    /// The filter that lets everything through.
    pub fn everything(self) -> &'static str {
        match self {
            Self::Events => cratemill_protocol::subjects::EVENTS_ALL,
            Self::Logs => cratemill_protocol::subjects::LOGS_ALL,
            Self::Topics => cratemill_protocol::subjects::TOPICS_ALL,
            Self::Timeline => cratemill_protocol::subjects::TIMELINE_ALL,
            Self::Pubsub => cratemill_protocol::subjects::PUBSUB_ALL,
        }
    }

    /// Of its messages only the ids are read, not what they say.
    pub fn heads_only(self) -> bool {
        self == Self::Pubsub
    }
}

/// The job whose log the topic is.
pub fn log_job(topic: &Topic) -> Option<JobId> {
    match topic {
        Topic::JobLog(job) => Some(*job),
        _ => None,
    }
}
