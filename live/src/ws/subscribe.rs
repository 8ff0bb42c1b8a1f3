//! Looks into what WebSockets ask for: that may take the bus, the database or a while, and a reactor waits for nobody.

use super::frames;
use crate::{
    dialects::native::{Subscription, encode::drop_reason, ws},
    engine::{
        log_job,
        viewer::{Item, Start, Viewer, What},
    },
    metrics,
    native::Native,
    place::Place,
    reactor::{Answer, Ask, Asker, Task},
    sse::park::{self, Found},
};
use bytes::{Bytes, BytesMut};
use cratemill_protocol::topic::Topic;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Looked into at once; the others wait, two for each connection.
const AT_ONCE: usize = 256;
/// Items of a log that are ready for one connection.
const ITEMS: usize = 32;
/// A piece of a log for a reactor holds no more than this and one item.
const SAID_BYTES: usize = 64 * 1024;
/// Pieces that a connection has not taken yet.
const UNTAKEN: usize = 2;

/// Until nobody asks any more, or the process drains: then the connections are told.
pub async fn run(native: Native, mut asks: mpsc::UnboundedReceiver<Ask>, shutdown: CancellationToken) {
    // A database that is away must not hold up what needs none.
    let lines = [(); 2].map(|()| Arc::new(Semaphore::new(AT_ONCE)));
    loop {
        let ask = tokio::select! {
            ask = asks.recv() => ask,
            () = shutdown.cancelled() => break,
        };
        let Some(ask) = ask else { break };
        let line = Arc::clone(&lines[usize::from(log_job(&ask.topic).is_some())]);
        let native = native.clone();
        // Two for each connection, and at most two seconds, or five of the database, once it is its turn.
        tokio::spawn(async move {
            if let Ok(_permit) = line.acquire().await
                && ask.is_wanted()
            {
                look_into(&native, ask).await;
            }
        });
    }
}

async fn look_into(native: &Native, Ask { asker, topic, since, .. }: Ask) {
    if let Some(job) = log_job(&topic) {
        match native.engine.archive.knows(job).await {
            Ok(true) => {}
            Ok(false) => return refuse(native, asker, &topic, "there is no such job"),
            Err(error) => {
                tracing::warn!(%job, %error, "cannot look for a job");
                return refuse(native, asker, &topic, "the database is away, logs have to wait");
            }
        }
    }
    let subscription = Subscription { topics: [topic.clone()].into(), since };
    match park::find(&native.gateway, &subscription, asker.reactor()).await {
        Found::Place(Place { member, cursor, mark }, reset) => {
            native.gateway.reactors.answer(asker, Answer::Joined { member, cursor, mark, reset });
        }
        Found::NotYet => refuse(native, asker, &topic, "the bus is away, try again"),
        Found::None => follow(native, asker, &topic, subscription),
    }
}

fn refuse(native: &Native, asker: Asker, topic: &Topic, why: &str) {
    metrics::refused("topic");
    let bytes = text(&ws::error(Some(topic), why));
    native.gateway.reactors.answer(asker, Answer::Ended { bytes });
}

/// A task reads for the connection, and ends with it.
fn follow(native: &Native, asker: Asker, topic: &Topic, subscription: Subscription) {
    let Ok(place) = Arc::clone(&native.gateway.followers).try_acquire_owned() else {
        return refuse(native, asker, topic, "too many viewers read the past here, try again");
    };
    let Some((subscriber, positions)) = native.engine.hub.subscribe(&subscription.topics) else {
        return refuse(native, asker, topic, "the bus is away, try again");
    };
    let Subscription { topics, since } = subscription;
    let (sender, items) = mpsc::channel(ITEMS);
    let start = Start { topics, since, subscriber, positions };
    let viewer = Viewer::run(Arc::clone(&native.engine), start, sender);
    let pass_on = pass_on(native.clone(), asker, topic.clone(), items, place);
    // It says nothing before the guard is with the connection.
    let (go, gone) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        if gone.await.is_ok() {
            tokio::join!(viewer, pass_on);
        }
    });
    native.gateway.reactors.answer(asker, Answer::Followed { task: Task(task.abort_handle()) });
    let _ = go.send(());
}

async fn pass_on(
    native: Native,
    asker: Asker,
    topic: Topic,
    mut items: mpsc::Receiver<Item>,
    _place: OwnedSemaphorePermit,
) {
    let untaken = Arc::new(Semaphore::new(UNTAKEN));
    let (mut subscribed, mut dropped) = (false, false);
    while let Some(item) = items.recv().await {
        let mut out = BytesMut::new();
        let mut next = Some(item);
        let mut count = 0;
        while let Some(item) = next {
            if !std::mem::replace(&mut subscribed, true) {
                frames::put_text(&ws::subscribed(&topic, &item.position), &mut out);
            }
            if let What::Dropped(reason) = &item.what {
                metrics::dropped(drop_reason(*reason));
                dropped = true;
            }
            if let Some(message) = ws::item(&topic, &item) {
                frames::put_text(&message, &mut out);
                count += 1;
            }
            next = if out.len() < SAID_BYTES { items.try_recv().ok() } else { None };
        }
        if out.is_empty() {
            continue;
        }
        metrics::frames(count);
        let Ok(room) = Arc::clone(&untaken).acquire_owned().await else { return };
        if dropped {
            // Whoever reads it may ask for the topic again at once.
            return native.gateway.reactors.answer(asker, Answer::Ended { bytes: out.freeze() });
        }
        native.gateway.reactors.answer(asker, Answer::Said { bytes: out.freeze(), room });
    }
    // The viewer has ended, and said why.
    native.gateway.reactors.answer(asker, Answer::Ended { bytes: Bytes::new() });
}

fn text(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    frames::put_text(message, &mut out);
    out.freeze()
}
