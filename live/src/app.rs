//! Puts the parts together: connect, feed, serve, drain.

use crate::{
    auth::Access,
    config::Config,
    engine::{Engine, archive::Archive, backfill::Backfills, feed, hub::Hub, seats::Seats},
    origin::Origins,
    problem::Problem,
    publish::{self, Publisher},
    reactor::Reactors,
    sse::{self, Gateway},
    ws,
};
use axum::Router;
use cratemill_service::{Context, backoff::Backoff, bus::Bus, http, take_over};
use cratemill_store::{PgPool, database, objects::Objects};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

/// A peer that acknowledges nothing, or takes nothing, for so many heartbeats is gone.
const PEER_HEARTBEATS: u64 = 4;
/// Longer than any pause of a line that works.
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// Viewers that take their last bytes take them by then; the others must not hold up the end of the process.
const LAST_BYTES: Duration = Duration::from_secs(5);

pub async fn run(config: Config, context: Context) -> anyhow::Result<()> {
    let bus = Bus::connect(&config.nats.nats_url, "live").await?;
    let pool = cratemill_store::connect(&config.database.database_url, "cratemill-live");
    let archive = Archive { pool: pool.clone(), objects: Objects::new(&config.objects) };
    let hub = Arc::new(Hub::default());
    let heartbeat = Duration::from_secs(config.viewer_heartbeat_s);
    let seats = Seats::new(config.max_viewers as usize);
    let (asks, asked) = mpsc::unbounded_channel();
    let (reactors, ended) = Reactors::start(config.reactors(), &hub, &seats, &asks, heartbeat)?;
    let engine = Engine { hub: Arc::clone(&hub), bus: bus.clone(), archive, heartbeat };
    let access = Arc::new(Access::new(config.live_token_secret.as_ref()));
    let publisher = Publisher::new(bus.clone(), Arc::clone(&access));
    let gateway = Gateway {
        engine: Arc::new(engine),
        access,
        backfills: Arc::new(Backfills::new(bus.jetstream.clone())),
        reactors: Arc::clone(&reactors),
        seats,
        followers: Arc::new(Semaphore::new(config.max_followers as usize)),
        origins: Arc::new(Origins::new(config.cors_origin.clone())),
        shutdown: context.shutdown.clone(),
    };
    watch_health(&context, &bus, &hub);
    context.spawn(migrate(pool, context.shutdown.clone()));
    context.spawn(ws::run(gateway.clone(), asked, context.shutdown.clone()));
    context.spawn(drain(Arc::clone(&reactors), context.shutdown.clone()));
    context.essential("feed", feed::run(bus, hub, context.shutdown.clone()));
    context.essential("reactors", ended);
    let served = async {
        let listener = listen(&config)?;
        serve(listener, router(&context, gateway, publisher), context.shutdown).await
    };
    let served = served.await;
    reactors.end();
    served
}

/// Viewers are told before the HTTP server has ended, which waits for others.
async fn drain(reactors: Arc<Reactors>, shutdown: CancellationToken) {
    shutdown.cancelled().await;
    reactors.drain();
}

/// Only what every viewer needs: without the database or the object store events go on, and another node has no more.
fn watch_health(context: &Context, bus: &Bus, hub: &Arc<Hub>) {
    let bus = bus.clone();
    context.health.require("nats", move || {
        let result = bus.check();
        async { result }
    });
    let hub = Arc::clone(hub);
    context.health.require("streams", move || {
        let result = hub.positions().map(|_| ()).ok_or_else(|| "not found yet".to_owned());
        async { result }
    });
}

/// Until it works: the database may come after us.
async fn migrate(pool: PgPool, shutdown: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    while let Err(error) = database::migrate(&pool).await {
        tracing::warn!(%error, "cannot bring the schema up to date yet");
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let listener = http::bind(config.process.listen)?;
    let patience = Duration::from_secs(config.viewer_heartbeat_s * PEER_HEARTBEATS);
    http::drop_stalled(&listener, patience.max(PEER_PATIENCE))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

fn router(context: &Context, gateway: Gateway, publisher: Publisher) -> Router {
    let origins = Arc::clone(&gateway.origins);
    sse::router(gateway.clone())
        .merge(ws::router(gateway))
        .merge(publish::router(publisher))
        .merge(context.health.router())
        .fallback(async || {
            Problem::not_found(
                "there is nothing here: GET /live/events?topic=..., GET /live/ws, POST /live/topics/topic...",
            )
        })
        .layer(origins.cors())
}

async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
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
