//! How a viewer without a task gets its place in a channel, from where on it asks.

use crate::{
    engine::{
        Source,
        backfill::Outcome,
        channel::Mark,
        hub::{Joined, Member},
        replay,
    },
    gateway::Gateway,
};
use cratemill_protocol::topic::Topic;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};

/// How long a viewer waits for a place before it gets a task of its own, which waits for as long as it takes.
const PATIENCE: Duration = Duration::from_secs(2);
/// Until this node has what another one had.
const AGAIN: Duration = Duration::from_millis(5);

/// A place, and what its viewer has seen.
#[derive(Debug)]
pub struct Place {
    pub member: Member,
    pub cursor: u32,
    pub mark: Mark,
}

#[derive(Debug)]
pub enum Found {
    Place(Place),
    /// The streams are not known yet.
    NotYet,
    /// No stream was ever where it says it has been.
    Unknown,
    /// It takes a task: it missed more than a ring holds, or no cursor says what it has seen.
    None,
}

/// A place for a viewer of these topics that has seen this much, or nothing, and whose connection is, or will be, with this
/// reactor.
pub async fn find(gateway: &Gateway, topics: &Arc<[Topic]>, seen: Option<Mark>, reactor: usize) -> Found {
    let sources = sources(topics);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match gateway.hub.join(topics, seen, reactor) {
            Joined::NotYet => return Found::NotYet,
            Joined::Between => return Found::None,
            Joined::At { member, cursor, mark } => return Found::Place(Place { member, cursor, mark }),
            Joined::Before { member, floor } => {
                let missed = seen.unwrap_or(floor);
                let read = gateway.backfills.read(&gateway.hub, member.channel, topics, missed, floor);
                if timeout_at(deadline, read).await != Ok(Outcome::Done) {
                    return Found::None;
                }
            }
            Joined::Ahead(member) => {
                drop(member);
                match timeout_at(deadline, arrives(gateway, &sources, seen)).await {
                    Err(_) => return Found::None,
                    Ok(true) => {}
                    // Of one stream it may be so, and not of the other.
                    Ok(false) if sources.len() > 1 => return Found::None,
                    Ok(false) => return Found::Unknown,
                }
            }
        }
    }
    Found::None
}

/// Waits until this node is where a viewer says it is; false if the streams never were.
async fn arrives(gateway: &Gateway, sources: &[Source], seen: Option<Mark>) -> bool {
    let Some(seen) = seen else { return true };
    for source in sources {
        let jetstream = &gateway.bus.jetstream;
        if seen.get(*source) > replay::bounds_at_last(jetstream, *source).await.last {
            return false;
        }
    }
    let is_ahead = |now: Mark| sources.iter().any(|source| seen.get(*source) > now.get(*source));
    while gateway.hub.mark().is_none_or(is_ahead) {
        sleep(AGAIN).await;
    }
    true
}

/// The streams that these topics are of.
pub fn sources(topics: &[Topic]) -> Vec<Source> {
    let follows = |source: &Source| topics.iter().any(|topic| Source::of_topic(topic) == *source);
    Source::ALL.into_iter().filter(follows).collect()
}
