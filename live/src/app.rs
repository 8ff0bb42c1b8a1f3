//! Puts the parts together: connect, feed, serve, drain.

use crate::{
    cbor::{self, Sessions},
    config::Config,
    engine::{hub::Hub, seats::Seats},
    fed::{self, Heard},
    gateway::Entrance,
    mastodon::{self, Asked, Mastodon, config::MastodonConfig},
    problem::Problem,
    reactor::{self, Ears, Guests, Reactors},
};
use axum::Router;
use cratemill_service::{Context, http, take_over};
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// A peer that acknowledges nothing, or takes nothing, for so many heartbeats is gone.
const PEER_HEARTBEATS: u64 = 4;
/// Longer than any pause of a line that works.
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// Viewers that take their last bytes take them by then; the others must not hold up the end of the process.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Runs a gateway within a program that has a Tokio runtime, and its own way to log, until it is sent SIGTERM or SIGINT,
/// or `shutdown` is cancelled.
pub async fn run_until(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let drain = Duration::from_secs(config.process.drain_s);
    // It is large, and a caller may have it within its own.
    cratemill_service::run_here("live", drain, shutdown, |context| Box::pin(serve(config, context))).await
}

/// As [`run_until`], until a signal.
pub async fn run(config: Config) -> anyhow::Result<()> {
    run_until(config, CancellationToken::new()).await
}

/// What a process of its own runs.
pub async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let hub = Arc::new(Hub::new(fed::sources(&config)));
    let heartbeat = Duration::from_secs(config.viewer_heartbeat_s);
    let seats = Seats::new(config.max_viewers as usize);
    let (asks, asked) = mpsc::unbounded_channel();
    let (orders, ordered) = mpsc::unbounded_channel();
    let rules = reactor::rules(cbor::max_message(&config.cbor));
    let sessions = Sessions::new();
    let guests = Guests { orders, sessions: Arc::clone(&sessions), rules };
    let (wants, wanted) = mpsc::unbounded_channel();
    let (questions, questioned) = mpsc::unbounded_channel();
    let replay = config.mastodon.as_ref().map(MastodonConfig::replay).unwrap_or_default();
    let ears = Ears { wants, questions, routes: Arc::default(), replay, queued: Arc::default() };
    let (reactors, ended) =
        Reactors::start(config.reactors(), &hub, &seats, &asks, &guests, &ears, heartbeat)?;
    // They are the reactors': whoever takes them has an end then.
    drop((asks, guests, ears));
    context.spawn(drain(Arc::clone(&reactors), context.shutdown.clone()));
    context.essential("reactors", ended);
    let entrance = Entrance { reactors: Arc::clone(&reactors), seats, shutdown: context.shutdown.clone() };
    let mut router = context.health.router();
    if config.needs_the_bus() {
        let heard = Heard { asked, sessions, ordered };
        router = router.merge(fed::start(&config, &context, hub, entrance.clone(), heard).await?);
    }
    let router = match &config.mastodon {
        Some(mastodon) => {
            let asked = Asked { wants: wanted, questions: questioned };
            let header = config.event_api.client_address_header.as_ref();
            let mastodon = Mastodon::start(mastodon, header, entrance, asked, &context)?;
            let is_alone = !config.needs_the_bus();
            mastodon::router(&mastodon, router, is_alone)
        }
        None => router.fallback(async || Problem::not_found("there is nothing here")),
    };
    let served = async { answer(listen(&config)?, router, context.shutdown).await };
    let served = served.await;
    reactors.end();
    served
}

/// Viewers are told before the HTTP server has ended, which waits for others.
async fn drain(reactors: Arc<Reactors>, shutdown: CancellationToken) {
    shutdown.cancelled().await;
    reactors.drain();
}

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let listener = http::bind(config.process.listen)?;
    let patience = Duration::from_secs(config.viewer_heartbeat_s * PEER_HEARTBEATS);
    http::drop_stalled(&listener, patience.max(PEER_PATIENCE))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

async fn answer(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        result = take_over::serve(listener, router, shutdown.clone()) => result,
        () = deadline => {
            tracing::warn!("some viewers did not take their last bytes");
            Ok(())
        }
    }
}
