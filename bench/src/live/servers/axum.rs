//! The other peer: what one writes with axum in an afternoon, a broadcast channel and `Sse`.

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::sse::{Event, Sse},
    routing::{get, post},
};
use futures_util::{Stream, stream};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    net::TcpListener,
    sync::broadcast::{self, error::RecvError},
};

pub(in crate::live) const FOLLOW_PATH: &str = "/follow";
pub(in crate::live) const PUBLISH_PATH: &str = "/publish";
/// Events that a viewer may be behind before it misses some.
const CAPACITY: usize = 1_024;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
}

struct Shared {
    sender: broadcast::Sender<(u64, Arc<str>)>,
    sequence: AtomicU64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let (sender, _) = broadcast::channel(CAPACITY);
    let shared = Arc::new(Shared { sender, sequence: AtomicU64::new(1) });
    let router =
        Router::new().route(FOLLOW_PATH, get(follow)).route(PUBLISH_PATH, post(publish)).with_state(shared);
    let listener = TcpListener::bind(arguments.listen).await.context("cannot listen")?;
    Ok(::axum::serve(listener, router).await?)
}

async fn publish(State(shared): State<Arc<Shared>>, body: String) -> StatusCode {
    let sequence = shared.sequence.fetch_add(1, Ordering::Relaxed);
    // Without viewers there is nobody to send it to.
    let _ = shared.sender.send((sequence, body.into()));
    StatusCode::ACCEPTED
}

async fn follow(State(shared): State<Arc<Shared>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(shared.sender.subscribe(), |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok((sequence, text)) => {
                    let event = Event::default().id(sequence.to_string()).event("queue").data(&*text);
                    return Some((Ok(event), receiver));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(events)
}
