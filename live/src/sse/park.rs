//! Viewers without a task: how one gets its place in a channel, and what it is told first.

use super::Gateway;
use crate::{
    dialects::{
        Dialect, Said,
        native::{Subscription, encode},
    },
    engine::{
        Source,
        backfill::Outcome,
        channel::Mark,
        hub::{Joined, Member},
        log_job, replay,
        seats::Seat,
        viewer::{ResetReason, Since},
    },
    reactor::{Kind, Parking},
};
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, BytesMut};
use cratemill_service::take_over::{TakeOver, Taken};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};

/// How long a viewer waits for a place before it gets a task of its own, which waits for as long as it takes.
const PATIENCE: Duration = Duration::from_secs(2);
/// Until this node has what another one had.
const AGAIN: Duration = Duration::from_millis(5);

/// A place, and what its viewer has seen.
pub(crate) struct Place {
    member: Member,
    cursor: u32,
    mark: Mark,
    reset: Option<ResetReason>,
}

impl Place {
    pub(crate) fn into_parts(self) -> (Member, u32, Mark, Option<ResetReason>) {
        (self.member, self.cursor, self.mark, self.reset)
    }
}

pub(crate) enum Found {
    Place(Place),
    /// The streams are not known yet.
    NotYet,
    /// It takes a task.
    None,
}

/// A place for a viewer of these topics, from where on it asked, whose connection is, or will be, with this reactor.
pub(crate) async fn find(gateway: &Gateway, subscription: &Subscription, reactor: usize) -> Found {
    if subscription.topics.iter().any(|topic| log_job(topic).is_some()) {
        return Found::None;
    }
    let (mut seen, mut reset) = match &subscription.since {
        Since::Now => (None, None),
        Since::Unreadable => (None, Some(ResetReason::Unreadable)),
        Since::After(position) => {
            let Some(now) = gateway.engine.hub.mark() else { return Found::NotYet };
            (Some(Mark::of(position, now)), None)
        }
    };
    let sources = sources(subscription);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match gateway.engine.hub.join(&subscription.topics, seen, reactor) {
            Joined::NotYet => return Found::NotYet,
            Joined::Between => return Found::None,
            Joined::At { member, cursor, mark } => {
                return Found::Place(Place { member, cursor, mark, reset });
            }
            Joined::Before { member, floor } => {
                let (topics, missed) = (&subscription.topics, seen.unwrap_or(floor));
                let read = gateway.backfills.read(&gateway.engine.hub, member.channel, topics, missed, floor);
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
                    Ok(false) => (seen, reset) = (None, Some(ResetReason::Unknown)),
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
        let jetstream = &gateway.engine.bus.jetstream;
        if seen.get(*source) > replay::bounds_at_last(jetstream, *source).await.last {
            return false;
        }
    }
    let is_ahead = |now: Mark| sources.iter().any(|source| seen.get(*source) > now.get(*source));
    while gateway.engine.hub.mark().is_none_or(is_ahead) {
        sleep(AGAIN).await;
    }
    true
}

fn sources(subscription: &Subscription) -> Vec<Source> {
    let follows =
        |source: &Source| subscription.topics.iter().any(|topic| Source::of_topic(topic) == *source);
    Source::ALL.into_iter().filter(follows).collect()
}

/// An answer whose socket goes to a reactor.
pub(super) fn park(gateway: &Gateway, subscription: &Subscription, place: Place, seat: Seat) -> Response {
    let Place { member, cursor, mark, reset } = place;
    let dialect = Dialect::Events;
    let mut first = BytesMut::from(&encode::hello()[..]);
    let position = mark.position(&sources(subscription));
    first.put(dialect.alive(Some(&position)));
    if let Some(reason) = reset {
        for topic in subscription.topics.iter() {
            first.put(dialect.say(Said::Reset(topic, &position, reason)));
        }
    }
    let reactors = Arc::clone(&gateway.reactors);
    let take_over = TakeOver::new(move |Taken { stream, head, early: _ }| {
        let mut owed = BytesMut::from(&head[..]);
        owed.put(first);
        let kind = Kind::Events { member, cursor };
        reactors.park(Parking { stream, seat, dialect, owed: owed.freeze(), kind });
    });
    let mut response = ().into_response();
    response.extensions_mut().insert(take_over);
    response
}
