//! Viewers without a task: how one gets its place in a channel, and what it is told first.

use crate::{
    dialects::{
        Dialect, Said,
        native::{Subscription, encode},
    },
    engine::{
        channel::Mark,
        log_job,
        seats::Seat,
        viewer::{ResetReason, Since},
    },
    gateway::Gateway,
    place::{self, Place},
    reactor::{Kind, Parking},
};
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, BytesMut};
use cratemill_service::take_over::{TakeOver, Taken};
use std::sync::Arc;

pub(crate) enum Found {
    /// And what it is told first, if something is gone.
    Place(Place, Option<ResetReason>),
    /// The streams are not known yet.
    NotYet,
    /// It takes a task.
    None,
}

/// A place for a viewer of these topics, from where on it asked, whose connection is, or will be, with this reactor.
pub(crate) async fn find(gateway: &Gateway, subscription: &Subscription, reactor: usize) -> Found {
    let topics = &subscription.topics;
    if topics.iter().any(|topic| log_job(topic).is_some()) {
        return Found::None;
    }
    let (mut seen, mut reset) = match &subscription.since {
        Since::Now => (None, None),
        Since::Unreadable => (None, Some(ResetReason::Unreadable)),
        Since::After(position) => {
            let Some(now) = gateway.hub.mark() else { return Found::NotYet };
            (Some(Mark::of(position, now)), None)
        }
    };
    loop {
        match place::find(gateway, topics, seen, reactor).await {
            place::Found::Place(place) => return Found::Place(place, reset),
            place::Found::NotYet => return Found::NotYet,
            place::Found::None => return Found::None,
            place::Found::Unknown => (seen, reset) = (None, Some(ResetReason::Unknown)),
        }
    }
}

/// An answer whose socket goes to a reactor.
pub(super) fn park(
    gateway: &Gateway,
    subscription: &Subscription,
    (place, reset): (Place, Option<ResetReason>),
    seat: Seat,
) -> Response {
    let Place { member, cursor, mark } = place;
    let dialect = Dialect::NativeEvents;
    let mut first = BytesMut::from(&encode::hello()[..]);
    let position = mark.position(&place::sources(&subscription.topics));
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
