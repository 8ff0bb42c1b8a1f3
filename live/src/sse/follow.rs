//! Viewers with a task of their own: those of logs, where each reads on its own between the bus and the archive, and those
//! that missed more than a ring holds.
//!
//! Such a viewer is one future that its connection polls: no task, no buffer beyond a few items, and nothing left behind
//! when the connection goes. A connection that takes no bytes is not polled; the hub lets its viewer go, and the kernel ends
//! the connection (see [`crate::app`]).

use crate::{
    dialects::native::{Subscription, encode},
    engine::{
        seats::Seat,
        viewer::{CaughtUp, Item, Start, Viewer, What},
    },
    gateway::Refusal,
    metrics,
    native::Native,
    problem::Problem,
};
use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

/// Items that are ready when the connection takes bytes: they go in one write. At most a megabyte of an archived log.
const ITEMS: usize = 32;
/// A write holds no more than this and one item.
const WRITE_BYTES: usize = 64 * 1024;

pub(super) fn follow(native: &Native, subscription: Subscription, seat: Seat) -> Result<Response, Problem> {
    let place = Arc::clone(&native.gateway.followers).try_acquire_owned().map_err(|_| Refusal::Replays)?;
    let Some((subscriber, positions)) = native.engine.hub.subscribe(&subscription.topics) else {
        return Err(Refusal::Starting.into());
    };
    let Subscription { topics, since } = subscription;
    let (sender, items) = mpsc::channel(ITEMS);
    let start = Start { topics: Arc::clone(&topics), since, subscriber, positions };
    let connection = Connection {
        viewer: Some(Box::pin(Viewer::run(Arc::clone(&native.engine), start, sender))),
        items,
        heartbeat: native.engine.heartbeat,
        shutdown: native.gateway.shutdown.clone(),
        ended: false,
        place: Some(place),
        caught_up: CaughtUp::new(&topics),
        _seat: seat,
    };
    Ok(Body::from_stream(connection.into_stream()).into_response())
}

/// A viewer and the bytes that it is owed.
struct Connection {
    /// None once it has said all it has to say.
    viewer: Option<BoxFuture<'static, ()>>,
    items: mpsc::Receiver<Item>,
    heartbeat: Duration,
    shutdown: CancellationToken,
    ended: bool,
    /// Given back once it only follows what is new.
    place: Option<OwnedSemaphorePermit>,
    caught_up: CaughtUp,
    _seat: Seat,
}

impl Connection {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        let rest = stream::unfold(self, |mut connection| async {
            let bytes = connection.next().await?;
            Some((bytes, connection))
        });
        stream::once(async { encode::hello() }).chain(rest).map(Ok)
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        // Drives the viewer while it waits for an item; both keep their state when another branch wins.
        let viewer = async {
            match &mut self.viewer {
                Some(viewer) => viewer.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                self.ended = true;
                metrics::dropped("draining");
                Some(encode::draining())
            }
            item = self.items.recv() => item.map(|item| self.write(&item)),
            () = viewer => {
                self.viewer = None;
                // What it said last is in the queue.
                self.items.try_recv().ok().map(|item| self.write(&item))
            }
            () = tokio::time::sleep(self.heartbeat) => Some(encode::heartbeat()),
        }
    }

    /// This item, and those that are ready behind it.
    fn write(&mut self, first: &Item) -> Bytes {
        let mut out = BytesMut::new();
        let mut count = 1;
        self.put(first, &mut out);
        while out.len() < WRITE_BYTES
            && let Ok(item) = self.items.try_recv()
        {
            self.put(&item, &mut out);
            count += 1;
        }
        metrics::frames(count);
        out.freeze()
    }

    fn put(&mut self, item: &Item, out: &mut BytesMut) {
        encode::item(item, out);
        if self.caught_up.is_now(item) {
            self.place = None;
        }
        if let What::Dropped(reason) = item.what {
            metrics::dropped(encode::drop_reason(reason));
            self.ended = true;
        }
    }
}
