//! A message of outcomes, of which a program that is older than its sender may not know all.

use cratemill_protocol::{
    Attempt, BuilderId, JobId,
    bus::{self, OutcomeBatch, OutcomeMessage},
};
use serde::{Deserialize, de::IgnoredAny};

/// What can be read of a message.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) outcomes: Vec<OutcomeMessage>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// An outcome that says something unknown; whose it is, if at least that can be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) of: Option<(JobId, Attempt, BuilderId)>,
}

/// An error means that nothing can be read of it.
pub(super) fn decode(payload: &[u8]) -> Result<Batch, bus::Error> {
    if let Ok(OutcomeBatch { outcomes }) = bus::decode(payload) {
        return Ok(Batch { outcomes, unreadable: Vec::new() });
    }
    let Items { outcomes: items } = bus::decode(payload)?;
    let mut batch = Batch::default();
    for item in items {
        match item {
            Item::Outcome(outcome) => batch.outcomes.push(*outcome),
            Item::Attempt { job, attempt, builder } => {
                batch.unreadable.push(Unreadable { of: Some((job, attempt, builder)) });
            }
            Item::Other(_) => batch.unreadable.push(Unreadable { of: None }),
        }
    }
    Ok(batch)
}

#[derive(Deserialize)]
struct Items {
    outcomes: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Outcome(Box<OutcomeMessage>),
    Attempt { job: JobId, attempt: Attempt, builder: BuilderId },
    Other(IgnoredAny),
}
